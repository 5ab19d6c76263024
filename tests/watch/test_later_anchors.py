"""Anchors after the warm-up; oracle: a tracker that was started there, and counts by hand."""

import copy
import math

import pytest
import torch
from watch.tiny import Attends, ConvNet, Deep, inputs, labels, moved, start_and_now

from ntkwatch import KernelTracker, ProbeBatch, judge
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.anchors.later_anchors import InMemory, LaterAnchors
from ntkwatch.watch.store import RunFiles

N = 8


@pytest.fixture(scope="module")
def probe() -> ProbeBatch:
    return ProbeBatch(inputs(N, 4), labels(N))


@pytest.fixture(scope="module")
def course():
    """Weights at steps of a run that goes on moving."""
    torch.manual_seed(0)
    start = Deep()
    steps = (0, 20, 30, 40, 60, 80, 100, 160, 320, 640, 1280)
    return {step: moved(start, 0.02 * math.sqrt(step), seed=3) for step in steps}


def _watched(course, probe, **settings) -> KernelTracker:
    tracker = KernelTracker(probe, **settings)
    for step, model in course.items():
        tracker.observe(model, step, loss=1 / (1 + step))
    return tracker


@pytest.fixture(scope="module")
def whole(course, probe) -> KernelTracker:
    return _watched(course, probe)


def test_they_are_taken_where_the_distance_has_doubled_and_read_from_then_on(whole):
    found = {seen.step: list(seen.since) for seen in whole.history}
    assert found[30] == found[40] == []
    assert found[60] == found[80] == ["40"]
    assert found[100] == found[160] == ["40", "80"]
    assert found[640] == ["40", "80", "160", "320"]
    assert found[1280] == ["80", "160", "320", "640"]


def test_each_reads_as_a_tracker_that_was_started_there(whole, course, probe):
    last = whole.history[-1]
    for key, error in last.since.items():
        _, _, expected = start_and_now(course[int(key)], course[1280], probe)
        assert error == expected.linearization_error
        assert last.since_layer_angle[key] == expected.layer_angle_median


def test_from_disk_they_read_as_from_memory_and_take_none(whole, course, probe, tmp_path):
    files = RunFiles(tmp_path)
    on_disk = KernelTracker(probe)
    on_disk.keep_anchors_on(files.anchors)
    for step, model in course.items():
        on_disk.observe(model, step, loss=1 / (1 + step))
    pairs = zip(on_disk.history, whole.history, strict=True)
    assert all(a.since == b.since and a.since_layer_angle == b.since_layer_angle for a, b in pairs)
    kept = ["step=00000080", "step=00000320", "step=00000640", "step=00001280"]
    assert sorted(path.stem for path in (tmp_path / "anchors").iterdir()) == kept
    four = sum(anchor.nbytes for anchor in whole.later_anchors)
    assert whole.held_bytes - on_disk.held_bytes == four


def test_the_bytes_held_are_those_of_all_tensors(whole, course):
    """One anchor: parameters, outputs (N, 3), the kernel and its five parts (N, N), in float64."""
    parameters = sum(p.numel() for p in course[0].parameters())
    anchor = 8 * (parameters + 3 * N + 6 * N * N)
    one_kernel = 4 * 6 * N * (N + 1) // 2  # triangles in single precision
    assert len(whole.later_anchors) == 4
    assert whole.held_bytes == 6 * anchor + len(course) * one_kernel


def test_there_are_never_more_than_four_and_they_spread_over_the_whole_run():
    anchors = LaterAnchors(InMemory())

    def anchor(step: int) -> Anchor:
        return Anchor(step=step, params={}, buffers={}, outputs=torch.zeros(1))

    for step in range(1, 100_000):
        if anchors.is_due(step, start=0, warmup=20):
            anchors.take(anchor(step), start=0, warmup=20)
        assert len(anchors.steps) <= 4
        assert anchors.shelf.steps == anchors.steps
    ratios = [b / a for a, b in zip([20, *anchors.steps], anchors.steps, strict=False)]
    assert anchors.steps[-1] == 81_920
    assert max(ratios) <= 32


def test_the_newest_observed_again_replaces_itself(course, probe):
    tracker = _watched({step: course[step] for step in (0, 20, 40)}, probe)
    tracker.observe(course[30], 40)
    seen = tracker.observe(course[100], 60)
    _, _, expected = start_and_now(course[30], course[100], probe)
    assert seen.since == {"40": expected.linearization_error}


def test_a_new_reference_lets_go_of_them(course, probe, tmp_path):
    files = RunFiles(tmp_path)
    tracker = KernelTracker(probe)
    tracker.keep_anchors_on(files.anchors)
    for step in (0, 20, 40, 60, 0, 60):
        seen = tracker.observe(course[step], step)
    assert seen.since == {}
    assert list((tmp_path / "anchors").iterdir()) == []


def test_a_resumed_tracker_goes_on_with_them(whole, course, probe, tmp_path):
    files = RunFiles(tmp_path)
    first = KernelTracker(probe)
    first.keep_anchors_on(files.anchors)
    for step in (0, 20, 30, 40, 60, 80, 100):
        first.observe(course[step], step, loss=1 / (1 + step))
        files.write_kernel(step, first.kernel.trace)
    in_memory, on_disk = KernelTracker(probe), KernelTracker(probe)
    on_disk.keep_anchors_on(files.anchors)
    settings = {
        "last_kernel": first.kernel.trace,
        "kernel_at": lambda step: files.read_kernel(step, device=torch.device("cpu")),
    }
    in_memory.resume(
        copy.deepcopy(first.history), first.reference, first.warmup,
        later=first.later_anchors, **settings,
    )  # fmt: skip
    on_disk.resume(first.history, first.reference, first.warmup, **settings)
    for tracker in (in_memory, on_disk):
        for step in (160, 320, 640, 1280):
            tracker.observe(course[step], step, loss=1 / (1 + step))
        seen, expected = tracker.history[-1], whole.history[-1]
        assert (seen.since, seen.since_layer_angle) == (expected.since, expected.since_layer_angle)
        assert tracker.history.angles.below == whole.history.angles.below
        # Parts by layer are known again where there was an anchor.
        row, full = tracker.history.angles.layers["head"], whole.history.angles.layers["head"]
        anchored = [0, 1, 3, 5, 7, 8, 9, 10]
        assert [place for place, angle in enumerate(row) if angle is not None] == anchored
        assert [row[i] for i in anchored] == [full[i] for i in anchored]


