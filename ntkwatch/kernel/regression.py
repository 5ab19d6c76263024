"""Regression with a frozen kernel: what a model without feature learning would have predicted.

Tensors in, tensors out: nothing here knows of models, steps or files. Kernels are full
(N, N, C, C), or trace kernels S (N, N), a sum over outputs: those stand for ``S / C`` times the
identity over outputs, which full kernels are in wide networks near initialization only.

Everything here takes the **whole** training set. On a part of it these numbers look plausible and
mean nothing. A ridge is a share of the mean eigenvalue, so it says the same for any scale.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError, SingularKernelError
from ntkwatch.kernel.gram import as_matrix, check_finite, check_rows, widest_float

__all__ = [
    "apply_kernel",
    "displacement_ratio",
    "kernel_regression",
    "representer_gap",
    "ridge_weights",
    "shortest_move",
]


def kernel_regression(
    train: Float[Tensor, "n n *cc"],
    cross: Float[Tensor, "m n *cc"],
    targets: Float[Tensor, "n c"],
    *,
    ridge: float,
    start: tuple[Float[Tensor, "n c"], Float[Tensor, "m c"]] | None = None,
) -> Float[Tensor, "m c"]:
    """Return ``f_0(X*) + K(X*, X) (K(X, X) + eps I)^-1 (y - f_0(X))``.

    The limit of training the linearized model on a square loss, without ridge; ``FrozenTraining``
    stops on the way there.

    Args:
        train: ``K(X, X)`` on the whole training set.
        cross: ``K(X*, X)``, of the same kind.
        targets: ``y``, one row per training sample; ``class_code`` makes them of labels.
        ridge: ``eps`` as a share of the mean eigenvalue; 0 interpolates. Choose it without looking
            at test data, and print it.
        start: ``f_0(X)`` and ``f_0(X*)``, where predictions start from those of a network; None
            starts from zero.

    Returns:
        Predictions in the unit of the targets.

    Raises:
        KernelMismatchError: If kernels and targets do not belong together.
        SingularKernelError: If the kernel has no inverse at this ridge.
        NonFiniteError: If a kernel holds NaN or infinity.

    Source:
        Jacot et al., NeurIPS 2018, arXiv:1806.07572; with ``f_0`` Lee et al., NeurIPS 2019,
        arXiv:1902.06720.
    """
    if start is None:
        return apply_kernel(cross, ridge_weights(train, targets, ridge=ridge))
    now, there = start
    check_rows(train, now, "outputs at the start")
    weights = ridge_weights(train, targets - now, ridge=ridge)
    predicted = apply_kernel(cross, weights)
    check_rows(cross, there, "outputs at the start on test samples")
    return there.to(predicted) + predicted


def representer_gap(
    train: Float[Tensor, "n n *cc"],
    cross: Float[Tensor, "m n *cc"],
    change: Float[Tensor, "n c"],
    cross_change: Float[Tensor, "m c"],
    *,
    ridge: float,
) -> Float[Tensor, ""]:
    """Return ``G = |df(X*) - K(X*, X) K(X, X)^-1 df(X)| / |df(X*)|``.

    Zero if the learned change on held-out samples is one that a linearized model, fed by the
    training set alone, could have learned: for any loss, and any order of the batches. Not valid
    with weight decay or under Adam, nor on a part of the training set.

    Args:
        train: Reference kernel ``K(X, X)`` on the whole training set.
        cross: Reference kernel ``K(X*, X)``.
        change: ``df(X)``, outputs now minus outputs at the reference.
        cross_change: ``df(X*)`` on held-out samples.
        ridge: As in ``kernel_regression``; it adds to the gap.

    Returns:
        A ratio without unit in [0, inf), blind to the scale of kernel and outputs.

    Raises:
        KernelMismatchError: If kernels and changes do not belong together.
        SingularKernelError: If the kernel has no inverse at this ridge.
        NonFiniteError: If a kernel holds NaN or infinity.
        InputError: If outputs on the held-out samples did not change.

    Source:
        This project's own: every step of gradient descent on a linearized model lies in the row
        space of its Jacobian on the training set.
    """
    wanted = cross_change.to(widest_float(train.device))
    size = torch.linalg.vector_norm(wanted)
    if size == 0:
        raise InputError(
            f"none of the outputs on the {len(cross_change)} held-out samples changed, so a share "
            "of that change is undefined. Train for at least one step, on an unfrozen model."
        )
    predicted = apply_kernel(cross, ridge_weights(train, change, ridge=ridge))
    check_rows(cross, cross_change, "changes on held-out samples")
    return torch.linalg.vector_norm(wanted - predicted) / size


def shortest_move(
    kernel: Float[Tensor, "n n *cc"], change: Float[Tensor, "n c"], *, ridge: float
) -> Float[Tensor, ""]:
    """Return ``sqrt(df' (K + eps I)^-1 df)``: how far frozen features must move for this change.

    Args:
        kernel: Reference kernel on the whole training set.
        change: ``df``, outputs now minus outputs at the reference.
        ridge: As in ``kernel_regression``; it shortens the move.

    Returns:
        A distance in the unit of the parameters, at least 0.

    Raises:
        KernelMismatchError: If kernel and change do not belong together.
        SingularKernelError: If the kernel has no inverse at this ridge.
        NonFiniteError: If the kernel holds NaN or infinity.

    Source:
        The least-norm solution of ``J dtheta = df`` has the squared norm ``df' (J J')^-1 df``.
    """
    weights = ridge_weights(kernel, change, ridge=ridge)
    return (weights * change.to(weights)).sum().clamp(min=0).sqrt()  # below 0 by rounding only


def displacement_ratio(
    displacement: Float[Tensor, ""],
    kernel: Float[Tensor, "n n *cc"],
    change: Float[Tensor, "n c"],
    *,
    ridge: float,
) -> Float[Tensor, ""]:
    """Return ``rk = |theta - theta_0| / sqrt(df' K_0^-1 df)``, actual over shortest frozen move.

    1 for lazy training by plain gradient descent, with momentum too and for any loss; below 1 where
    features moved and made the way shorter. Above 1 under Adam, noise or weight decay, where it
    says nothing. It does not depend on the scale of outputs.

    Args:
        displacement: ``|theta - theta_0|_2`` of the parameters that the kernel is taken over.
        kernel: Reference kernel, full, on the whole training set.
        change: ``df``, outputs now minus outputs at the reference.
        ridge: As in ``kernel_regression``. Print it.

    Returns:
        A ratio without unit in [0, inf).

    Raises:
        KernelMismatchError: If kernel and change do not belong together.
        SingularKernelError: If the kernel has no inverse at this ridge.
        NonFiniteError: If the kernel holds NaN or infinity.
        InputError: If no output changed.

    Source:
        This project's own.
    """
    shortest = shortest_move(kernel, change, ridge=ridge)
    if shortest == 0:
        raise InputError(
            f"none of the outputs on the {len(change)} training samples changed, so there is no "
            "shortest move to compare with. Train for at least one step, on an unfrozen model."
        )
    return displacement.to(shortest) / shortest


def ridge_weights(
    kernel: Float[Tensor, "n n *cc"], values: Float[Tensor, "n c"], *, ridge: float
) -> Float[Tensor, "n c"]:
    """Return ``(K + eps I)^-1 values``, one weight per sample and output.

    ``J' weights`` is the parameter change of least norm that makes these values, without ridge.

    Args:
        kernel: ``K(X, X)``.
        values: One row per sample.
        ridge: ``eps`` as a share of the mean eigenvalue, at least 0.

    Returns:
        Weights in the unit of values over kernel.

    Raises:
        KernelMismatchError: If kernel and values do not belong together.
        SingularKernelError: If the kernel has no inverse at this ridge. Without ridge that is
            where a row follows from those before it up to rounding of the kernel's own dtype.
        NonFiniteError: If the kernel holds NaN or infinity.
        InputError: If the ridge is negative.
    """
    check_finite(kernel)
    check_rows(kernel, values, "values")
    if not ridge >= 0:
        raise InputError(f"ridge={ridge} would make a kernel singular. Give a number from 0 up.")
    flat = as_matrix(kernel, outputs=values.shape[1])
    flat = (flat + flat.mT) / 2
    one = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    ridged = flat + ridge * flat.diagonal().mean() * one
    factor, failed = torch.linalg.cholesky_ex(ridged)
    _check_regular(factor, failed, kernel, ridge)
    right = values.to(flat).reshape(len(flat), -1)
    return torch.cholesky_solve(right, factor).reshape(values.shape)


def apply_kernel(
    cross: Float[Tensor, "m n *cc"], weights: Float[Tensor, "n c"]
) -> Float[Tensor, "m c"]:
    """Return ``K(X*, X) weights``: the outputs of a linearized model moved by ``J(X)' weights``.

    Args:
        cross: ``K(X*, X)``.
        weights: One per training sample and output.

    Returns:
        One row per test sample.

    Raises:
        KernelMismatchError: If they do not belong together.
        NonFiniteError: If the kernel holds NaN or infinity.
    """
    check_finite(cross, "kernel between test and training samples")
    check_rows(cross.transpose(0, 1), weights, "weights")
    flat = as_matrix(cross, outputs=weights.shape[1])
    right = weights.to(flat).reshape(flat.shape[1], -1)
    return (flat @ right).reshape(len(cross), weights.shape[1])


def _check_regular(factor: Tensor, failed: Tensor, kernel: Tensor, ridge: float) -> None:
    """Refuse a kernel that has no inverse; with a ridge, only one that the solve itself refused."""
    pivots = factor.diagonal().square()
    # A pivot is what is left of a row once those before it are taken off.
    floor = len(pivots) * torch.finfo(kernel.dtype).eps * pivots.max()
    broken = failed > 0 if ridge > 0 else (failed > 0) | (pivots.min() <= floor)
    if not broken:
        return
    row = int(failed) - 1 if failed > 0 else int(pivots.argmin())
    outputs = kernel.shape[2] if kernel.ndim == 4 else 1
    raise SingularKernelError(
        f"the kernel of {len(pivots)} rows is singular up to rounding at ridge={ridge:g}: row "
        f"{row} (sample {row // outputs}, output {row % outputs}) follows from the rows before it. "
        "Two equal samples or more rows than parameters do that. Give a larger ridge, such as "
        "1e-6, and say it beside the result."
    )
