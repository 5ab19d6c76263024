"""Buffers that training moves: their part of a drift, and that they are no features.

Oracles: copies of the model with the buffers of the reference loaded by hand, differentiated by
plain autograd; trainings that move nothing but buffers; closed forms of models linear in weights.
"""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from watch.made import history_of, seen
from watch.tiny import ConvNet, f64, inputs, labels, moved, start_and_now

from ntkwatch import KernelTracker, ProbeBatch, judge
from ntkwatch.watch.record.plain import observation_from_plain, to_plain
from ntkwatch.watch.record.records import Reading
from ntkwatch.watch.verdict.bands import Bands, Strength

from oracles import dense_ntk, naive_relative_change

N = 40
IMAGES = inputs(N, 1, 5, 5)


class Scaled(nn.Module):
    """``s tanh(W x)`` with a buffer ``s``, and one that no forward pass reads."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3, bias=False, **f64)
        self.register_buffer("scale", torch.ones(1, **f64))
        self.register_buffer("count", torch.zeros(1, **f64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.head(x))


class Codebook(nn.Module):
    """The nearest entry of a codebook stands for a hidden state; training writes the entries.

    The gradient passes straight through, as in VQ-VAE.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 2, **f64)
        self.decode = nn.Sequential(nn.Linear(2, 8, **f64), nn.Tanh(), nn.Linear(8, 3, **f64))
        self.register_buffer("codes", inputs(6, 2, seed=7))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.encode(x))
        nearest = torch.cdist(h, self.codes).argmin(dim=1)
        if self.training:
            with torch.no_grad():
                for code in nearest.unique():
                    mean = h[nearest == code].mean(dim=0)
                    self.codes[code] = 0.9 * self.codes[code] + 0.1 * mean
        return self.decode(h + (self.codes[nearest] - h).detach())


def _trace_kernel(model: nn.Module, x: Tensor) -> Tensor:
    return torch.einsum("nmcc->nm", dense_ntk(copy.deepcopy(model).eval(), x)).numpy()


def _put_back(now: nn.Module, start: nn.Module) -> nn.Module:
    """A copy of the present model with the buffers of the start."""
    there = copy.deepcopy(now)
    for buffer, then in zip(there.buffers(), start.buffers(), strict=True):
        buffer.copy_(then)
    return there


def _pass_batches(model: nn.Module, *, shift: float = 3.0) -> nn.Module:
    """Forward passes in train mode, which move buffers and nothing else."""
    model.train()
    with torch.no_grad():
        for seed in range(20):
            model(shift + 2 * inputs(12, 1, 5, 5, seed=seed))
    return model


def _assert_share(start: nn.Module, now: nn.Module, x: Tensor, seen) -> None:
    """Compare a reading with kernels of copies."""
    K0, K, held = (_trace_kernel(m, x) for m in (start, now, _put_back(now, start)))
    change, own = naive_relative_change(K, K0), naive_relative_change(held, K0)
    assert seen.relative_kernel_change == pytest.approx(change, rel=1e-8)
    assert seen.parameters_only.relative_kernel_change == pytest.approx(own, rel=1e-8, abs=1e-12)
    assert seen.buffer_share == pytest.approx(1 - own / change, rel=1e-8)


# Their part of the drift. -------------------------------------------------------------------------


def test_the_share_is_that_of_kernels_with_the_buffers_of_the_start_loaded():
    torch.manual_seed(0)
    start = ConvNet().train()
    now = _pass_batches(moved(start, 0.05))
    _, first, later = start_and_now(start, now, ProbeBatch(IMAGES, labels(N)), batchnorm="running")
    assert first.buffer_share is first.parameters_only is None
    _assert_share(start, now, IMAGES, later)
    assert 0.1 < later.buffer_share < 0.999
    assert later.parameters_only.moving_buffers == ("norm.running_mean", "norm.running_var")
    # By layer, and with intervals of its own.
    alone = start_and_now(
        start, _put_back(now, start), ProbeBatch(IMAGES, labels(N)), batchnorm="running"
    )[2]
    assert alone.parameters_only is None
    assert later.parameters_only.layer_angle == pytest.approx(alone.layer_angle)
    assert later.parameters_only.intervals["kernel_angle"] == pytest.approx(
        alone.intervals["kernel_angle"]
    )


