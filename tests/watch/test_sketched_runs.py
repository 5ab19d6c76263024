"""Runs watched through sketches; oracle: whole kernels of the batch from plain autograd.

The oracle's kernels are dense, and drift between them is measured by other code (mpmath).
"""

import copy
import math
from dataclasses import replace
from statistics import median

import pytest
import torch
from jacobian.batch_kernels import Contrastive, NormedNet, flat, flat_kernel
from jacobian.models import gap
from jacobian.snapshots import assert_same, state_of
from torch import nn
from watch.made import history_of, seen
from watch.tiny import ConvNet, LowRank, f64, inputs, labels, moved, start_and_now

from ntkwatch import KernelTracker, ProbeBatch, empirical_ntk, judge
from ntkwatch.errors import InputError, RandomForwardError
from ntkwatch.jacobian.sketch import KernelSketch
from ntkwatch.jacobian.spec import KernelSpec
from ntkwatch.kernel.sketched import gaussian_columns
from ntkwatch.watch.readings.sketching import COLUMNS, sketch_drift
from ntkwatch.watch.record.plain import observation_from_plain, to_plain
from ntkwatch.watch.store import RunFiles

from oracles import dense_ntk, naive_angle, naive_relative_change, naive_scale

N = 32


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def _contrastive() -> nn.Module:
    torch.manual_seed(0)
    return Contrastive().double()


def _normed() -> nn.Module:
    torch.manual_seed(0)
    return NormedNet().double().train()


def _trace(model: nn.Module, x: torch.Tensor, **options) -> torch.Tensor:
    return torch.einsum("nmcc->nm", dense_ntk(copy.deepcopy(model).eval(), x, **options))


def _probe_statistics(model: nn.Module, x: torch.Tensor, **options) -> torch.Tensor:
    """The flat kernel in evaluation mode on the statistics of the probe, written into buffers."""
    twin = copy.deepcopy(model)
    h = twin[0](x).detach()
    twin[1].running_mean.copy_(h.mean(dim=0))
    twin[1].running_var.copy_(h.var(dim=0, correction=0))
    return flat(dense_ntk(twin.eval(), x, **options))


CASES = {
    "coupled, by itself": (_contrastive, {"memory_budget": "2KiB"}, flat_kernel),
    "coupled, asked for": (_contrastive, {"engine": "sketch"}, flat_kernel),
    "per sample": (_mlp, {"engine": "sketch"}, flat_kernel),
    "per sample, trace": (_mlp, {"engine": "sketch", "outputs": "trace"}, _trace),
    "batch statistics": (_normed, {"engine": "sketch", "batchnorm": "batch"}, flat_kernel),
    "probe statistics": (_normed, {"engine": "sketch"}, _probe_statistics),
}


def _assert_near(reading, key, exact):
    """Within three standard deviations: one interval of 95 % in twenty misses."""
    low, high = reading.intervals[key]
    value = getattr(reading, key)
    assert low < value < high, key
    assert abs(value - exact) <= 1.6 * max(high - value, value - low), key


