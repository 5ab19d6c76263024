"""What a dashboard writes of unusual runs; oracle: TensorBoard's own reader of event files."""

import io
import math
from dataclasses import replace
from types import SimpleNamespace

import markdown
import pytest
import torch
from PIL import Image
from report.made_runs import HOSTILE, feature_observations, lazy_observations, renamed, run_info
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from ntkwatch import ProbeBatch
from ntkwatch.integrations.dashboard.board import Dashboard, pictured
from ntkwatch.integrations.dashboard.displays import display_of
from ntkwatch.integrations.dashboard.tensorboard import layout_of, margins_of, scalars_of
from ntkwatch.integrations.dashboard.verdict_text import turns_of, verdict_text
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import NOT_TAKEN, Gap
from ntkwatch.watch.schedule import Schedule
from ntkwatch.watch.verdict.verdict import judge

N = 12


class _Tracker:
    """The little of a tracker that a dashboard looks at; kernels are made up."""

    def __init__(self, *, kernel=True):
        self.history = History(run_info())
        self.last_probe = ProbeBatch(torch.zeros(N, 1), torch.arange(N) % 3)
        rows = torch.randn(N, 20, generator=torch.Generator().manual_seed(0)).double()
        made = rows @ rows.T if kernel else None
        spec = SimpleNamespace(dtype="float32")
        self.kernel = SimpleNamespace(trace=made, spec=spec) if kernel else None
        self.last_reference = SimpleNamespace(kernel=made, step=0)


def _shown(folder, observations, *, tracker=None, name="ntk", finish=True, gaps=()):
    """Show a run that was observed so, and read back what there is to see."""
    tracker = tracker or _Tracker()
    tracker.history.gaps.extend(gaps)
    writer = SummaryWriter(folder)
    board = Dashboard([SimpleNamespace(experiment=writer)], {}, name=name, custom_scalars=True)
    board.lay_out()
    for observation in observations:
        tracker.history.add(observation)
        verdict = judge(tracker.history)
        tags = scalars_of(observation, verdict)
        for act in board.show(tracker, observation, verdict, tags, x=observation.step):
            act()
    if finish:
        for act in board.finish(tracker, judge(tracker.history)):
            act()
    writer.close()
    sizes = {"images": 0, "tensors": 0, "scalars": 0, "histograms": 0}
    return EventAccumulator(str(folder), size_guidance=sizes).Reload()


def _steps(events, tag):
    return [event.step for event in events.Images(tag)]


def _text(events, name="ntk"):
    return events.Tensors(f"{name}/verdict/text_summary")[-1].tensor_proto.string_val[0].decode()


