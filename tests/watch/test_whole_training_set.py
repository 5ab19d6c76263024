"""Numbers that hang on how a model is trained: against numpy, torch's own optimizer, and refusals.

Kernels come from plain autograd; a linear model is its own linearization, so that every prediction
about a frozen kernel is exact for it.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from watch.tiny import f64, inputs, labels

from ntkwatch import KernelTracker, ProbeBatch
from ntkwatch.errors import InputError
from ntkwatch.watch.training import Training, loss_named, training_of

from oracles import dense_ntk

N, C = 6, 2


def _flat(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    return dense_ntk(model, x).permute(0, 2, 1, 3).reshape(N * C, N * C).numpy()


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16, **f64), nn.Tanh(), nn.Linear(16, C, **f64))


def _linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, C, **f64)


X = inputs(N, 8)
Y = inputs(N, C, seed=4)


def _trained(
    model,
    *,
    steps=20,
    optimizer=torch.optim.SGD,
    loss=functional.mse_loss,
    probe=None,
    tell=True,
    batch_size=N,
    clipped=False,
    **settings,
):
    """Train a model full-batch and observe its start and its end."""
    model = copy.deepcopy(model)
    settings = {"lr": 0.05, **settings}
    descent = optimizer(model.parameters(), **settings)
    probe = ProbeBatch(X, Y, whole_training_set=True) if probe is None else probe
    tracker = KernelTracker(probe, metrics="full")

    def facts():
        if not tell:
            return None
        return training_of(descent, loss_function=loss, batch_size=batch_size, clipped=clipped)

    tracker.observe(model, 0, training=facts())
    targets = labels(N, C) if loss is functional.cross_entropy else Y
    for _ in range(steps):
        descent.zero_grad()
        loss(model(X), targets).backward()
        descent.step()
    return model, tracker.observe(model, steps, training=facts())


def test_the_displacement_ratio_is_that_of_numpys_solve():
    start = _net()
    end, seen = _trained(start)
    with torch.no_grad():
        change = (end(X) - start(X)).numpy().reshape(-1)
    K = _flat(start, X)
    ridged = K + 1e-6 * np.trace(K) / len(K) * np.eye(len(K))
    shortest = math.sqrt(change @ np.linalg.solve(ridged, change))
    pairs = zip(end.parameters(), start.parameters(), strict=True)
    moved = math.sqrt(sum(float((a - b).detach().square().sum()) for a, b in pairs))
    assert seen.displacement_ratio == pytest.approx(moved / shortest, rel=1e-6)
    assert seen.displacement_ratio_ridge == 1e-6
    assert abs(seen.displacement_ratio - 1) > 1e-3, "the test would see nothing"


@pytest.mark.parametrize(
    ("loss", "curvature"),
    [(functional.mse_loss, 2 / (N * C)), (nn.MSELoss(reduction="sum"), 2.0)],
)
@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.5}, {"momentum": 0.5, "nesterov": True}])
def test_a_linear_model_decays_mode_by_mode_as_predicted(loss, curvature, momentum):
    start = _linear()
    end, seen = _trained(start, loss=loss, lr=0.02, **momentum)
    values, vectors = np.linalg.eigh(_flat(start, X))
    with torch.no_grad():
        c = vectors.T @ (end(X) - Y).numpy().reshape(-1)
        before = vectors.T @ (start(X) - Y).numpy().reshape(-1)
    assert seen.mode_prediction_error < 1e-10
    # Equal eigenvalues leave the basis open: what is in each pair of outputs together is not.
    found = np.array(seen.residual_modes) ** 2
    expected = (c[::-1] ** 2)[: len(found)]
    np.testing.assert_allclose(
        found.reshape(-1, C).sum(axis=1), expected.reshape(-1, C).sum(axis=1), rtol=1e-8, atol=1e-14
    )
    assert seen.residual_modes == pytest.approx(seen.predicted_modes, rel=1e-8, abs=1e-12)
    if not momentum:
        factor = (1 - 0.02 * curvature * values) ** 20
        np.testing.assert_allclose(c, factor * before, rtol=1e-8, atol=1e-12)
    assert seen.displacement_ratio == pytest.approx(1, abs=1e-4)


def test_a_network_that_learns_features_leaves_the_prediction():
    _, seen = _trained(_net(), steps=200, lr=0.5)
    assert seen.mode_prediction_error > 0.1


def test_the_bound_of_gradient_flow_is_written_out_in_numpy():
    start = _linear()
    end, seen = _trained(start, lr=0.02, steps=30)
    with torch.no_grad():
        initial = float(functional.mse_loss(start(X), Y))
        now = float(functional.mse_loss(end(X), Y))
    smallest, h = np.linalg.eigvalsh(_flat(start, X))[0], 2 / (N * C)
    bound = initial * math.exp(-2 * h * smallest * 0.02 * 30)
    assert seen.gradient_flow_bound == pytest.approx(bound, rel=1e-8)
    assert now < bound
    steps = math.log(100) / (2 * h * smallest) / 0.02
    assert seen.gradient_flow_steps == pytest.approx(steps, rel=1e-8)


@pytest.mark.parametrize("share", [0.97, 1.03])
@pytest.mark.parametrize(
    "momentum",
    [
        {},
        {"momentum": 0.6},
        {"momentum": 0.6, "dampening": 0.3},
        {"momentum": 0.6, "nesterov": True},
    ],
)
@pytest.mark.parametrize("loss", [functional.mse_loss, nn.MSELoss(reduction="sum")])
def test_descent_converges_below_the_stable_rate_and_diverges_above_it(share, momentum, loss):
    """torch's own optimizer on a linear model is the oracle."""
    start = _linear()
    _, seen = _trained(start, steps=1, loss=loss, lr=1e-3, **momentum)
    rate = share * seen.max_stable_lr
    end, later = _trained(start, steps=400, loss=loss, lr=rate, **momentum)
    with torch.no_grad():
        now, then = loss(end(X), Y), loss(start(X), Y)
    assert later.edge_of_stability == pytest.approx(share, rel=1e-6)
    assert (now < then) if share < 1 else (now > 10 * then)