@pytest.mark.parametrize("size", [0.02, 0.15])
@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_the_whole_kernels_within_their_intervals(case, size):
    build, settings, kernel_of = CASES[case]
    start, x = build(), inputs(9, 4)
    now = moved(start, size)
    before = state_of(now)
    tracker, first, last = start_and_now(start, now, ProbeBatch(x, labels(9)), **settings)
    assert_same(before, state_of(now))
    kernel = kernel_of(start, x)
    sketch = tracker.reference.sketch
    V = gaussian_columns(len(kernel), range(COLUMNS), seed=sketch.seed)
    assert gap(sketch.gram, V.T @ kernel @ V) < 1e-12
    pair = kernel_of(now, x).numpy(), kernel.numpy()
    _assert_near(last, "relative_kernel_change", naive_relative_change(*pair))
    _assert_near(last, "kernel_angle", naive_angle(*pair))
    _assert_near(last, "kernel_scale", math.log(naive_scale(*pair)))
    assert last.kernel_distance == pytest.approx(1 - math.cos(last.kernel_angle), abs=1e-15)
    angles = {}
    for layer, estimate in last.layer_angle.items():
        names = [name for name, _ in start.named_parameters() if name.startswith(f"{layer}.")]
        parts = (kernel_of(model, x, params=names).numpy() for model in (now, start))
        angles[layer] = naive_angle(*parts)
        assert estimate == pytest.approx(angles[layer], rel=0.35)
    counted = [angle for layer, angle in angles.items() if layer != "1"]  # that is a BatchNorm
    _assert_near(last, "layer_angle_median", median(counted))
    assert first.kernel_angle == first.relative_kernel_change == 0
    assert 0 < last.noise_floor["layer_angle_median"] < 1e-12
    assert last.sketch_columns == COLUMNS
    assert last.kernel_distance_offdiag is last.trace is last.target_alignment is None
    assert last.top_eigenvalues == ()
    assert any("estimates from a sketch of 64 random columns" in note for note in last.notes)


def test_a_kernel_that_can_be_held_is_never_sketched_unasked():
    start = _mlp()
    tracker, _, last = start_and_now(start, moved(start), ProbeBatch(inputs(N, 4), labels(N)))
    assert last.sketch_columns is None
    assert tracker.reference.sketch is None
    assert tracker.kernel is not None
    assert not any("sketch" in note for note in last.notes)
    with pytest.raises(InputError, match="engine='sketch' is not known"):
        empirical_ntk(start, inputs(N, 4), engine="sketch")


def test_a_kernel_too_large_to_be_held_is_sketched_and_that_is_said():
    """(32 x 300)^2 entries, twice: 1.4 GiB. A linear layer's kernel has a closed form."""
    start = nn.Linear(4, 300, **f64)
    x = inputs(N, 4)
    settings = {"outputs": "full", "memory_budget": "1MiB"}
    tracker, first, last = start_and_now(start, moved(start), ProbeBatch(x), **settings)
    assert last.sketch_columns == COLUMNS
    assert "9600 x 9600 entries takes 1.4 GiB" in first.left_out["kernel"]
    assert first.left_out["kernel"] == last.left_out["kernel"]
    assert last.kernel_angle < 1e-12, "the kernel of a linear layer does not move"
    sketch = tracker.reference.sketch
    V = gaussian_columns(32 * 300, range(COLUMNS), seed=sketch.seed).view(32, 300, COLUMNS)
    expected = torch.einsum("nam,nk,kap->mp", V, x @ x.T + 1, V)
    torch.testing.assert_close(sketch.gram, expected, rtol=1e-10, atol=1e-6)


@pytest.mark.parametrize("engine", ["vmap", "loop", "structured"])
def test_an_engine_that_was_chosen_is_not_replaced_by_a_sketch(engine):
    start = _contrastive()
    probe = ProbeBatch(inputs(N, 4))
    tracker, _, last = start_and_now(start, moved(start), probe, engine=engine)
    assert last.kernel_angle is last.sketch_columns is None
    assert "mixes samples" in last.left_out["kernel"]
    assert last.left_out["layer_angle_median"] == "there is no per-sample kernel"
    assert last.linearization_error is not None
    assert "unjudged" not in to_plain(last)
    assert sum("not measured" in line for line in judge(tracker.history).evidence) == 2


def test_chance_is_no_function_and_is_not_sketched_either():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.rand(len(x), 3, **f64)

    for engine in ("auto", "sketch"):
        tracker = KernelTracker(ProbeBatch(inputs(N, 4)), engine=engine)
        with pytest.raises(RandomForwardError, match="random numbers"):
            tracker.observe(Noisy(4, 3, **f64), 0)


