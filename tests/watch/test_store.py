"""Files of a run; oracles: safetensors' own reader, and the tensors that went in."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ntkwatch import ProbeBatch
from ntkwatch.errors import HistoryError
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.record.history import History, read_history
from ntkwatch.watch.record.records import Gap, Observation, RunInfo
from ntkwatch.watch.store import RunFiles, read_probe, write_atomically

CPU = torch.device("cpu")


@pytest.fixture
def files(tmp_path) -> RunFiles:
    return RunFiles(tmp_path / "deep" / "ntk")


def _same(a, b) -> bool:
    """Equal in structure, types and values; lists and tuples are called alike by a model."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


NESTED = {
    "input_ids": torch.arange(6).reshape(3, 2),
    "mask": torch.ones(3, 2, dtype=torch.bool),
    "images": [torch.rand(3, 4), {"low": torch.rand(3, 1).half(), "high": None}],
    "return_dict": True,
    "scale": 0.5,
    "mode": "sum",
    "nothing": None,
}


@pytest.mark.parametrize(
    "probe",
    [
        ProbeBatch(torch.rand(3, 2), torch.arange(3), origin="given"),
        ProbeBatch((torch.rand(3, 2), torch.rand(3)), torch.rand(3, 2), origin="é"),
        ProbeBatch(NESTED),
    ],
    ids=["tensor", "tuple", "nested mapping"],
)
def test_a_probe_is_the_same_after_a_round_trip(files, probe):
    files.write_probe(probe)
    again = files.read_probe()
    assert _same(probe.inputs, again.inputs)
    assert _same(probe.targets, again.targets)
    assert (again.origin, again.fingerprint()) == (probe.origin, probe.fingerprint())


def test_a_probe_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(HistoryError, match="does not exist"):
        read_probe(tmp_path / "probe.safetensors")


@pytest.mark.parametrize("kind", ["start", "warmup"])
@pytest.mark.parametrize("with_kernel", [True, False])
def test_an_anchor_is_the_same_after_a_round_trip(files, kind, with_kernel):
    anchor = Anchor(
        step=12,
        params={"a.weight": torch.rand(2, 3), "b": torch.rand(1, dtype=torch.float64)},
        buffers={"a.count": torch.tensor(3)},
        outputs=torch.rand(4, 2),
        kernel=torch.rand(4, 4) if with_kernel else None,
        layers={"a": torch.rand(4, 4)} if with_kernel else {},
    )
    files.write_anchor(anchor, kind)
    again = files.read_anchor(kind, device=CPU)
    assert again.step == 12
    for field in ("params", "buffers", "layers", "outputs"):
        assert _same(getattr(anchor, field), getattr(again, field)), field
    assert (again.kernel is None) is not with_kernel


def test_an_anchor_that_was_not_written_is_none(files):
    assert files.read_anchor(device=CPU) is None


def test_views_and_shared_memory_are_written_as_what_they_show(files):
    whole = torch.rand(4, 6)
    anchor = Anchor(
        step=0, params={"a": whole.T, "b": whole[:, ::2]}, buffers={}, outputs=whole[:, :1]
    )
    files.write_anchor(anchor)
    again = files.read_anchor(device=CPU)
    assert torch.equal(again.params["a"], whole.T)
    assert torch.equal(again.params["b"], whole[:, ::2])


def test_a_kernel_lies_where_users_look_for_it(files):
    kernel = torch.rand(3, 3, dtype=torch.float64)
    files.write_kernel(100, kernel)
    path = files.folder / "kernels" / "step=00000100.safetensors"
    assert torch.equal(load_file(path)["kernel"], kernel)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "verdict.json"
    path.write_text("old")

    def fail(part):
        part.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    seen = []

    def write(part):
        part.write_text("new")
        seen.append(path.read_text())

    with path.open() as reader:
        write_atomically(path, write)
        assert reader.read() == "old", "who has it open reads on in the old one"
    assert seen == ["old"]
    assert path.read_text() == "new"


def _observation(step: int) -> Observation:
    return Observation(anchor_step=0, step=step, probe_size=4, output_count=1, seconds=0.0)


def test_a_history_written_anew_holds_only_what_it_is_given(files):
    for record in (RunInfo(reference="old"), _observation(0), _observation(1), _observation(2)):
        files.append(record)
    shorter = History(RunInfo(reference="old"), (_observation(0),), (Gap(step=0, reason="no"),))
    files.rewrite(shorter)
    again = read_history(files.history)
    assert [o.step for o in again] == [0]
    assert again.gaps == shorter.gaps
    assert again.run.reference == "old"


def test_the_earlier_part_of_a_run_is_taken_over_up_to_a_step(tmp_path):
    first, second = RunFiles(tmp_path / "a"), RunFiles(tmp_path / "b")
    first.append(RunInfo())
    first.write_probe(ProbeBatch(torch.rand(3, 2)))
    first.write_anchor(Anchor(step=0, params={}, buffers={}, outputs=torch.rand(3, 1)))
    for step in (0, 5, 10):
        first.write_kernel(step, torch.rand(3, 3))
    assert first.can_go_on
    assert not second.can_go_on
    second.copy_from(first, until=5)
    assert second.can_go_on
    names = sorted(path.name for path in (second.folder / "kernels").iterdir())
    assert names == ["step=00000000.safetensors", "step=00000005.safetensors"]


def test_json_is_json(files):
    files.write_json("verdict.json", {"strength": "lazy", "loss": 0.5})
    assert json.loads((files.folder / "verdict.json").read_text())["strength"] == "lazy"