def test_the_stable_rate_of_cross_entropy_is_that_of_its_hessian():
    start = _linear()
    targets = labels(N, C)
    weights = tuple(p.detach().clone() for p in start.parameters())

    def loss(weight, bias):
        return functional.cross_entropy(functional.linear(X, weight, bias), targets)

    blocks = torch.autograd.functional.hessian(loss, weights)
    sizes = [p.numel() for p in weights]
    H = torch.cat(
        [
            torch.cat([blocks[i][j].reshape(sizes[i], sizes[j]) for j in range(2)], dim=1)
            for i in range(2)
        ]
    )
    _, seen = _trained(start, loss=functional.cross_entropy, steps=0)
    assert seen.max_stable_lr == pytest.approx(2 / float(torch.linalg.eigvalsh(H)[-1]), rel=1e-8)


RATIO, MODES, RATE = "displacement_ratio", "residual_modes", "max_stable_lr"
NOT_WHOLE = ProbeBatch(X, Y)


@pytest.mark.parametrize(
    ("settings", "reasons"),
    [
        ({"optimizer": torch.optim.Adam}, {RATIO: "Adam leaves", MODES: "Adam", RATE: "Adam"}),
        ({"optimizer": torch.optim.AdamW}, {RATIO: "AdamW leaves", MODES: "AdamW", RATE: "AdamW"}),
        ({"weight_decay": 0.1}, {RATIO: "weight decay", MODES: "weight decay", RATE: None}),
        ({"probe": NOT_WHOLE}, {RATIO: "whole training set", MODES: "whole", RATE: None}),
        ({"tell": False}, {RATIO: "not given", MODES: "not given", RATE: "not given"}),
        ({"batch_size": 3}, {RATIO: None, MODES: "batches are of 3", RATE: None}),
        ({"batch_size": None}, {RATIO: None, MODES: "batch size was not given", RATE: None}),
        ({"clipped": True}, {RATIO: None, MODES: "clipped", RATE: None}),
        ({"loss": functional.cross_entropy}, {RATIO: None, MODES: "no square loss", RATE: None}),
        ({"loss": functional.l1_loss}, {RATIO: None, MODES: "loss was not", RATE: "loss was not"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_means_nothing_for_a_training_is_left_out_with_the_reason(settings, reasons):
    _, seen = _trained(_net(), steps=3, **settings)
    for key, reason in reasons.items():
        if reason is None:
            assert key not in seen.left_out
            assert getattr(seen, key)
        else:
            assert reason in seen.left_out[key]
            assert not getattr(seen, key)
    assert (seen.gradient_flow_bound is None) == (not seen.residual_modes)


def test_dropout_and_batchnorm_train_another_function_than_the_kernels():
    noisy = nn.Sequential(nn.Linear(8, 8, **f64), nn.Dropout(0.5), nn.Linear(8, C, **f64))
    _, seen = _trained(noisy, steps=2)
    assert "dropout (1)" in seen.left_out[RATIO]
    assert "dropout (1)" in seen.left_out[RATE]
    normed = nn.Sequential(nn.Linear(8, 8, **f64), nn.BatchNorm1d(8, **f64), nn.Linear(8, C, **f64))
    _, seen = _trained(normed, steps=2)
    for key in (RATIO, MODES, RATE):
        assert "BatchNorms on batch statistics" in seen.left_out[key]


def test_a_changed_learning_rate_ends_the_prediction_of_modes_and_not_the_ratio():
    model = _linear()
    descent = torch.optim.SGD(model.parameters(), lr=0.05)
    tracker = KernelTracker(ProbeBatch(X, Y, whole_training_set=True), metrics="full")

    def observe(step):
        facts = training_of(descent, loss_function="square-mean", batch_size=N)
        return tracker.observe(model, step, training=facts)

    observe(0)
    for step in (1, 2):
        descent.zero_grad()
        functional.mse_loss(model(X), Y).backward()
        descent.step()
        seen = observe(step)
        descent.param_groups[0]["lr"] = 0.01
    assert "changed on the way" in seen.left_out[MODES]
    assert seen.displacement_ratio == pytest.approx(1, abs=1e-4)
    assert seen.edge_of_stability < tracker.history[0].edge_of_stability


def test_momentum_from_before_the_reference_is_not_at_rest():
    model = _linear()
    descent = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    probe = ProbeBatch(X, Y, whole_training_set=True)
    tracker = KernelTracker(probe, metrics="full", reference_is_start=False)
    facts = training_of(descent, loss_function="square-mean", batch_size=N)
    tracker.observe(model, 5, training=facts)
    with torch.no_grad():
        model.weight.add_(0.1)
    seen = tracker.observe(model, 6, training=facts)
    assert "before the reference" in seen.left_out[RATIO]


def test_parameters_that_train_unseen_move_outputs_that_the_kernel_does_not_explain():
    start = _net()
    tracker = KernelTracker(ProbeBatch(X, Y, whole_training_set=True), metrics="full", params="2.*")
    descent = torch.optim.SGD(start.parameters(), lr=0.1)
    facts = training_of(descent, loss_function="square-mean", batch_size=N)
    tracker.observe(start, 0, training=facts)
    with torch.no_grad():
        start[2].weight.add_(0.1)
    seen = tracker.observe(start, 1, training=facts)
    assert "does not see" in seen.left_out[RATIO]
    assert "does not see" in seen.left_out[RATE]


def test_what_is_known_of_a_training_survives_the_history():
    known = Training(optimizer="SGD", learning_rate=0.1, momentum=0.0, nesterov=False, batch_size=3)
    assert Training.from_plain({**known.to_plain(), "new": 1}) == known


def test_settings_that_differ_between_groups_are_not_known():
    model = _net()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    found = training_of(torch.optim.SGD(groups, lr=0.2, weight_decay=0.1))
    assert (found.learning_rate, found.momentum, found.weight_decay) == (None, 0.0, 0.1)
    two = [torch.optim.SGD([p], lr=0.1) for p in model.parameters()]
    assert training_of(two).learning_rate == 0.1
    mixed = [two[0], torch.optim.Adam([model[2].bias])]
    assert training_of(mixed).optimizer == "SGD (not torch's) and Adam"
    assert training_of(None) == Training()


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (nn.MSELoss(), "square-mean"),
        (nn.MSELoss(reduction="sum"), "square-sum"),
        (nn.MSELoss(reduction="none"), None),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "cross-entropy-mean"),
        (nn.CrossEntropyLoss(reduction="sum"), "cross-entropy-sum"),
        (nn.CrossEntropyLoss(weight=torch.ones(2)), None),
        (functional.mse_loss, "square-mean"),
        (nn.L1Loss(), None),
        ("half-square-sum", "half-square-sum"),
        (None, None),
    ],
)
def test_a_loss_is_known_by_its_module_or_function(loss, name):
    assert loss_named(loss) == name


def test_a_loss_of_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"mse.* is not known.*square-mean"):
        loss_named("mse")


def test_the_trace_kernel_brackets_the_stable_rate():
    """The kernel between outputs, by the same tracker, is the oracle; the factor between is C^2."""
    probe, model = ProbeBatch(X, Y, whole_training_set=True), _net()
    facts = training_of(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5), loss_function="square-mean"
    )
    whole = KernelTracker(probe, metrics="full").observe(model, 0, training=facts)
    traced = KernelTracker(probe, metrics="full", outputs="trace")
    seen = traced.observe(model, 0, training=facts)
    low, high = seen.max_stable_lr_bounds
    assert low < whole.max_stable_lr <= high * (1 + 1e-12)
    assert high <= C**2 * low * (1 + 1e-12)
    assert "outputs='full'" in seen.left_out["max_stable_lr"]
    assert whole.max_stable_lr_bounds == ()
    values = np.linalg.eigvalsh(torch.einsum("nmcc->nm", dense_ntk(model, X)).numpy())
    assert high == pytest.approx(2 * 1.5 / (2 / (N * C) * values[-1] / C), rel=1e-9)