# When. --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every_n", [None, 1, 7, 500])
@pytest.mark.parametrize("total", [1, 12, 460, 30_000])
def test_pictures_are_few_and_those_chosen_stay_chosen(total, every_n):
    schedule, steps = Schedule(every_n), []
    for step in range(total + 1):
        if schedule.is_due(step):
            schedule.done(step)
            steps.append(step)
    chosen = pictured(steps)
    assert chosen[0] == 0
    assert len(chosen) <= 9, "the last one still fits into TensorBoard's ten"
    for count in {*range(1, min(len(steps), 40)), len(steps) // 2, len(steps) - 1} - {0}:
        assert pictured(steps[:count]) == [step for step in chosen if step <= steps[count - 1]]


def test_a_run_of_a_thousand_million_steps_has_no_more_pictures():
    assert pictured([0, *(2 * 4**place for place in range(15))])[-2:] == [8192, 32768]
    assert len(pictured([0, *(2 * 4**place for place in range(15))])) == 9


def test_the_first_and_the_last_observation_are_among_the_pictures(tmp_path):
    events = _shown(tmp_path, feature_observations())
    steps = [o.step for o in feature_observations()]
    assert _steps(events, "ntk/kernel") == [0, 2, 8, 40, 200, 900, 1200]
    assert _steps(events, "ntk/layer_angles")[-1] == steps[-1]


def test_the_last_picture_is_not_hung_twice(tmp_path):
    seen = [o for o in feature_observations() if o.step <= 8]
    assert _steps(_shown(tmp_path, seen), "ntk/kernel") == [0, 2, 8]


def test_brief_observations_hang_no_pictures_and_turn_no_verdict(tmp_path):
    """As if only whole ones had been made; the tracker has no kernel at a brief one."""
    made = feature_observations()
    bare = {"layer_angle": {}, "layer_angle_median": None, "top_eigenvalues": ()}
    steps = {o.step for o in made[1:-1:2]}
    seen = [
        replace(o, **bare, left_out={"kernel": NOT_TAKEN}) if o.step in steps else o for o in made
    ]
    tracker, kernel = _Tracker(), _Tracker().kernel

    def one_by_one():
        for observation in seen:
            tracker.kernel = None if observation.is_brief else kernel
            yield observation

    events = _shown(tmp_path, one_by_one(), tracker=tracker)
    whole = [o for o in made if o.step not in steps]
    assert _steps(events, "ntk/kernel") == pictured([o.step for o in whole])
    assert steps.isdisjoint(_steps(events, "ntk/layer_angles"))
    assert steps.isdisjoint(turn.step for turn in turns_of(tracker.history))


def test_a_run_that_goes_on_elsewhere_hangs_no_more_pictures_than_one_that_never_stopped(tmp_path):
    observations = feature_observations()
    tracker = _Tracker()
    for observation in observations[:10]:
        tracker.history.add(observation)
    events = _shown(tmp_path, observations[10:], tracker=tracker)
    assert _steps(events, "ntk/kernel") == [200, 900, 1200]
    assert len(turns_of(tracker.history)) > 1
    for turn in turns_of(tracker.history):
        assert f"| {turn.step} | {turn.label}" in _text(events).replace("\\", "")


# Unusual runs. ------------------------------------------------------------------------------------


def test_one_observation_is_shown_without_pictures_of_a_course(tmp_path):
    events = _shown(tmp_path, feature_observations()[:1])
    assert events.Tags()["images"] == ["ntk/kernel"]
    assert "one observation" in _text(events)


def test_a_run_without_kernels_shows_its_verdict_and_its_charts(tmp_path):
    bare = [
        replace(o, layer_angle={}, layer_angle_median=None, top_eigenvalues=(), intervals={})
        for o in feature_observations()
    ]
    events = _shown(tmp_path, bare, tracker=_Tracker(kernel=False))
    assert events.Tags()["images"] == []
    assert events.Tags()["histograms"] == []
    assert "ntk_margins/linearization_error_lazy_below" in events.Tags()["scalars"]
    assert "ntk_margins/layer_angle_median_lazy_below" not in events.Tags()["scalars"]


@pytest.mark.parametrize("name", ["ntk", "a (b) [c]", "行"])
def test_hostile_names_of_layers_become_neither_markup_nor_an_error(tmp_path, name):
    seen = [renamed(o, {"features.0": HOSTILE, "features.2": ""}) for o in feature_observations()]
    events = _shown(tmp_path, seen, name=name, gaps=[Gap(step=5, reason=HOSTILE)])
    page = markdown.markdown(_text(events, name), extensions=["tables", "fenced_code"])
    assert "<script" not in page
    assert "<img" not in page
    assert f"{name}/layer_angles" in events.Tags()["images"]


def test_a_verdict_that_quotes_markup_shows_it_as_it_is():
    history = History(run_info(), lazy_observations())
    quoted = replace(judge(history), evidence=(HOSTILE, "[x](http://a) | *b* _c_"), reason=HOSTILE)
    page = markdown.markdown(verdict_text(quoted, turns_of(history)), extensions=["tables"])
    assert "<script" not in page
    assert "<img" not in page
    assert "<a " not in page
    assert "&lt;script&gt;" in page
    assert "*b* _c_" in page


def test_numbers_that_are_not_numbers_stop_nothing(tmp_path):
    nan = math.nan
    seen = [
        replace(
            o,
            linearization_error=nan,
            layer_angle=dict.fromkeys(o.layer_angle, nan),
            intervals={"linearization_error": (nan, math.inf)},
        )
        for o in feature_observations()
    ]
    events = _shown(tmp_path, seen)
    assert len(events.Images("ntk/layer_angles")) > 2
    assert math.isnan(events.Scalars("ntk_margins/linearization_error_lo")[-1].value)


def test_five_hundred_layers_make_one_picture_of_a_fair_size(tmp_path):
    seen = [
        replace(o, layer_angle={f"block.{i}.attention.q": 0.01 + i / 500 for i in range(500)})
        for o in feature_observations()
    ]
    picture = _shown(tmp_path, seen).Images("ntk/layer_angles")[-1]
    with Image.open(io.BytesIO(picture.encoded_image_string)) as image:
        assert image.height < 1000
    assert len(picture.encoded_image_string) < 200_000


def test_a_display_that_fails_leaves_the_others_alone():
    class Broken:
        def __getattr__(self, method):
            def fail(*args, **kwargs):
                raise OSError("disk full")

            return fail

    texts = []

    class Fine(Broken):
        def add_text(self, tag, text, x):
            texts.append(tag)

    loggers = [SimpleNamespace(experiment=kind()) for kind in (Broken, Fine)]
    board = Dashboard(loggers, {}, name="ntk", custom_scalars=True)
    tracker = _Tracker()
    (first, *_) = feature_observations()
    tracker.history.add(first)
    verdict = judge(tracker.history)
    failures = 0
    for act in board.show(tracker, first, verdict, {}, x=0):
        try:
            act()
        except OSError:
            failures += 1
    assert texts == ["ntk/verdict"]
    assert failures >= 3


def test_a_wavering_verdict_lists_its_last_turns():
    lazy, rich = lazy_observations()[-1], feature_observations()[-1]
    seen = [replace((lazy, rich)[i % 2], step=1200 + i) for i in range(40)]
    history = History(run_info(), (lazy_observations()[0], *seen))
    turns = turns_of(history)
    assert len(turns) > 30
    text = verdict_text(judge(history), turns)
    assert text.count("\n| ") == 2 + 12
    assert f"after {len(turns) - 12} earlier changes" in text
    assert f"| {turns[-1].step} |" in text


# Charts. ------------------------------------------------------------------------------------------


def test_charts_of_numbers_that_are_not_measured_are_left_out():
    page = layout_of("ntk", {"strength", "overhead_share"}, ())
    assert [list(charts) for charts in page.values()] == [
        ["0 static, 1 lazy, 2 transitional, 3 features"],
        ["share of wall time spent watching"],
    ]


def test_a_chart_of_one_tag_does_not_match_another_that_begins_alike():
    import re

    page = layout_of("n.k", {"kernel_scale", "edge_of_stability"}, ())
    patterns = [p for charts in page.values() for _, tags in charts.values() for p in tags]
    assert not any(re.match(p, tag) for p in patterns for tag in ("nxk/kernel_scale",))
    assert not any(re.match(p, "n.k/kernel_scale_of_mine") for p in patterns)
    assert sum(bool(re.match(p, "n.k/kernel_scale")) for p in patterns) == 1
    assert sum(bool(re.match(p, "n.k/edge_of_stability")) for p in patterns) == 1


def test_bands_that_do_not_hold_are_not_shaded():
    history = History(run_info(), lazy_observations())
    seen = replace(history[-1], unjudged="differentiated batch statistics")
    margins = margins_of(seen, judge(history))
    assert "layer_angle_median_lazy_below" not in margins
    assert "layer_angle_median_lo" in margins
    assert "linearization_error_lazy_below" in margins


# Loggers. -----------------------------------------------------------------------------------------


def test_a_logger_of_another_maker_with_a_method_of_that_name_gets_scalars_only():
    class Mine:
        experiment = SimpleNamespace(log_image=print, log_text=print)

        def log_image(self, picture):
            raise AssertionError

    assert display_of(Mine()) is None
    assert display_of(SimpleNamespace()) is None


def test_mlflow_keys_hold_no_character_that_it_refuses():
    calls = []
    client = SimpleNamespace(
        log_image=lambda run, image, key, step: calls.append((run, key, step)),
        log_text=lambda run, text, path: calls.append((run, path)),
    )
    MLFlowLogger = type("MLFlowLogger", (), {"experiment": client, "run_id": "7"})
    display = display_of(MLFlowLogger())
    display.picture("n:t?k/kernel", None, 3)
    display.text("n:t?k/verdict", "text", 3)
    assert calls == [("7", "ntk/kernel", 3), ("7", "ntk/verdict.md")]