def test_a_layer_whose_part_was_zero_has_no_angle_and_a_reason():
    """The first factor of a low-rank correction: the second one is zero at the start."""
    torch.manual_seed(0)
    start = LowRank()
    probe = ProbeBatch(inputs(N, 4))
    _, _, last = start_and_now(start, moved(start), probe, engine="sketch")
    assert last.layer_angle["a"] is None
    assert last.left_out["layer_angle/a"] == "its part of the kernel is zero at the anchor"
    assert last.layer_angle_median == last.layer_angle["b"] > 0


def test_a_kernel_that_was_zero_at_the_start_has_no_drift_and_a_reason():
    start = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 2, bias=False)).double()
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.zero_()
    probe = ProbeBatch(inputs(N, 4))
    _, _, last = start_and_now(start, moved(start), probe, engine="sketch")
    assert last.kernel_angle is last.layer_angle_median is None
    assert "exactly zero" in last.left_out["kernel_angle"]


def test_moving_buffers_are_told_apart_in_sketches_too():
    """Running averages alone moved: all of the drift is theirs, none of it the parameters'."""
    torch.manual_seed(0)
    start, x = ConvNet().train(), inputs(N, 1, 5, 5)
    now = copy.deepcopy(start)
    with torch.no_grad():
        now(3 + 2 * inputs(N, 1, 5, 5, seed=4))
    settings = {"engine": "sketch", "batchnorm": "running"}
    _, _, last = start_and_now(start, now, ProbeBatch(x, labels(N)), **settings)
    K, R = (flat(dense_ntk(copy.deepcopy(m).eval(), x)).numpy() for m in (now, start))
    _assert_near(last, "relative_kernel_change", naive_relative_change(K, R))
    assert last.parameters_only.relative_kernel_change == 0
    assert last.buffer_share == 1


def test_intervals_of_a_median_hold_it_as_often_as_they_say():
    """Three layers of known kernels, seen through 200 draws of columns."""
    generator = torch.Generator().manual_seed(3)

    def factor():
        return torch.randn(40, 12, generator=generator, **f64)

    sizes = {"a": 0.1, "b": 0.2, "c": 0.5}
    then = {layer: factor() for layer in sizes}
    now = {layer: then[layer] + size * factor() for layer, size in sizes.items()}
    kernels = [[(f[a] @ f[a].T).numpy() for f in (now, then)] for a in sizes]
    exact = median(naive_angle(*pair) for pair in kernels)
    spec = KernelSpec(
        outputs="full", output_shape=(), params=(), dtype="float64", batchnorm="none", forward=""
    )

    def sketch(layers, seed):
        V = gaussian_columns(40, range(COLUMNS), seed=seed)
        parts = {layer: (V.T @ k) @ (V.T @ k).T for layer, k in layers.items()}
        about = {"form": "two-sided", "images": None, "size": 40, "seed": seed, "coupled": True}
        return KernelSketch(gram=sum(parts.values()), layers=parts, method=None, spec=spec, **about)

    held = 0
    for seed in range(200):
        pair = sketch(now, seed), sketch(then, seed)
        values = sketch_drift(*pair, counted=set(sizes), left_out={})
        low, high = values["intervals"]["layer_angle_median"]
        held += low <= exact <= high
    assert 180 <= held <= 200


# What is concluded. -------------------------------------------------------------------------------

NO_BANDS = "there are no bands for kernels of coupled samples"


@pytest.mark.parametrize(
    ("error", "angle", "strength"),
    [(0.05, 1.0, "lazy"), (0.25, 0.01, "transitional"), (0.6, 0.01, "feature-learning")],
)
def test_an_angle_without_bands_decides_nothing(error, angle, strength):
    """With bands these are: signals that disagree, and a kernel that kept its shape, twice."""
    about = {"sketch_columns": 64, "unjudged": NO_BANDS, "layer_angle": {"a": angle}}
    judged = judge(history_of(seen(error, angle, 0.05, **about)))
    assert (judged.strength, judged.qualifier) == (strength, None)
    assert "(by a sketch of 64 columns), is shown and not judged" in judged.reason
    assert NO_BANDS in judged.reason
    assert judged.layers["a"].band == "not judged"


