"""Weight decay followed; oracles: torch's own optimizers without gradients, torch.func by hand.

A lazy run with decay must read lazy, and a rich one rich.
"""

import copy
import gc
import json

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp
from versions import needs
from watch.tiny import ConvNet, Deep, f64, inputs, labels, moved

from ntkwatch import KernelTracker, ProbeBatch, judge, training_of
from ntkwatch.watch.readings.decay import DecayClock


class Scaled(nn.Module):
    """``F = alpha (f - f_0)``: lazy where alpha is large."""

    def __init__(self, alpha: float, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(8, width, **f64), nn.Tanh(), nn.Linear(width, width, **f64), nn.Tanh(),
            nn.Linear(width, 1, **f64),
        )  # fmt: skip
        self.start = copy.deepcopy(self.net).requires_grad_(False)
        self.alpha = alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.alpha * (self.net(x) - self.start(x))


def _trained(alpha: float, *, notes: bool = True, steps: int = 100, **settings) -> KernelTracker:
    model, x = Scaled(alpha), inputs(64, 8)
    y = x[:, :1] + x[:, 1:2] * x[:, 2:3]
    tracker = KernelTracker(ProbeBatch(x, y))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, **settings)
    for step in range(steps + 1):
        loss = (model(x) - y).square().mean()
        if step % 25 == 0:
            now = training_of(optimizer)
            tracker.observe(model, step, loss=loss.item(), training=now)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if notes:
            tracker.note_step(optimizer)
    tracker.model = model
    return tracker


@pytest.fixture(scope="module")
def lazy():
    return _trained(200, lr=2e-4, weight_decay=10)


@pytest.fixture(scope="module")
def rich():
    return _trained(1, lr=1e-2, weight_decay=0.01)


def test_a_lazy_run_whose_weights_decay_is_lazy(lazy):
    last, verdict = lazy.history[-1], judge(lazy.history)
    assert last.linearization_error > 1
    assert last.linearization_error_decayed < 0.15
    assert last.decayed_norm_ratio == pytest.approx((1 - 2e-3) ** 100, rel=1e-12)
    assert verdict.strength == "lazy"
    assert verdict.readings["since start"].linearization_error == last.linearization_error_decayed
    assert "as weight decay alone leaves it" in verdict.reason


def test_the_evidence_prints_both_errors(lazy):
    last, lines = lazy.history[-1], judge(lazy.history).evidence
    (since_start,) = [line for line in lines if line.startswith("since start")]
    assert f"linearization error {last.linearization_error:.2f} [" in since_start
    assert f"({last.linearization_error_decayed:.3f} [" in since_start
    assert "0.82 of their norm" in since_start


def test_an_ordinary_rich_run_stays_rich(rich):
    last = rich.history[-1]
    assert last.linearization_error_decayed == pytest.approx(last.linearization_error, rel=0.02)
    assert last.linearization_error_decayed != last.linearization_error
    assert judge(rich.history).strength == "feature-learning"


def test_both_readings_and_every_anchor_follow_decay(lazy):
    last = lazy.history[-1]
    assert last.since_warmup.linearization_error > 1
    assert last.since_warmup.linearization_error_decayed < 0.15
    assert last.since["50"] < 0.15


def test_the_error_is_that_of_the_formula_written_out(rich):
    """|f - f(c theta_0) - J(c theta_0)(theta - c theta_0)| / |f - f(c theta_0)|."""
    model, x = Scaled(1), inputs(64, 8)
    now = dict(rich.model.named_parameters())
    c = (1 - 1e-4) ** 100
    # The last observation came before one more step; take the weights that it saw.
    seen = rich.history[-1]
    assert seen.step == 100
    tracker = KernelTracker(ProbeBatch(x))
    optimizer = torch.optim.AdamW(rich.model.net.parameters(), lr=1e-2, weight_decay=0.01)
    fresh = Scaled(1)
    followed = torch.optim.AdamW(fresh.net.parameters(), lr=1e-2, weight_decay=0.01)
    tracker.observe(fresh, 0)
    for _ in range(100):
        tracker.note_step(followed)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            parameter.copy_(now[name])
    found = tracker.observe(fresh, 100)
    assert optimizer is not followed

    anchor = {n: p.detach() * (c if p.requires_grad else 1) for n, p in model.named_parameters()}
    moved_by = {name: now[name].detach() - then for name, then in anchor.items()}

    def outputs(params):
        return functional_call(model, params, (x,))

    f0, linear = jvp(outputs, (anchor,), (moved_by,))
    change = rich.model(x).detach() - f0
    expected = (change - linear).norm() / change.norm()
    assert found.linearization_error_decayed == pytest.approx(expected.item(), rel=1e-12)
    assert found.output_change_decayed == pytest.approx(change.square().mean().sqrt().item())


