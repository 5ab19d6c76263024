"""Angles of layers against single kernels, numpy's median and a gauge of ReLU networks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkwatch.errors import KernelMismatchError
from ntkwatch.kernel.drift import kernel_angle
from ntkwatch.kernel.layers import layer_angle_median, layer_angles, layer_trace_shares

from oracles import naive_angle

# Without a deadline: the first call of an operation may be slow.
law = settings(deadline=None, max_examples=40)

f64 = {"dtype": torch.float64}


def _psd(n: int) -> torch.Tensor:
    rows = torch.randn(n, n + 1, **f64)
    return rows @ rows.T


def _two_layer_relu(scale: float) -> dict[str, torch.Tensor]:
    """Layer kernels of ``sum_j a_j relu(w_j x)`` by hand, with ``w -> c w`` and ``a -> a / c``."""
    torch.manual_seed(3)
    x, w, a = torch.randn(9, 5, **f64), torch.randn(40, 5, **f64), torch.randn(40, **f64)
    w, a = scale * w, a / scale
    hidden = (x @ w.T).clamp(min=0)
    slopes = a * (x @ w.T > 0)
    return {"w": (slopes @ slopes.T) * (x @ x.T), "a": hidden @ hidden.T}


def test_each_layer_has_the_angle_of_its_own_kernels():
    now, then = {"a": _psd(4), "b": _psd(4)}, {"b": _psd(4), "a": _psd(4)}
    found = layer_angles(now, then)
    assert list(found) == ["a", "b"]
    for layer in "ab":
        expected = naive_angle(now[layer].numpy(), then[layer].numpy())
        assert found[layer].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", [1.1, 2.0, 10.0])
def test_rescaling_a_relu_layer_against_the_next_turns_the_sum_and_no_layer(scale):
    then, now = _two_layer_relu(1.0), _two_layer_relu(scale)
    assert max(angle.item() for angle in layer_angles(now, then).values()) < 1e-14
    assert kernel_angle(now["w"] + now["a"], then["w"] + then["a"]) > 0.01


def test_a_layer_that_is_zero_at_either_end_has_no_angle():
    K, zero = _psd(3), torch.zeros(3, 3, **f64)
    found = layer_angles({"a": K, "b": zero, "c": K}, {"a": zero, "b": K, "c": K})
    assert [math.isnan(angle) for angle in found.values()] == [True, True, False]
    assert found["c"] == 0


def test_kernels_of_two_models_are_refused_by_the_layers_that_differ():
    with pytest.raises(KernelMismatchError, match=r"layers \['b', 'c'\] are in one set"):
        layer_angles({"a": _psd(2), "b": _psd(2)}, {"a": _psd(2), "c": _psd(2)})


@law
@given(st.lists(st.floats(0, math.pi / 2), min_size=1, max_size=9))
def test_the_median_is_that_of_numpy_mean_of_the_middle_two_included(values):
    angles = {str(i): torch.tensor(value, **f64) for i, value in enumerate(values)}
    assert layer_angle_median(angles).item() == pytest.approx(np.median(values), abs=1e-15)


def test_layers_without_an_angle_and_layers_not_counted_do_not_vote():
    values = {"a": 0.1, "norm": 1.5, "b": 0.3, "lora": math.nan}
    angles = {layer: torch.tensor(value, **f64) for layer, value in values.items()}
    found = layer_angle_median(angles, counted=["a", "b", "lora"])
    assert found.item() == pytest.approx(0.2, rel=1e-15)


def test_no_layer_left_to_count_is_not_an_angle_of_zero():
    nothing = {"a": torch.tensor(math.nan, **f64)}
    assert layer_angle_median(nothing).isnan()
    assert layer_angle_median(nothing, counted=[]).isnan()


def test_a_counted_layer_that_does_not_exist_is_refused():
    with pytest.raises(KernelMismatchError, match=r"layers \['b'\] are to be counted"):
        layer_angle_median({"a": torch.tensor(0.0, **f64)}, counted=["b"])


def test_trace_shares_are_those_of_the_diagonals():
    found = layer_trace_shares({"a": 3 * torch.eye(5), "b": torch.eye(5), "c": torch.zeros(5, 5)})
    assert [share.item() for share in found.values()] == [0.75, 0.25, 0]


def test_nothing_is_not_shared():
    for nothing in ({}, {"a": torch.zeros(2, 2)}):
        with pytest.raises(KernelMismatchError, match="have trace zero"):
            layer_trace_shares(nothing)