def test_anchors_of_what_is_taken_back_are_taken_back(course, probe, tmp_path):
    """A run that is resumed from before its last anchor sees that step again."""
    files = RunFiles(tmp_path)
    first = KernelTracker(probe)
    first.keep_anchors_on(files.anchors)
    for step in (0, 20, 40, 60, 80):
        first.observe(course[step], step)
    history = copy.deepcopy(first.history)
    kept = [seen for seen in history if seen.step <= 60]
    history.start_over(history.run)
    for seen in kept:
        history.add(seen)
    second = KernelTracker(probe)
    second.keep_anchors_on(files.anchors)
    second.resume(history, first.reference, first.warmup)
    assert files.anchors.steps == [40]


def test_an_anchor_whose_file_is_gone_or_torn_is_left_out_with_the_reason(course, probe, tmp_path):
    tracker = KernelTracker(probe)
    tracker.keep_anchors_on(RunFiles(tmp_path).anchors)
    for step in (0, 20, 40, 80, 160):
        tracker.observe(course[step], step)
    (tmp_path / "anchors" / "step=00000040.safetensors").unlink()
    (tmp_path / "anchors" / "step=00000080.safetensors").write_bytes(b"torn")
    seen = tracker.observe(course[320], 320)
    assert list(seen.since) == ["160"]
    assert "its file is gone" in seen.left_out["since/40"]
    assert "is not whole" in seen.left_out["since/80"]


def test_an_anchor_that_cannot_be_written_costs_no_observation(course, probe, tmp_path):
    (tmp_path / "anchors").write_text("a file where the folder should be")
    tracker = KernelTracker(probe)
    tracker.keep_anchors_on(RunFiles(tmp_path).anchors)
    for step in (0, 20, 40, 60):
        seen = tracker.observe(course[step], step)
    assert seen.since == {}
    assert "could not be written" in seen.left_out["since/40"]


def test_minimal_metrics_keep_none_and_the_verdict_says_so(course):
    probe = ProbeBatch(inputs(32, 4), labels(32))
    some = {step: course[step] for step in (0, 20, 40, 80)}
    tracker = _watched(some, probe, metrics="minimal")
    assert all(seen.since == {} for seen in tracker.history)
    assert tracker.history.angles.steps == ()
    assert tracker.history.angles.left_out == "metrics='minimal' keeps none"
    assert tracker.later_anchors == ()
    timeline = judge(tracker.history).timeline
    assert timeline.finding in ("unknown", "still forming")


def test_without_a_known_warmup_they_begin_with_the_second_observation(course, probe):
    some = {step: course[step] for step in (0, 20, 40)}
    tracker = _watched(some, probe, warmup_steps=math.inf)
    assert list(tracker.history[2].since) == ["20"]
    assert tracker.warmup is None


def test_on_fresh_probes_errors_are_those_of_the_probe_in_use(course, probe):
    def fresh(step: int) -> ProbeBatch:
        return ProbeBatch(inputs(N, 4, seed=step), labels(N))

    steps = (0, 20, 40, 80, 160)
    tracker = _watched({step: course[step] for step in steps}, probe, fresh_probe=fresh)
    last = tracker.history[-1]
    for key in ("40", "80"):
        _, _, expected = start_and_now(course[int(key)], course[160], fresh(160))
        assert last.since[key] == pytest.approx(expected.linearization_error, rel=1e-12)
    assert last.since_layer_angle == {}
    assert last.left_out["since_layer_angle"] == "every observation has a probe of its own"
    assert tracker.history.angles.left_out == "every observation has a probe of its own"


def test_coupled_samples_are_read_by_error_and_by_sketch(probe):
    torch.manual_seed(0)
    start = Attends()
    course = {step: moved(start, 0.01 * step, seed=3) for step in (0, 20, 40, 60)}
    tracker = _watched(course, probe)
    last = tracker.history[-1]
    _, _, expected = start_and_now(course[40], course[60], probe)
    assert last.since == {"40": expected.linearization_error}
    assert last.since_layer_angle == {"40": expected.layer_angle_median}
    assert tracker.history.angles.left_out == "there is no kernel that can be kept"


def test_batch_statistics_are_those_of_the_probe_for_every_anchor():
    torch.manual_seed(0)
    start = ConvNet().train()
    probe = ProbeBatch(inputs(N, 1, 4, 4), labels(N))
    course = {step: moved(start, 0.003 * step, seed=3) for step in (0, 20, 40, 60)}
    last = _watched(course, probe).history[-1]
    _, _, expected = start_and_now(course[40], course[60], probe)
    assert last.since["40"] == expected.linearization_error


def test_weights_in_shards_are_left_out_with_the_reason(course, probe, monkeypatch):
    monkeypatch.setattr("ntkwatch.watch.memory.is_shard", lambda tensor: True)
    some = {step: course[step] for step in (0, 20, 40, 80)}
    last = _watched(some, probe).history[-1]
    assert last.since == {}
    assert last.left_out["since/all"] == "further anchors take whole weights; these are sharded"