# What is left of a weight that sees no gradient. --------------------------------------------------

OPTIMIZERS = {
    "AdamW": (torch.optim.AdamW, {}),
    "Adam, decoupled": (torch.optim.Adam, {"decoupled_weight_decay": True}),
    "NAdam, decoupled": (torch.optim.NAdam, {"decoupled_weight_decay": True}),
    "RAdam, decoupled": (torch.optim.RAdam, {"decoupled_weight_decay": True}),
    "SGD": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "dampened": (torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3}),
    "Nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}


def _every_optimizer():
    for case in OPTIMIZERS:
        yield pytest.param(case, marks=needs("torch", "2.7") if case == "Adam, decoupled" else [])


@pytest.mark.parametrize("case", list(_every_optimizer()))
def test_the_factor_is_what_the_optimizer_leaves_of_a_weight_without_gradient(case):
    kind, settings = OPTIMIZERS[case]
    model = nn.Linear(1, 1, **f64)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(1.0)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}]
    optimizer = kind(groups, lr=0.05, weight_decay=0.1, **settings)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, gamma=0.5)
    clock = DecayClock()
    then = clock.reading()
    for _ in range(20):
        model.weight.grad, model.bias.grad = torch.zeros(1, 1, **f64), torch.zeros(1, **f64)
        optimizer.step()
        clock.note(optimizer)
        schedule.step()
    found = clock.since(then, model)
    assert found.why_not is None
    assert set(found.factors) == {"weight"}
    assert 0.5 < found.factors["weight"] < 0.97
    assert found.factors["weight"] == pytest.approx(model.weight.item(), rel=1e-12)


def test_momentum_lags_behind_and_then_decays_faster():
    """From rest the momentum fills over 1/(1 - beta) steps; then the rate is lr wd / (1 - beta)."""
    model = nn.Linear(1, 1, **f64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=1.0)
    clock = DecayClock()
    for _ in range(1000):
        clock.note(optimizer)
    left = clock.reading()["0.0"]
    assert left == pytest.approx((1 - 1e-5 / 0.1) ** (1000 - 0.9 / 0.1), rel=2e-4)


