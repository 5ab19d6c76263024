"""Every number of floor 0 on every device of this machine; the processor is the oracle."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ntkwatch.kernel import (
    alignment,
    analytic,
    descent,
    drift,
    frozen,
    gram,
    layers,
    modes,
    path,
    regression,
    spectrum,
    stability,
    triple,
    two_layer_linear,
)

N, M, C, P = 9, 4, 3, 40


def _samples(device: torch.device) -> dict[str, Any]:
    """Kernels of random Jacobians and what goes with them, the same on every device."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    J, moved, J_test = normal(N, C, P), normal(N, C, P), normal(M, C, P)
    full = torch.einsum("iap,jbp->ijab", J, J)
    later = torch.einsum("iap,jbp->ijab", moved, moved)
    return {
        "full": full,
        "cross": torch.einsum("iap,jbp->ijab", J_test, J),
        "S": gram.trace_kernel(full),
        "later": gram.trace_kernel(later),
        "y": normal(N, C),
        "y_test": normal(M, C),
        "x": normal(N, 5),
        "labels": (torch.arange(N) % C).to(device),
    }


def _triple(s: dict[str, Any]) -> Any:
    pair = triple.KernelPair(s["full"], s["cross"])
    code = triple.class_code(s["labels"], classes=C)
    targets = code, code[:M]
    return triple.triple(s["y_test"], pair, pair, targets, start=(s["y"], s["y_test"]), ridge=1e-3)


def _frozen(s: dict[str, Any]) -> Any:
    training = frozen.frozen_training(s["full"], s["y"], learning_rate=1e-3)
    time = training.time_to_loss_ratio(0.5)
    flow = frozen.frozen_training(s["S"], s["y"])
    return (
        training.residual(3),
        training.loss_ratio(time),
        time,
        training.weights(time),
        training.predictions(s["cross"], s["y_test"], 5),
        flow.time_to_loss_ratio(0.5),
        flow.weights(0.1),
    )


def _modes(s: dict[str, Any]) -> Any:
    found = modes.eigenmodes(s["S"])
    later = modes.eigenmodes(s["later"])
    start = modes.residual_modes(found, s["y"])
    predicted = modes.predicted_modes(
        found, start, learning_rate=1e-3, steps=9, sgd=descent.SGD(momentum=0.9)
    )
    return (
        modes.subspace_overlap(later.vectors[:, :3], found.vectors[:, :3]),
        modes.relative_gap(found.values, 3),
        predicted.square().sum(dim=1),  # eigenvectors come with either sign
        modes.mode_prediction_error(start, predicted),
    )


def _spectrum(s: dict[str, Any]) -> Any:
    values = spectrum.eigenvalues(s["S"])
    wide = torch.arange(1, 201, dtype=torch.float64, device=values.device) ** -1.5
    return (
        values,
        spectrum.effective_rank(values),
        spectrum.rank_holding(values, share=0.9),
        spectrum.min_eigenvalue(values, precision=torch.float32),
        spectrum.condition_number(values, precision=torch.float32),
        spectrum.tail_exponent(wide, precision=torch.float64),
        spectrum.tail_exponent(values, precision=torch.float64),
    )


def _layers(s: dict[str, Any]) -> Any:
    now, then = {"a": s["later"], "b": 0 * s["S"]}, {"a": s["S"], "b": s["S"]}
    angles = layers.layer_angles(now, then)
    return (
        *angles.values(),
        layers.layer_angle_median(angles),
        *layers.layer_trace_shares(now).values(),
    )


def _alignment(s: dict[str, Any]) -> Any:
    Y = alignment.target_matrix(s["labels"], device=s["S"].device)
    by_layer = alignment.layer_alignments({"a": s["S"], "b": 0 * s["S"]}, Y)
    return (
        *by_layer["a"],
        by_layer["a"].z,
        by_layer["b"].z,
        alignment.rkhs_norm_ratio(s["later"], s["S"], Y),
    )


def _stability(s: dict[str, Any]) -> Any:
    p = s["y"].softmax(dim=1)
    top = stability.sharpness(s["full"], loss="cross-entropy-mean", probabilities=p)
    return (
        top,
        stability.sharpness(s["full"], loss="square-mean"),
        stability.sharpness_bracket(s["S"], outputs=C, loss="square-sum", samples=100),
        stability.max_stable_lr(top, sgd=descent.SGD(momentum=0.9)),
        stability.edge_of_stability(0.1, top),
        descent.gradient_flow_bound(top, top, time=top),
        descent.time_to_loss(top, top, target=top / 2),
    )


def _regression(s: dict[str, Any]) -> Any:
    K, k, y, y_test = s["full"], s["cross"], s["y"], s["y_test"]
    return (
        regression.kernel_regression(K, k, y, ridge=0.0, start=(y / 2, y_test)),
        regression.representer_gap(K, k, y, y_test, ridge=1e-3),
        regression.displacement_ratio(y.norm(), K, y, ridge=0.0),
    )


def _drift(s: dict[str, Any]) -> Any:
    stations = [s["S"], s["later"], s["S"] + s["later"]]
    return (
        drift.kernel_distance_centred(s["later"], s["S"]),
        drift.kernel_distance_offdiag(s["later"], s["S"]),
        path.angular_velocity(s["later"], s["S"], elapsed=0.5),
        path.path_length_ratio(stations, noise_floor=1e-3),
        path.angle_matrix(stations),
    )


def _analytic(s: dict[str, Any]) -> Any:
    limits = [
        analytic.infinite_width_kernels(s["x"], depth=2, activation=name, bias_variance=0.1)
        for name in ("relu", "erf", "linear")
    ]
    return (
        *limits,
        analytic.arc_cosine_kernel(s["x"], s["x"][:2], order=2),
        analytic.distance_to_infinite_width(s["full"], limits[0].ntk, outputs=C),
        two_layer_linear.two_layer_linear(s["x"].norm(), samples=4),
    )


MEASURES = {
    "alignment": _alignment,
    "analytic": _analytic,
    "drift": _drift,
    "frozen": _frozen,
    "layers": _layers,
    "modes": _modes,
    "regression": _regression,
    "spectrum": _spectrum,
    "stability": _stability,
    "triple": _triple,
}


def _tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [t for part in found for t in _tensors(part)]


@pytest.mark.parametrize("name", MEASURES)
def test_numbers_stay_on_the_device_of_their_kernels_and_are_the_same_there(name, device):
    measure: Callable[[dict[str, Any]], Any] = MEASURES[name]
    found, expected = _tensors(measure(_samples(device))), _tensors(measure(_samples("cpu")))
    assert [tensor.device.type for tensor in found] == [device.type] * len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", MEASURES)
def test_numbers_do_not_depend_on_the_callers_default_device(name):
    """A tensor made without saying where would land on "meta", and hold no numbers."""
    expected = _tensors(MEASURES[name](_samples("cpu")))
    samples = _samples("cpu")
    with torch.device("meta"):
        found = _tensors(MEASURES[name](samples))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
