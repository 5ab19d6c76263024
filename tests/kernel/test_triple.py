"""The triple against counts by hand and against kernels made to know the answer, or not."""

import math
from inspect import unwrap  # past --typecheck, which would refuse before us

import numpy as np
import pytest
import torch

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.kernel.triple import KernelPair, accuracy, class_code, score_values, triple

f64 = {"dtype": torch.float64}


def test_class_codes_are_one_hot_and_favour_no_class():
    expected = np.eye(4)[[3, 0, 0]] - 0.25
    np.testing.assert_array_equal(class_code(torch.tensor([3, 0, 0]), classes=4), expected)


@pytest.mark.parametrize(("labels", "classes"), [([0, 4], 4), ([-1, 0], 4), ([0, 0], 1)])
def test_labels_outside_of_the_classes_are_refused(labels, classes):
    with pytest.raises(InputError, match=f"not all from 0 to {classes - 1}"):
        class_code(torch.tensor(labels), classes=classes)


def test_accuracy_counts_the_largest_output_or_the_sign_of_a_single_one():
    targets = class_code(torch.tensor([0, 1, 2, 2]), classes=3)
    outputs = torch.tensor([[3.0, 1, 2], [0, 2, 1], [5, 4, 3], [-3, -2, -1]], **f64)
    assert accuracy(outputs, targets) == 0.75
    signs = torch.tensor([[1.0], [-1], [1], [-1]], **f64)
    assert accuracy(torch.tensor([[0.2], [-5], [-1], [0]], **f64), signs) == 0.5
    with pytest.raises(KernelMismatchError, match="cannot be scored"):
        unwrap(accuracy)(outputs, signs)


def _parity(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Signs in 6 dimensions; the target is the product of the first two."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (count, 6), generator=generator).double() * 2 - 1
    return x, x[:, :1] * x[:, 1:2]


def test_a_kernel_without_the_feature_fails_where_the_one_with_it_succeeds():
    """Linear features cannot tell parity; products of two inputs can. The net gets 9 in 10."""
    (x, y), (x_test, y_test) = _parity(60, 0), _parity(200, 1)
    linear = KernelPair(x @ x.T, x_test @ x.T)
    products = KernelPair((x @ x.T) ** 2, (x_test @ x.T) ** 2)
    net = y_test.clone()
    net[::10] *= -1
    nothing = torch.zeros(60, 1, **f64), torch.zeros(200, 1, **f64)
    found = triple(net, linear, products, (y, y_test), start=nothing, ridge=1e-6)
    assert found.acc_net.item() == pytest.approx(0.9)
    assert 0.35 < found.acc_kernel_ref < 0.65
    assert found.acc_kernel_final == 1
    torch.testing.assert_close(found.gain, found.acc_net - found.acc_kernel_ref)
    scores = [found.acc_net, found.acc_kernel_ref, found.acc_kernel_final]
    expected = [math.sqrt(float(a) * (1 - float(a)) / 200) for a in scores]
    assert found.se.tolist() == pytest.approx(expected)


def test_regression_at_the_start_begins_at_the_networks_outputs_and_the_last_one_at_zero():
    """A kernel without any features off its diagonal predicts where it began."""
    labels, test_labels = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2, 0])
    targets = class_code(labels, classes=3), class_code(test_labels, classes=3)
    blind = KernelPair(torch.eye(3, **f64), torch.zeros(4, 3, **f64))
    start = torch.zeros(3, 3, **f64), targets[1]
    found = triple(targets[1], blind, blind, targets, start=start, ridge=1e-6)
    assert found.acc_kernel_ref == 1
    assert found.acc_kernel_final == 0.5  # the first of equal outputs, class 0
    assert found.gain == 0
    assert found.gain_se == 0


def test_the_error_of_the_gain_counts_only_samples_on_which_the_two_differ():
    """Wrong on 1 of 8, the other on that and 2 more: the sd of (1, 1, 0 x 6), not of two scores."""
    y_test = torch.ones(8, 1, **f64)
    net, frozen = y_test.clone(), y_test.clone()
    net[3], frozen[:2], frozen[3] = -1, -1, -1
    blind = KernelPair(torch.eye(2, **f64), torch.zeros(8, 2, **f64))
    y, zero = torch.ones(2, 1, **f64), torch.zeros(2, 1, **f64)
    found = triple(net, blind, blind, (y, y_test), start=(zero, frozen), ridge=0.0)
    assert found.gain == 0.25
    expected = np.std([1, 1, 0, 0, 0, 0, 0, 0]) / math.sqrt(8)
    assert found.gain_se.item() == pytest.approx(expected, rel=1e-12)


def test_values_are_scored_by_the_share_of_variance_explained():
    """Against numpy; two outputs of unlike size are added up before the share is taken."""
    generator = torch.Generator().manual_seed(0)
    y, *noise = (torch.randn(50, 2, generator=generator, **f64) for _ in range(4))
    y = y * torch.tensor([1.0, 10.0], **f64) + 5
    net, frozen, after = (y + size * part for size, part in zip((0.1, 1, 2), noise, strict=True))
    found = score_values(net, frozen, after, y)
    spread = ((y - y.mean(dim=0)) ** 2).sum().item()
    expected = [1 - ((p - y) ** 2).sum().item() / spread for p in (net, frozen, after)]
    assert [float(score) for score in found[:3]] == pytest.approx(expected)
    assert found.gain.item() == pytest.approx(expected[0] - expected[1])
    each = (((frozen - y) ** 2).sum(dim=1) - ((net - y) ** 2).sum(dim=1)).numpy() * 50 / spread
    assert found.gain_se.item() == pytest.approx(each.std() / math.sqrt(50))


def test_values_without_variance_or_of_another_shape_cannot_be_scored():
    y = torch.full((6, 2), 0.1, **f64)
    with pytest.raises(InputError, match="all equal"):
        score_values(y, y, y, y)
    y = torch.randn(6, 2, **f64)
    with pytest.raises(KernelMismatchError, match="cannot be scored"):
        unwrap(score_values)(y[:, :1], y, y, y)