def test_buffers_that_hide_the_drift_of_the_weights_have_a_negative_share():
    """f = s W x has the kernel s^2 x x': with x a weight of its own, halved while s doubles."""

    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1, **f64))
            self.head = nn.Linear(4, 3, bias=False, **f64)
            self.register_buffer("scale", torch.ones(1, **f64))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.gain * self.head(x)

    start, x = Gain(), inputs(N, 4)
    start.gain.requires_grad_(False)
    now = copy.deepcopy(start)
    now.gain.fill_(0.5)
    now.scale.fill_(1.9)
    later = start_and_now(start, now, ProbeBatch(x))[2]
    # K / K_0 = (1.9 / 2)^2 with the buffer and (1 / 2)^2 without.
    assert later.buffer_share == pytest.approx(1 - (1 - 0.25) / (1 - 0.95**2), rel=1e-10)
    assert later.buffer_share < -1


def test_there_is_no_share_where_no_buffer_that_is_read_has_moved():
    start = Scaled()
    now = moved(start)
    now.count.fill_(5)
    later = start_and_now(start, now, ProbeBatch(inputs(N, 4)))[2]
    assert later.buffer_share is later.parameters_only is None
    assert "buffer_share" not in to_plain(later)


def test_beside_statistics_of_the_probe_only_the_other_buffers_are_put_back():
    class Both(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(1, **f64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.scale * super().forward(x))

    torch.manual_seed(0)
    start = Both().train()
    now = _pass_batches(moved(start, 0.05))
    alone = start_and_now(start, now, ProbeBatch(IMAGES))[2]
    now.scale.fill_(1.5)
    later = start_and_now(start, now, ProbeBatch(IMAGES))[2]
    own, expected = later.parameters_only, alone.relative_kernel_change
    assert own.moving_buffers == ("scale",)
    assert own.relative_kernel_change == pytest.approx(expected, rel=1e-12)
    assert later.buffer_share == pytest.approx(1 - expected / later.relative_kernel_change)


@pytest.mark.parametrize("batchnorm", ["probe", "reference", "batch"])
def test_running_averages_have_no_share_in_kernels_that_do_not_read_them(batchnorm):
    torch.manual_seed(0)
    start = ConvNet().train()
    now = _pass_batches(moved(start, 0.05))
    probe = ProbeBatch(IMAGES[:8], labels(8))
    later = start_and_now(start, now, probe, batchnorm=batchnorm)[2]
    assert later.relative_kernel_change > 0
    assert later.buffer_share is later.parameters_only is None
    assert later.batchnorm == batchnorm


def test_the_cheapest_metrics_take_no_second_kernel_and_say_so():
    torch.manual_seed(0)
    start = ConvNet().train()
    now = _pass_batches(moved(start, 0.05))
    tracker, _, later = start_and_now(
        start, now, ProbeBatch(IMAGES), batchnorm="running", metrics="minimal"
    )
    assert later.buffer_share is later.parameters_only.layer_angle_median is None
    assert "minimal" in later.parameters_only.left_out["layer_angle_median"]
    tracker.history.add(seen(0.05, None, None, step=7, parameters_only=later.parameters_only))
    verdict = judge(tracker.history)
    assert verdict.layers == {}
    assert any("put back: not measured" in line for line in verdict.evidence)


def test_a_reading_since_warmup_has_a_share_of_its_own():
    torch.manual_seed(0)
    start = ConvNet().train()
    warm = _pass_batches(moved(start, 0.05))
    now = _pass_batches(moved(warm, 0.05, seed=5), shift=-2.0)
    tracker = KernelTracker(ProbeBatch(IMAGES), batchnorm="running", warmup_steps=3)
    for step, model in ((0, start), (3, warm), (9, now)):
        later = tracker.observe(model, step)
    _assert_share(start, now, IMAGES, later)
    _assert_share(warm, now, IMAGES, later.since_warmup)
    assert later.since_warmup.buffer_share != later.buffer_share


def test_a_record_with_a_share_comes_back_as_it_was_written():
    torch.manual_seed(0)
    start = ConvNet().train()
    now = _pass_batches(moved(start, 0.05))
    tracker = KernelTracker(ProbeBatch(IMAGES), batchnorm="running", warmup_steps=1)
    tracker.observe(start, 0)
    tracker.observe(moved(start), 1)
    later = tracker.observe(now, 9)
    assert later.since_warmup.parameters_only is not None
    plain = to_plain(later)
    assert "parameters_only" not in plain["parameters_only"]
    assert observation_from_plain(plain) == later
    assert observation_from_plain({**plain, "a later field": 1}) == later
    with pytest.raises(TypeError, match="buffer_share"):
        observation_from_plain({**plain, "buffer_share": "much"})
    with pytest.raises(TypeError, match="parameters_only"):
        observation_from_plain({**plain, "parameters_only": 3})


# The linearization error is that of the parameters. -----------------------------------------------


def test_the_linearization_error_has_the_buffers_of_the_start_in_both_outputs():
    """f_t = tanh(W x) with s = 1 in both: what s did is no error, and none of the change."""
    torch.manual_seed(0)
    start, x = Scaled(), inputs(N, 4)
    now = moved(start)
    now.scale.fill_(2)
    later = start_and_now(start, now, ProbeBatch(x))[2]
    w, w0 = now.head.weight.detach(), start.head.weight.detach()
    change = torch.tanh(x @ w.T) - torch.tanh(x @ w0.T)
    linear = (1 - torch.tanh(x @ w0.T) ** 2) * (x @ (w - w0).T)
    expected = float((change - linear).norm() / change.norm())
    assert expected > 0.02
    assert later.linearization_error == pytest.approx(expected, rel=1e-10)
    assert later.output_change == pytest.approx(float(change.square().mean().sqrt()), rel=1e-10)


# Trainings that move nothing but buffers. ---------------------------------------------------------


@pytest.mark.parametrize("metrics", ["standard", "minimal"])
@pytest.mark.parametrize("batchnorm", ["probe", "running", "reference"])
@pytest.mark.parametrize("how", ["no gradients", "no learning rate"])
def test_running_averages_alone_are_no_feature_learning(batchnorm, metrics, how):
    torch.manual_seed(0)
    net = ConvNet().train()
    tracker = KernelTracker(
        ProbeBatch(IMAGES, labels(N)), batchnorm=batchnorm, metrics=metrics, warmup_steps=1
    )
    tracker.observe(net, 0, loss=1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    for step in range(1, 9):
        with torch.set_grad_enabled(how == "no learning rate"):
            loss = net(3 + 2 * inputs(12, 1, 5, 5, seed=step)).square().mean()
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
        later = tracker.observe(net, step, loss=0.1)
    verdict = judge(tracker.history)
    assert verdict.strength in (Strength.STATIC, Strength.UNDETERMINED)
    assert verdict.qualifier == "outputs did not move"
    assert all(layer.band == "static" for layer in verdict.layers.values())
    assert verdict.use.task_aligned != "yes"
    if batchnorm == "running":
        assert later.relative_kernel_change > 0.05
        assert "moving buffers changed the kernel by" in verdict.reason
    else:
        assert later.relative_kernel_change == 0
    if batchnorm == "running" and metrics == "standard":
        assert later.buffer_share == pytest.approx(1, abs=1e-9)
        assert any("norm.running_mean" in line for line in verdict.evidence)
    else:
        assert later.buffer_share is None


def test_a_spectral_norm_that_finds_its_vectors_is_no_feature_learning():
    """Its vectors start at random: until they are found, the function moves and no weight does."""
    torch.manual_seed(0)
    first = spectral_norm(nn.Linear(4, 16, **f64), n_power_iterations=1)
    net = nn.Sequential(first, nn.Tanh(), nn.Linear(16, 3, **f64)).train()
    for name, buffer in net.named_buffers():
        buffer.copy_(nn.functional.normalize(inputs(len(buffer), seed=len(name)), dim=0))
    start, probe = copy.deepcopy(net), ProbeBatch(inputs(N, 4), labels(N))
    tracker = KernelTracker(probe)
    tracker.observe(net, 0, loss=1.0)
    with torch.no_grad():
        for _ in range(20):
            net(probe.inputs)
    later = tracker.observe(net, 20, loss=0.1)
    assert later.relative_kernel_change > 0.2
    assert later.buffer_share == pytest.approx(1, abs=1e-9)
    _assert_share(start, net, probe.inputs, later)
    assert judge(tracker.history).qualifier == "outputs did not move"


def test_a_codebook_that_fills_is_no_feature_learning():
    torch.manual_seed(0)
    net, probe = Codebook().train(), ProbeBatch(inputs(N, 4), labels(N))
    start = copy.deepcopy(net)
    tracker = KernelTracker(probe)
    tracker.observe(net, 0, loss=1.0)
    with torch.no_grad():
        for seed in range(60):
            net(inputs(64, 4, seed=seed))
    later = tracker.observe(net, 60, loss=0.1)
    assert later.parameters_only.moving_buffers == ("codes",)
    _assert_share(start, net, probe.inputs, later)
    assert later.relative_kernel_change > 0.02
    assert later.buffer_share == pytest.approx(1, abs=1e-9)
    assert judge(tracker.history).qualifier == "outputs did not move"


def test_weights_that_move_beside_a_codebook_are_judged_by_themselves():
    torch.manual_seed(0)
    net, x = Codebook().train(), inputs(N, 4)
    start = copy.deepcopy(net)
    now = moved(net, 1e-3)
    with torch.no_grad():
        for seed in range(60):
            now(inputs(64, 4, seed=seed))
    tracker = KernelTracker(ProbeBatch(x, labels(N)))
    tracker.observe(start, 0, loss=1.0)
    later = tracker.observe(now, 60, loss=0.1)
    assert 0.5 < later.buffer_share < 1
    alone = KernelTracker(ProbeBatch(x, labels(N)))
    alone.observe(start, 0, loss=1.0)
    alone.observe(_put_back(now, start), 60, loss=0.1)
    verdict, expected = judge(tracker.history), judge(alone.history)
    assert verdict.strength == expected.strength
    assert verdict.layers == expected.layers
    (read, other) = (v.readings["since start"] for v in (verdict, expected))
    assert read.layer_angle_median == other.layer_angle_median
    assert read.linearization_error == pytest.approx(other.linearization_error)


# What a verdict makes of it. ----------------------------------------------------------------------


def _with_part(error, angle, change, *, own_angle, own_change, share):
    own = Reading(
        anchor_step=0,
        layer_angle={"a": own_angle, "b": own_angle},
        layer_angle_median=own_angle,
        relative_kernel_change=own_change,
        moving_buffers=("norm.running_mean",),
    )
    whole = {"a": angle, "b": angle}
    return seen(error, angle, change, layer_angle=whole, parameters_only=own, buffer_share=share)


@pytest.mark.parametrize(
    ("error", "strength", "qualifier"),
    [
        (1e-6, "static", None),
        (0.05, "lazy", None),
        (0.25, "transitional", None),
        (0.60, "undetermined", "derivative does not fit"),
    ],
)
def test_the_parameters_part_decides_and_not_the_whole_drift(error, strength, qualifier):
    """The whole kernel turned by 1 rad and changed by 106 of its size: buffers did it."""
    own = 1e-6 if strength == "static" else 0.01
    last = _with_part(error, 1.0, 106.0, own_angle=own, own_change=own, share=0.99)
    verdict = judge(history_of(last))
    assert (verdict.strength, verdict.qualifier) == (strength, qualifier)
    assert {layer.band for layer in verdict.layers.values()} <= {"static", "lazy"}
    read = verdict.readings["since start"]
    assert read.layer_angle_median == read.relative_kernel_change == own
    assert "moving buffers put back" in verdict.reason
    assert any("norm.running_mean make 0.99 of the change" in line for line in verdict.evidence)


def test_features_that_moving_buffers_hide_are_seen():
    last = _with_part(0.6, 0.01, 0.05, own_angle=0.5, own_change=1.0, share=-19.0)
    assert judge(history_of(last)).strength == "feature-learning"


def test_a_part_that_was_not_measured_leaves_the_error_to_decide():
    own = Reading(anchor_step=0, left_out={"layer_angle_median": "not told apart"})
    for error, strength in ((0.05, "lazy"), (0.25, "transitional")):
        verdict = judge(history_of(seen(error, 1.0, 106.0, parameters_only=own)))
        assert verdict.strength == strength
        assert "not told apart" in verdict.reason


@pytest.mark.parametrize(("share", "aligned"), [(0.4, "yes"), (0.6, "unknown"), (-0.6, "unknown")])
def test_alignment_that_buffers_may_have_made_is_unknown(share, aligned):
    first = {"target_alignment": 0.1, "target_alignment_null_sd": 0.01}
    last = _with_part(0.05, 0.02, 0.1, own_angle=0.02, own_change=0.1, share=share)
    fields = {f: getattr(last, f) for f in last.__dataclass_fields__}
    risen = type(last)(**{**fields, "target_alignment": 0.5})
    use = judge(history_of(risen, **first)).use
    assert use.task_aligned == aligned
    assert ("moving buffers" in use.why) == (aligned == "unknown")
    assert math.isclose(Bands().buffer_share, 0.5)