def test_counting_goes_on_from_plain_values():
    """Also in the middle of a momentum; through JSON, as a checkpoint or a file might keep it."""
    model = nn.Linear(2, 1, **f64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    whole, first, second = DecayClock(), DecayClock(), DecayClock()
    for step in range(10):
        whole.note(optimizer)
        if step < 4:
            first.note(optimizer)
    second.put_back(json.loads(json.dumps(first.state())))
    for _ in range(6):
        second.note(optimizer)
    assert second.reading() == whole.reading()
    assert second.since({}, model) == whole.since({}, model)


def test_several_optimizers_are_told_apart_by_their_number():
    model = nn.Sequential(nn.Linear(2, 2, **f64), nn.Linear(2, 1, **f64))
    one = torch.optim.AdamW(model[0].parameters(), lr=0.1, weight_decay=0.1)
    two = torch.optim.AdamW(model[1].parameters(), lr=0.1, weight_decay=0.5)
    clock = DecayClock()
    for _ in range(3):
        clock.note(one, 0)
        clock.note(two, 1)
    found = clock.since({}, model).factors
    assert found["0.weight"] == pytest.approx(0.99**3)
    assert found["1.bias"] == pytest.approx(0.95**3)


def test_what_an_optimizer_did_is_known_after_it_is_gone():
    model, clock = nn.Linear(2, 1, **f64), DecayClock()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    clock.note(optimizer)
    del optimizer
    gc.collect()
    found = clock.since({}, model)
    assert found.why_not is None
    assert found.factors == pytest.approx({"weight": 0.99, "bias": 0.99})


def test_frozen_parameters_do_not_decay():
    model = nn.Sequential(nn.Linear(2, 2, **f64), nn.Linear(2, 1, **f64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model[0].requires_grad_(False)
    clock = DecayClock()
    clock.note(optimizer)
    assert set(clock.since({}, model).factors) == {"1.weight", "1.bias"}


class Homemade(torch.optim.AdamW):
    """Steps in a way of its own, as far as anyone knows."""


UNKNOWN = {
    "coupled": (torch.optim.Adam, "Adam decays weights through its adaptive step"),
    "RMSprop": (torch.optim.RMSprop, "RMSprop decays weights through its adaptive step"),
    "homemade": (Homemade, "how Homemade decays weights is not known"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_decay_that_is_not_understood_leaves_the_raw_error_and_says_so(case):
    kind, why = UNKNOWN[case]
    start = Deep()
    optimizer = kind(start.parameters(), lr=0.1, weight_decay=0.1)
    tracker = KernelTracker(ProbeBatch(inputs(6, 4), labels(6)))
    tracker.observe(start, 0)
    tracker.note_step(optimizer)
    seen = tracker.observe(start, 1, state=moved(start).state_dict())
    assert seen.linearization_error is not None
    assert seen.linearization_error_decayed is None
    assert seen.left_out["linearization_error_decayed"] == why


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW, Homemade])
def test_without_weight_decay_there_is_nothing_to_follow(kind):
    start = Deep()
    optimizer = kind(start.parameters(), lr=0.1, weight_decay=0.0)
    tracker = KernelTracker(ProbeBatch(inputs(6, 4), labels(6)))
    tracker.observe(start, 0)
    tracker.note_step(optimizer)
    seen = tracker.observe(start, 1, state=moved(start).state_dict())
    assert seen.linearization_error_decayed is seen.decayed_norm_ratio is None
    assert "linearization_error_decayed" not in seen.left_out


def test_decay_that_nobody_counted_is_said():
    tracker = _trained(1, notes=False, steps=25, lr=1e-2, weight_decay=0.01)
    reason = tracker.history[-1].left_out["linearization_error_decayed"]
    assert reason == "weight decay (0.01) was not counted; say each step with note_step"


def test_a_run_resumed_without_the_count_does_not_guess(lazy):
    model = copy.deepcopy(lazy.model)
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=1e-4, weight_decay=20)
    for decay, known in ((lazy.decay.state(), True), (None, False)):
        tracker = KernelTracker(lazy.probe)
        history = copy.deepcopy(lazy.history)
        later = lazy.later_anchors
        tracker.resume(history, lazy.reference, lazy.warmup, later=later, decay=decay)
        tracker.note_step(optimizer)
        seen = tracker.observe(model, 125)
        assert (seen.linearization_error_decayed is not None) is known
        reason = seen.left_out.get("linearization_error_decayed", "")
        assert ("not written down" in reason) is not known


def test_decay_and_nothing_else_is_never_feature_learning():
    """Without a gradient every output moves, and all of that is decay's."""
    torch.manual_seed(0)
    model = Deep()
    tracker = KernelTracker(ProbeBatch(inputs(40, 4), labels(40)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.7)
    for step in range(61):
        if step % 20 == 0:
            tracker.observe(model, step, loss=1 / (1 + step))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        tracker.note_step(optimizer)
    last, verdict = tracker.history[-1], judge(tracker.history)
    assert last.output_change > 0.1
    assert last.output_change_decayed < 1e-13
    assert last.linearization_error > 0.15
    assert verdict.readings["since start"].strength in ("static", "lazy", "undetermined")
    assert verdict.strength in ("static", "lazy", "undetermined")
    assert last.left_out["since/40"] == "outputs did not move by more than rounding"
    assert verdict.timeline.finding == "unknown"


def test_weights_that_feed_a_batchnorm_are_brought_to_their_decayed_norm():
    """The batch function ignores that norm: decay on them alone is no change, and no error."""
    torch.manual_seed(0)
    start = ConvNet().train()
    probe = ProbeBatch(inputs(40, 1, 4, 4), labels(40))
    now = moved(start, 0.01)
    with torch.no_grad():
        now.conv.weight.mul_(0.8)
    tracker, alone = KernelTracker(probe), KernelTracker(probe)
    optimizer = torch.optim.AdamW([start.conv.weight], lr=0.1, weight_decay=2.0)
    for one in (tracker, alone):
        one.observe(start, 0)
    tracker.note_step(optimizer)
    seen = tracker.observe(start, 1, state=now.state_dict())
    plain = alone.observe(start, 1, state=now.state_dict())
    assert seen.decayed_norm_ratio < 1
    assert seen.linearization_error == plain.linearization_error < 0.1
    assert seen.linearization_error_decayed == pytest.approx(plain.linearization_error, rel=0.01)
