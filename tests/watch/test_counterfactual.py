"""Were features needed: numpy's regression with autograd's kernels, and answers put in by hand.

A linear model is its own linearization, so that its gap is nothing but rounding.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from watch.made import history_of, seen
from watch.tiny import f64, inputs, labels

from ntkwatch import KernelTracker, ProbeBatch, counterfactual, judge, training_of
from ntkwatch.errors import InputError
from ntkwatch.watch.verdict.bands import Bands
from ntkwatch.watch.verdict.use import judge_need

from oracles import dense_ntk

N, M, D = 9, 30, 5
X, X_TEST = inputs(N, D), inputs(M, D, seed=7)
SGD = {"optimizer": torch.optim.SGD, "lr": 0.2}


def _net(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 12, **f64), nn.Tanh(), nn.Linear(12, outputs, **f64))


def _trained(start, targets, test, *, steps=40, how=SGD, tell=True, whole=True, held=None, **other):
    """Train full-batch from a start and return the end and its observation."""
    model = copy.deepcopy(start)
    how = dict(how)
    descent = how.pop("optimizer")(model.parameters(), **how)
    held = ProbeBatch(X_TEST, test) if held is None else held
    probe = ProbeBatch(X, targets, whole_training_set=whole)
    tracker = KernelTracker(probe, **{"held_out": held, "metrics": "full", **other})
    facts = training_of(descent, loss_function="square-mean", batch_size=N) if tell else None
    tracker.observe(model, 0, training=facts)
    for _ in range(steps):
        descent.zero_grad()
        if targets.is_floating_point():
            functional.mse_loss(model(X), targets).backward()
        else:
            functional.cross_entropy(model(X), targets).backward()
        descent.step()
    return model, tracker.observe(model, steps, training=facts), tracker


def _kernels(model, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """``K(X, X)`` and ``K(X*, X)``, flat, by plain autograd."""
    full = dense_ntk(model, torch.cat([X, X_TEST]))
    flat = full.permute(0, 2, 1, 3).reshape((N + M) * outputs, -1).numpy()
    return flat[: N * outputs, : N * outputs], flat[N * outputs :, : N * outputs]


def _left_out(model, values: np.ndarray, ridge: float) -> float:
    """Squared error of every sample as predicted from the others, with the ridge of them all."""
    K, _ = _kernels(model, values.shape[1])
    eps, c = ridge * np.trace(K) / len(K), values.shape[1]
    total = 0.0
    for i in range(N):
        rest = [j for j in range(N * c) if j // c != i]
        own = [j for j in range(N * c) if j // c == i]
        ridged = K[np.ix_(rest, rest)] + eps * np.eye(len(rest))
        weights = np.linalg.solve(ridged, values.reshape(-1)[rest])
        total += ((values.reshape(-1)[own] - K[np.ix_(own, rest)] @ weights) ** 2).sum()
    return total


def _chosen(model, values: np.ndarray) -> float:
    ridges = [10.0**power for power in range(-6, 2)]
    return min(ridges, key=lambda ridge: _left_out(model, values, ridge))


def _regression(model, values: np.ndarray, ridge: float = 1e-6) -> np.ndarray:
    K, cross = _kernels(model, values.shape[1])
    ridged = K + ridge * np.trace(K) / len(K) * np.eye(len(K))
    return (cross @ np.linalg.solve(ridged, values.reshape(-1))).reshape(M, -1)


def _outputs(model, x) -> np.ndarray:
    with torch.no_grad():
        return model(x).numpy()


def _gap(start, end) -> float:
    change = _outputs(end, X) - _outputs(start, X)
    there = _outputs(end, X_TEST) - _outputs(start, X_TEST)
    return np.linalg.norm(there - _regression(start, change)) / np.linalg.norm(there)


def test_accuracies_and_gap_are_those_of_numpys_regression():
    start, y, test = _net(3), labels(N), labels(M)
    end, found, _ = _trained(start, y, test)
    codes = np.eye(3)[y] - 1 / 3
    ridge = _chosen(start, codes - _outputs(start, X))
    frozen = _outputs(start, X_TEST) + _regression(start, codes - _outputs(start, X), ridge)
    after = _regression(end, codes, ridge)
    for key, predicted in (
        ("acc_net", _outputs(end, X_TEST)),
        ("acc_kernel_ref", frozen),
        ("acc_kernel_final", after),
    ):
        share = (predicted.argmax(axis=1) == test.numpy()).mean()
        assert getattr(found, key) == pytest.approx(share, abs=1e-12)
    assert found.representer_gap == pytest.approx(_gap(start, end), rel=1e-6)
    assert found.representer_gap > 0.01, "the test would see nothing"
    facts = found.held_out
    assert (facts["n_train"], facts["n_test"], facts["ridge"]) == (N, M, pytest.approx(ridge))
    assert facts["net_se"] == pytest.approx(np.sqrt(found.acc_net * (1 - found.acc_net) / M))


def test_values_are_scored_by_the_variance_that_they_explain():
    start, y, test = _net(2), inputs(N, 2, seed=3), inputs(M, 2, seed=4)
    end, found, _ = _trained(start, y, test)
    ridge = _chosen(start, y.numpy() - _outputs(start, X))
    frozen = _outputs(start, X_TEST) + _regression(start, y.numpy() - _outputs(start, X), ridge)
    spread = ((test - test.mean(dim=0)) ** 2).sum().item()

    def r2(predicted):
        return 1 - ((predicted - test.numpy()) ** 2).sum() / spread

    assert found.score_net == pytest.approx(r2(_outputs(end, X_TEST)), rel=1e-9)
    assert found.score_kernel_ref == pytest.approx(r2(frozen), rel=1e-6)
    assert found.score_kernel_final == pytest.approx(
        r2(_regression(end, y.numpy(), ridge)), rel=1e-6
    )
    assert found.acc_net is None
    errors = [((p - test.numpy()) ** 2).sum(axis=1) for p in (frozen, _outputs(end, X_TEST))]
    difference = (errors[0] - errors[1]) * M / spread
    assert found.held_out["gain_se"] == pytest.approx(difference.std() / np.sqrt(M), rel=1e-6)


@pytest.mark.parametrize("codes", [torch.tensor([-1.0, 1.0], **f64), torch.tensor([0, 1])])
def test_one_output_that_is_to_be_a_sign_tells_classes(codes):
    start, test = _net(1), codes[labels(M, 2)]
    shape = (-1, 1) if codes.is_floating_point() else (-1,)
    y = codes[labels(N, 2)].reshape(shape)
    end, found, _ = _trained(start, y.double().reshape(-1, 1), test, steps=0)
    again = KernelTracker(
        ProbeBatch(X, y, whole_training_set=True),
        held_out=ProbeBatch(X_TEST, test.reshape(shape)),
        metrics="full",
    )
    again.observe(start, 0)
    found = again.observe(end, 1)
    right = np.sign(_outputs(end, X_TEST)[:, 0]) == (labels(M, 2) * 2 - 1).numpy()
    assert found.acc_net == pytest.approx(right.mean())


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("loss", ["values", "classes"])
def test_a_linear_model_has_no_gap(momentum, loss):
    torch.manual_seed(0)
    start = nn.Linear(D, 3, **f64)
    y = labels(N) if loss == "classes" else inputs(N, 3, seed=3)
    test = labels(M) if loss == "classes" else inputs(M, 3, seed=4)
    _, found, _ = _trained(start, y, test, how={**SGD, "momentum": momentum})
    assert found.representer_gap < 1e-4  # a ridge of 1e-6 of the mean eigenvalue


GAP, NET = "representer_gap", "acc_net"
NORMED = nn.Sequential(nn.Linear(D, 6, **f64), nn.BatchNorm1d(6, **f64), nn.Linear(6, 3, **f64))
NO_TARGETS = ProbeBatch(X, None, whole_training_set=True)
REASONS = {
    "adam": ({"how": {"optimizer": torch.optim.Adam, "lr": 1e-2}}, {GAP: "Adam leaves", NET: None}),
    "decay": ({"how": {**SGD, "weight_decay": 0.1}}, {GAP: "weight decay", NET: None}),
    "untold": ({"tell": False}, {GAP: "was not given", NET: None}),
    "subset": ({"whole": False}, {GAP: "not the whole", NET: "not the whole training set"}),
    "traced": ({"outputs": "trace"}, {GAP: "outputs='full'", NET: "outputs='full'"}),
    "blind": ({"params": "2.*"}, {GAP: "does not see", NET: "does not see"}),
}


@pytest.mark.parametrize("case", REASONS)
def test_what_means_nothing_is_left_out_with_the_reason(case):
    settings, reasons = REASONS[case]
    _, found, tracker = _trained(_net(3), labels(N), labels(M), steps=3, **settings)
    for key, reason in reasons.items():
        if reason is None:
            assert getattr(found, key) is not None
            assert key not in found.left_out
        else:
            assert getattr(found, key) is None
            assert reason in found.left_out[key]
    if reasons[NET] is not None:
        use = judge(tracker.history).use
        assert use.features_needed == "unknown"
        assert reasons[NET] in use.why


def test_batch_statistics_and_very_large_sets_are_left_out_with_the_reason(monkeypatch):
    _, found, _ = _trained(copy.deepcopy(NORMED), labels(N), labels(M), steps=2)
    assert "BatchNorms on batch statistics" in found.left_out["acc_kernel_ref"]
    monkeypatch.setattr("ntkwatch.watch.readings.counterfactual._MOST_ROWS", N * 3 - 1)
    _, found, _ = _trained(_net(3), labels(N), labels(M), steps=2)
    assert "27 rows" in found.left_out["acc_net"]


def test_targets_that_do_not_fit_end_in_a_reason_and_never_in_a_number():
    wrong = {
        "classes": ProbeBatch(X_TEST, labels(M) + 1),
        "values": ProbeBatch(X_TEST, inputs(M, 2)),
        "nan": ProbeBatch(X_TEST, torch.full((M, 3), torch.nan, **f64)),
    }
    says = {"classes": "not all from 0 to 2", "values": "no residual", "nan": "hold NaN"}
    for case, held in wrong.items():
        _, found, _ = _trained(_net(3), labels(N), None, steps=2, held=held)
        kind = "acc" if case == "classes" else "score"
        assert says[case] in found.left_out[f"{kind}_net"]
        assert found.acc_net is None
        assert found.score_net is None
    equal = ProbeBatch(X_TEST, torch.ones(M, 3, **f64))
    _, found, _ = _trained(_net(3), inputs(N, 3), None, steps=2, held=equal)
    assert "all equal" in found.left_out["score_net"]
    _, found, tracker = _trained(_net(3), labels(N), None, steps=2, held=equal)
    assert judge(tracker.history).use.features_needed == "unknown"


def test_equal_training_samples_are_regressed_on_with_the_ridge():
    twice = torch.cat([X, X[:2]])
    probe = ProbeBatch(twice, labels(N + 2), whole_training_set=True)
    tracker = KernelTracker(probe, held_out=ProbeBatch(X_TEST, labels(M)), metrics="full")
    tracker.observe(_net(3), 0)
    descent = training_of(torch.optim.SGD(_net(3).parameters(), lr=0.1))
    found = tracker.observe(_net(3), 1, training=descent)
    assert found.acc_kernel_ref is not None
    assert "did not change" in found.left_out[GAP]


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (ProbeBatch(X_TEST), "no targets"),
        (ProbeBatch(inputs(M, D + 1), labels(M)), r"numbers \(5,\) and a held-out one of .*\(6,\)"),
        (ProbeBatch(torch.ones(M, D).int(), labels(M)), "whole numbers"),
        (ProbeBatch(torch.cat([X[:4], X_TEST]), labels(M + 4)), "4 of the 34 held-out samples"),
    ],
)
def test_samples_that_cannot_be_compared_are_refused(held, says):
    probe = ProbeBatch(X, labels(N), whole_training_set=True)
    with pytest.raises(InputError, match=says):
        KernelTracker(probe, held_out=held, metrics="full")


def test_without_full_metrics_held_out_samples_are_refused():
    with pytest.raises(InputError, match="metrics='standard' does without"):
        KernelTracker(ProbeBatch(X, labels(N)), held_out=ProbeBatch(X_TEST, labels(M)))


def test_scoring_leaves_the_model_as_found():
    model = nn.Sequential(nn.Linear(D, 8, **f64), nn.Dropout(0.5), nn.Linear(8, 3, **f64))
    model[1].eval()
    before, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    tracker = KernelTracker(
        ProbeBatch(X, labels(N), whole_training_set=True),
        held_out=ProbeBatch(X_TEST, labels(M)),
        metrics="full",
    )
    tracker.observe(model, 0)
    assert tracker.observe(model, 1).acc_net is not None
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert [m.training for m in model] == [True, False, True]
    assert all(p.grad is None for p in model.parameters())


def test_after_training_the_same_is_said_of_two_states():
    start, y, test = _net(3), labels(N), labels(M)
    end, found, tracker = _trained(start, y, test)
    facts = training_of(torch.optim.SGD(end.parameters(), lr=0.2))
    said = counterfactual(start.state_dict(), end, (X, y), (X_TEST, test), training=facts)
    for key in ("acc_net", "acc_kernel_ref", "acc_kernel_final", "representer_gap"):
        assert said.numbers[key] == pytest.approx(getattr(found, key), rel=1e-9)
    assert said.facts == pytest.approx(found.held_out)
    use = judge(tracker.history).use
    assert said.features_needed == use.features_needed
    assert said.why in use.why
    assert "held-out accuracy: network" in str(said)
    untold = counterfactual(start, end, (X, y), ProbeBatch(X_TEST, test))
    assert "was not given" in untold.left_out["representer_gap"]
    assert untold.numbers["acc_net"] == found.acc_net


# What is concluded. -------------------------------------------------------------------------------


def _scored(net: float, kernel: float, n: int = 2000, **other):
    errors = {
        "net_se": (net * (1 - net) / n) ** 0.5,
        "kernel_ref_se": (kernel * (1 - kernel) / n) ** 0.5,
    }
    facts = {"n_train": 100.0, "n_test": float(n), "ridge": 1e-6, "gain_se": 1.0, **errors}
    scores = {"acc_net": net, "acc_kernel_ref": kernel, "acc_kernel_final": net, "held_out": facts}
    return seen(0.6, 0.4, 2.0, **{**scores, **other})


@pytest.mark.parametrize(
    ("net", "kernel", "n", "answer"),
    [
        (1.0, 0.70, 2000, "yes"),  # rung 10 at alpha .03
        (0.78, 0.70, 2000, "unknown"),  # at 1: less than half of the errors
        (0.71, 0.70, 2000, "no"),  # at 3
        (0.85, 0.70, 2000, "yes"),  # half of the errors
        (0.849, 0.70, 2000, "unknown"),
        (0.99, 0.95, 2000, "unknown"),  # most of the errors, and a gain of .04
        (1.0, 0.95, 2000, "yes"),
        (0.99, 0.972, 20000, "no"),  # far more than its error, and less than .02
        (0.70, 0.80, 2000, "no"),  # the kernel is better
        (0.9, 0.6, 20, "unknown"),  # 2.3 standard errors
        (0.6, 0.6, 20, "unknown"),  # too few samples to say no
        (0.6, 0.6, 2000, "no"),
        (1.0, 1.0, 50, "no"),  # no error left
    ],
)
def test_features_were_needed_by_these_bands(net, kernel, n, answer):
    assert judge_need(_scored(net, kernel, n), Bands())[0] == answer


def test_bands_of_the_need_are_the_callers_to_change():
    assert judge_need(_scored(0.78, 0.70), Bands(needed_share=0.2))[0] == "yes"
    assert judge_need(_scored(0.99, 0.95), Bands(needed_gain=0.03))[0] == "yes"
    assert judge_need(_scored(0.75, 0.70), Bands(unneeded_gain=0.06))[0] == "no"
    assert judge_need(_scored(0.78, 0.70), Bands(unneeded_se=10.0, needed_gain=0.2))[0] == "no"
    assert judge_need(_scored(1.0, 0.70), Bands(needed_se=50.0))[0] == "unknown"


def test_feature_learning_that_was_not_needed_is_said_in_words():
    verdict = judge(history_of(_scored(0.71, 0.70)))
    assert verdict.label == "feature-learning"
    assert verdict.use.features_needed == "no"
    assert "not needed here" in verdict.reason
    assert "a harder task" in verdict.next_step
    assert any(
        "held-out accuracy: network 0.71, kernel at the start 0.70" in e for e in verdict.evidence
    )
    needed = judge(history_of(_scored(1.0, 0.70, representer_gap=0.82)))
    assert "The features were needed" in needed.reason
    assert "were needed" in needed.next_step
    assert any("representer gap 0.82" in line for line in needed.evidence)
    unknown = judge(history_of(_scored(0.78, 0.70)))
    assert "needed" not in unknown.reason
    assert "held_out=" in unknown.next_step


def test_a_gain_since_a_later_step_does_not_answer_for_the_training():
    history = history_of(_scored(1.0, 0.70))
    object.__setattr__(history.run, "reference_is_start", False)
    assert judge(history).use.features_needed == "unknown"


def test_scores_of_values_are_judged_by_their_own_error():
    values = {"acc_net": None, "acc_kernel_ref": None, "acc_kernel_final": None}
    facts = {"n_train": 100.0, "n_test": 500.0, "ridge": 1e-6, "gain_se": 0.01}
    scores = {
        "score_net": 0.9,
        "score_kernel_ref": 0.5,
        "score_kernel_final": 0.8,
        "held_out": facts,
    }
    verdict = judge(history_of(seen(0.6, 0.4, 2.0, **values, **scores)))
    assert verdict.use.features_needed == "yes"
    assert any("held-out R^2: network 0.90" in line for line in verdict.evidence)
