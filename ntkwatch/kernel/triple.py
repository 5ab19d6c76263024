"""Were features needed: the held-out accuracy of a network beside that of two frozen kernels.

Tensors in, tensors out: nothing here knows of models, steps or files. The kernel at the start says
what the network could have learned without moving its features, the kernel at the end what those
features are worth. The latter often equals or beats the network, so alone it proves nothing.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.kernel.regression import kernel_regression

__all__ = [
    "KernelPair",
    "Triple",
    "ValueTriple",
    "accuracy",
    "class_code",
    "score_classes",
    "score_values",
    "triple",
]


class KernelPair(NamedTuple):
    """One network's kernel on the whole training set, and between test and training samples.

    Attributes:
        train: ``K(X, X)``, full or trace.
        cross: ``K(X*, X)``, of the same kind.
    """

    train: Float[Tensor, "n n *cc"]
    cross: Float[Tensor, "m n *cc"]


class Triple(NamedTuple):
    """Three accuracies on the same test samples.

    Attributes:
        acc_net: Of the network, in [0, 1].
        acc_kernel_ref: Of regression with the kernel at the start, from the network's own start.
        acc_kernel_final: Of regression with the kernel at the end, from zero.
        gain: ``acc_net - acc_kernel_ref``, in [-1, 1].
        gain_se: Standard error of the gain over test samples, which both are scored on: only those
            count where one is right and the other wrong.
        se: Binomial standard errors of the three, in their order.
    """

    acc_net: Float[Tensor, ""]
    acc_kernel_ref: Float[Tensor, ""]
    acc_kernel_final: Float[Tensor, ""]
    gain: Float[Tensor, ""]
    gain_se: Float[Tensor, ""]
    se: Float[Tensor, " 3"]


class ValueTriple(NamedTuple):
    """Three coefficients of determination ``R^2`` on the same test samples.

    Attributes:
        score_net: Of the network, in (-inf, 1]; 0 is as good as the mean of the test targets.
        score_kernel_ref: Of regression with the kernel at the start.
        score_kernel_final: Of regression with the kernel at the end.
        gain: ``score_net - score_kernel_ref``.
        gain_se: Standard error of the gain over test samples, which both are scored on.
    """

    score_net: Float[Tensor, ""]
    score_kernel_ref: Float[Tensor, ""]
    score_kernel_final: Float[Tensor, ""]
    gain: Float[Tensor, ""]
    gain_se: Float[Tensor, ""]


def class_code(labels: Int[Tensor, " n"], *, classes: int) -> Float[Tensor, "n classes"]:
    """Return regression targets for class labels: one-hot minus ``1 / classes``.

    Rows add up to 0, so that predictions of zero favour no class.

    Args:
        labels: From 0 to ``classes - 1``.
        classes: How many there are, at least 2.

    Returns:
        One row per label, in float64 where the device has it.

    Raises:
        InputError: If a label is outside of the classes.
    """
    if classes < 2 or not bool(((labels >= 0) & (labels < classes)).all()):
        raise InputError(
            f"the {len(labels)} labels are not all from 0 to {classes - 1}, or {classes} classes "
            "are too few. Give the number of outputs of the network, at least 2."
        )
    one_hot = torch.nn.functional.one_hot(labels.long(), classes)
    wide = torch.float32 if labels.device.type == "mps" else torch.float64
    return one_hot.to(wide) - 1 / classes


def accuracy(outputs: Float[Tensor, "m c"], targets: Float[Tensor, "m c"]) -> Float[Tensor, ""]:
    """Return the share of samples whose largest output is that of the targets.

    Args:
        outputs: Logits or predictions.
        targets: As they were regressed on; with one output their sign is the class.

    Returns:
        A share in [0, 1].

    Raises:
        KernelMismatchError: If outputs and targets differ in shape.
    """
    return _right(outputs, targets).mean()


def triple(
    net: Float[Tensor, "m c"],
    reference: KernelPair,
    final: KernelPair,
    targets: tuple[Float[Tensor, "n c"], Float[Tensor, "m c"]],
    *,
    start: tuple[Float[Tensor, "n c"], Float[Tensor, "m c"]],
    ridge: float,
) -> Triple:
    """Return ``acc(net), acc(K_0), acc(K_T)`` on held-out samples.

    Args:
        net: Outputs of the trained network on the test samples X*.
        reference: Kernels at the start. Regression with them starts from the network's start.
        final: Kernels at the end. Regression with them starts from zero, since the network's own
            outputs there know the answer.
        targets: Of the training and of the test samples, from ``class_code`` for classes.
        start: Outputs of the network at the start, on training and on test samples.
        ridge: As in ``kernel_regression``; not chosen on the test samples.

    Returns:
        The triple. It is evidence only if the kernels are those of the **whole** training set that
        the network was trained on.

    Raises:
        KernelMismatchError: If shapes do not belong together.
        SingularKernelError: If a kernel has no inverse at this ridge.
        NonFiniteError: If a kernel holds NaN or infinity.

    Source:
        The comparison: Vyas et al. 2022, arXiv:2206.10012, and Long 2021, arXiv:2105.10585.
    """
    train, test = targets
    frozen = kernel_regression(*reference, train, ridge=ridge, start=start)
    after = kernel_regression(*final, train, ridge=ridge)
    return score_classes(net, frozen, after, test)


def score_classes(
    net: Float[Tensor, "m c"],
    frozen: Float[Tensor, "m c"],
    after: Float[Tensor, "m c"],
    targets: Float[Tensor, "m c"],
) -> Triple:
    """Return the accuracies of three predictions of classes, as ``triple`` does.

    Args:
        net: Outputs of the trained network on the test samples.
        frozen: Predictions of regression with the kernel at the start.
        after: Those with the kernel at the end.
        targets: Of the test samples, as they were regressed on.

    Returns:
        The triple.

    Raises:
        KernelMismatchError: If shapes do not belong together.
    """
    right = torch.stack([_right(outputs.to(frozen), targets) for outputs in (net, frozen, after)])
    scores = right.mean(dim=1)
    count = len(targets)
    difference = right[0] - right[1]
    gain = difference.mean()
    return Triple(
        scores[0],
        scores[1],
        scores[2],
        gain,
        ((difference - gain).square().mean() / count).sqrt(),
        (scores * (1 - scores) / count).sqrt(),
    )


def score_values(
    net: Float[Tensor, "m c"],
    frozen: Float[Tensor, "m c"],
    after: Float[Tensor, "m c"],
    targets: Float[Tensor, "m c"],
) -> ValueTriple:
    """Return ``R^2 = 1 - |f - y|^2 / |y - mean(y)|^2`` of three predictions of values.

    Args:
        net: Outputs of the trained network on the test samples.
        frozen: Predictions of regression with the kernel at the start.
        after: Those with the kernel at the end.
        targets: Of the test samples.

    Returns:
        The triple; outputs are summed over, so that one of large variance counts for more.

    Raises:
        KernelMismatchError: If shapes do not belong together.
        InputError: If the targets are all equal, so that they have no variance to explain.
    """
    wide = targets.to(frozen)
    spread = (wide - wide.mean(dim=0)).square().sum()
    # Equal numbers differ from their mean by rounding.
    if not bool(spread > (torch.finfo(wide.dtype).eps * wide).square().sum() * len(wide)):
        raise InputError(
            f"the targets of the {len(targets)} held-out samples are all equal, so there is no "
            "variance to explain. Give held-out samples of different targets."
        )
    errors = []
    for outputs in (net, frozen, after):
        _check_scorable(outputs, targets)
        errors.append((outputs.to(wide) - wide).square().sum(dim=1))
    shares = torch.stack(errors) / spread
    scores = 1 - shares.sum(dim=1)
    difference = (shares[1] - shares[0]) * len(targets)
    gain = difference.mean()
    gain_se = ((difference - gain).square().mean() / len(targets)).sqrt()
    return ValueTriple(scores[0], scores[1], scores[2], gain, gain_se)


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 for every sample that is told right, else 0."""
    _check_scorable(outputs, targets)
    if outputs.shape[1] == 1:
        same = outputs.sign() == targets.sign()
    else:
        same = outputs.argmax(dim=1, keepdim=True) == targets.argmax(dim=1, keepdim=True)
    return same[:, 0].to(targets.dtype)


def _check_scorable(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise KernelMismatchError(
            f"there are outputs of shape {tuple(outputs.shape)} and targets of shape "
            f"{tuple(targets.shape)}, so they cannot be scored. Give one row per test sample."
        )
