"""Records and their file; oracles: the json module, and files torn by hand."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntkwatch.errors import HistoryError
from ntkwatch.watch.record.history import History, append_record, find_history, read_history
from ntkwatch.watch.record.plain import observation_from_plain, to_plain
from ntkwatch.watch.record.records import SCHEMA, Gap, Observation, Reading, RunInfo

RUN = RunInfo(spec={"outputs": "full"}, probe={"fingerprint": "ab"}, reference="before", created="")


def _observation(step: int, **values) -> Observation:
    about = {"anchor_step": 0, "probe_size": 64, "output_count": 10, "seconds": 0.1}
    return Observation(step=step, **{**about, **values})


FULL = _observation(
    3,
    logged_step=2,
    epoch=0,
    loss=0.1 + 0.2,
    loss_start=2.3,
    linearization_error=1e-300,
    layer_angle={"a": None, "b": math.pi / 3},
    intervals={"linearization_error": (0.1, 1 / 3)},
    left_out={"kernel_scale": "orthogonal"},
    top_eigenvalues=(3.0, 2.0, 1e-17),
    rkhs_norm={"1e-06": 0.7},
    noise_floor={"output": 0.0},
    since_warmup=Reading(anchor_step=1, kernel_angle=0.0, layer_angle={"a": None}),
    notes=("one", "two"),
)


def test_an_observation_is_the_same_after_a_round_trip_through_text():
    text = json.dumps(to_plain(FULL), allow_nan=False)
    assert observation_from_plain(json.loads(text)) == FULL


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_comes_back_with_all_its_digits(value):
    seen = _observation(0, kernel_angle=value, top_eigenvalues=(value,))
    assert observation_from_plain(json.loads(json.dumps(to_plain(seen)))) == seen


def test_empty_fields_are_not_written_and_zero_is():
    plain = to_plain(_observation(0, kernel_angle=0.0))
    assert plain["kernel_angle"] == 0.0
    assert plain["step"] == 0
    assert not {"loss", "layer_angle", "notes", "since_warmup"} & set(plain)


def test_that_the_reference_is_not_the_start_is_written():
    assert to_plain(replace(RUN, reference_is_start=False))["reference_is_start"] is False


def _file(tmp_path, *records):
    path = tmp_path / "history.jsonl"
    for record in records:
        append_record(path, record)
    return path


def test_a_history_is_read_as_it_was_written(tmp_path):
    gap = Gap(step=9, reason="no")
    history = read_history(_file(tmp_path, RUN, _observation(0), FULL, gap))
    assert (history.run, history.observations) == (RUN, (_observation(0), FULL))
    assert (history.gaps, history.problems) == ([gap], ())


def test_the_kind_of_a_gap_is_kept_and_a_gap_without_one_is_a_failure(tmp_path):
    """Older versions wrote no kind, and a newer one may write others."""
    gap = Gap(step=9, reason="NaN", kind="diverged")
    path = _file(tmp_path, RUN, gap)
    assert read_history(path).gaps == [gap]
    lines = path.read_text().splitlines()
    for kind in ({}, {"kind": "eclipsed"}):
        older = {"record": "gap", "step": 3, "reason": "no", **kind}
        path.write_text("\n".join([lines[0], json.dumps(older)]) + "\n")
        assert read_history(path).gaps == [Gap(step=3, reason="no", kind="failed")]


def test_every_line_describes_itself(tmp_path):
    path = _file(tmp_path, RUN, FULL, Gap(step=1, reason="no"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["record"] for line in lines] == ["run", "observation", "gap"]
    assert lines[0]["schema"] == SCHEMA


def test_a_line_cut_off_by_a_kill_is_left_out_and_named(tmp_path):
    path = _file(tmp_path, RUN, _observation(0), FULL)
    path.write_bytes(path.read_bytes()[:-40])
    history = read_history(path)
    assert [o.step for o in history] == [0]
    assert len(history.problems) == 1
    assert "line 3" in history.problems[0]
    assert "killed" in history.problems[0]


def test_what_is_written_after_a_torn_line_is_not_glued_to_it(tmp_path):
    path = _file(tmp_path, RUN, _observation(0), _observation(1))
    path.write_bytes(path.read_bytes()[:-40])
    append_record(path, _observation(2))
    history = read_history(path)
    assert [o.step for o in history] == [0, 2]
    assert "line 3" in history.problems[0]


def test_unknown_keys_and_kinds_are_ignored(tmp_path):
    path = _file(tmp_path, RUN)
    plain = {"record": "observation", **to_plain(FULL), "new_key": 1}
    plain["since_warmup"]["newer"] = 2
    with path.open("a") as file:
        file.write(json.dumps(plain) + "\n" + json.dumps({"record": "comment", "x": 1}) + "\n")
    history = read_history(path)
    assert history.observations == (FULL,)
    assert history.problems == ()


@pytest.mark.parametrize("schema", [SCHEMA + 1, None, "2"])
def test_a_file_of_another_schema_is_refused(tmp_path, schema):
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps({"record": "run", "schema": schema}) + "\n")
    with pytest.raises(HistoryError, match="Update ntkwatch"):
        read_history(path)


def test_a_file_without_its_first_line_gives_no_verdict_on_a_start_that_nobody_knows(tmp_path):
    history = read_history(_file(tmp_path, _observation(0), FULL))
    assert len(history) == 2
    assert history.run.reference_is_start is False
    assert "no line that describes the run" in history.problems[0]


def test_a_file_with_nothing_in_it_is_refused(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text("hello\n")
    with pytest.raises(HistoryError, match=r"no whole record of ntkwatch \(6 bytes\)"):
        read_history(path)


@pytest.mark.parametrize("broken", ['{"record": "observation"}', '{"record": "gap"}', "[1]", "{"])
def test_a_record_that_misses_something_is_left_out_and_named(tmp_path, broken):
    path = _file(tmp_path, RUN, _observation(0))
    with path.open("a") as file:
        file.write(broken + "\n")
    append_record(path, _observation(1))
    history = read_history(path)
    assert [o.step for o in history] == [0, 1]
    assert "line 3" in history.problems[0]


def test_numbers_that_json_does_not_know_are_never_written(tmp_path):
    path = _file(tmp_path, RUN)
    with pytest.raises(ValueError, match="Out of range"):
        append_record(path, _observation(1, kernel_angle=math.nan))
    assert read_history(path).problems == (), "and leave no half a line"


@given(steps=st.lists(st.integers(0, 20), max_size=30))
def test_a_history_is_ordered_and_keeps_the_last_of_each_step(steps):
    made = [_observation(step, loss=float(turn)) for turn, step in enumerate(steps)]
    history = History(RUN, tuple(made))
    expected = {o.step: o for o in made}
    assert list(history) == [expected[step] for step in sorted(expected)]
    if steps:
        assert history[-1].step == max(steps)


def test_a_run_is_found_by_its_file_its_folder_and_the_folder_above(tmp_path):
    folder = tmp_path / "version_0" / "ntk"
    folder.mkdir(parents=True)
    path = _file(folder, RUN)
    for given_path in (path, folder, folder.parent, str(folder)):
        assert find_history(given_path) == path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: root / "nowhere", "does not exist"),
        (lambda root: root, "has no history.jsonl"),
    ],
)
def test_a_folder_without_a_run_is_refused(tmp_path, make, said):
    with pytest.raises(HistoryError, match=said):
        find_history(make(tmp_path))


def test_a_folder_with_two_runs_is_refused_by_naming_both(tmp_path):
    for name in ("ntk", "ntk-2"):
        (tmp_path / name).mkdir()
        _file(tmp_path / name, RUN)
    with pytest.raises(HistoryError, match=r"holds 2 watched runs.*ntk, .*ntk-2"):
        find_history(tmp_path)


def test_a_run_further_down_is_pointed_at(tmp_path):
    folder = tmp_path / "lightning_logs" / "version_0" / "ntk"
    folder.mkdir(parents=True)
    _file(folder, RUN)
    with pytest.raises(HistoryError, match=r"Deeper down there is: .*version_0/ntk"):
        find_history(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss", "a"),
        ("step", 1.5),
        ("layer_angle", [1]),
        ("layer_angle", {"fc": "wide"}),
        ("top_eigenvalues", ["1"]),
        ("intervals", {"kernel_angle": [1]}),
        ("since_warmup", {"anchor_step": "0"}),
        ("trace", True),
    ],
)
def test_a_value_of_the_wrong_kind_costs_its_line_only(tmp_path, key, value):
    path = tmp_path / "history.jsonl"
    append_record(path, RunInfo())
    for step in (0, 1):
        append_record(path, _observation(step))
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), key: value})
    path.write_text("\n".join(lines) + "\n")
    history = read_history(path)
    assert [seen.step for seen in history] == [1]
    assert len(history.problems) == 1
    assert "line 2" in history.problems[0]