def test_an_angle_with_bands_is_judged_and_said_to_be_an_estimate():
    judged = judge(history_of(seen(0.05, 1.0, 0.9, sketch_columns=64, layer_angle={"a": 1.0})))
    assert (judged.strength, judged.qualifier) == ("undetermined", "signals disagree")
    assert "1.00 rad (by a sketch of 64 columns), in the feature-learning band" in judged.reason
    assert judged.layers["a"].band == "feature-learning"


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("coupled, by itself", "coupled samples"),
        ("batch statistics", "coupled samples"),
        ("per sample", "all outputs side by side"),
        ("probe statistics", "all outputs side by side"),
        ("per sample, trace", None),
    ],
)
def test_only_sketches_of_the_kernel_that_bands_were_fitted_to_are_judged(case, why):
    build, settings, _ = CASES[case]
    start = build()
    tracker, _, last = start_and_now(start, moved(start), ProbeBatch(inputs(N, 4)), **settings)
    assert (last.unjudged is None) is (why is None)
    judged = judge(tracker.history)
    assert judged.strength != "undetermined"
    assert ("not judged" in judged.reason) is (why is not None)
    assert why is None or why in judged.reason
    assert any("sketch of 64 random columns" in line for line in judged.evidence)


def test_whole_kernels_of_coupled_samples_have_no_bands_either():
    start = _normed()
    probe = ProbeBatch(inputs(N, 4))
    tracker, _, last = start_and_now(start, moved(start), probe, batchnorm="batch")
    assert last.sketch_columns is None
    assert "is shown and not judged" in judge(tracker.history).reason


def test_an_observation_is_the_same_after_a_round_trip():
    start = _contrastive()
    _, _, last = start_and_now(start, moved(start), ProbeBatch(inputs(N, 4)))
    assert observation_from_plain(to_plain(last)) == last


# Going on. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["coupled, by itself", "batch statistics", "per sample, trace"])
def test_a_run_taken_up_from_its_files_sees_what_one_that_went_on_sees(case, tmp_path):
    build, settings, _ = CASES[case]
    start, probe = build(), ProbeBatch(inputs(N, 4), labels(N))
    half, end = moved(start, 0.1), moved(start, 0.2)
    whole = KernelTracker(probe, warmup_steps=5, **settings)
    for step, model in ((0, start), (7, half)):
        whole.observe(model, step)
    files = RunFiles(tmp_path)
    files.write_anchor(whole.reference)
    files.write_anchor(whole.warmup, "warmup")
    again = KernelTracker(probe, warmup_steps=5, **settings)
    anchors = (files.read_anchor(kind, device=torch.device("cpu")) for kind in ("start", "warmup"))
    again.resume(copy.deepcopy(whole.history), *anchors)
    expected, found = (replace(t.observe(end, 40), seconds=0.0) for t in (whole, again))
    assert found == expected
    assert found.kernel_angle > 0
    assert found.since_warmup.kernel_angle > 0
    assert found.since_warmup.sketch_columns == COLUMNS


def test_a_run_that_had_no_sketch_goes_on_without_drift_and_says_so():
    start, probe = _contrastive(), ProbeBatch(inputs(N, 4))
    first = KernelTracker(probe, engine="vmap")
    first.observe(start, 0)
    second = KernelTracker(probe)
    second.resume(first.history, first.reference)
    last = second.observe(moved(start), 7)
    assert last.kernel_angle is None
    assert last.left_out["layer_angle_median"] == "there was no sketch of the kernel at the anchor"
    assert last.linearization_error is not None
    why = judge(second.history).readings["since start"].why
    assert "layer angle is missing (there was no sketch" in why
