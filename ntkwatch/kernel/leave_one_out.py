"""What regression with a kernel does on training samples that it was not given, one by one.

Tensors in, tensors out: nothing here knows of models, steps or files. It is how a ridge is chosen
without a look at test data; without one, a kernel of about as many rows as parameters fits noise.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError
from ntkwatch.kernel.gram import as_matrix, check_rows
from ntkwatch.kernel.modes import eigenmodes

__all__ = ["leave_one_out_errors"]


def leave_one_out_errors(
    kernel: Float[Tensor, "n n *cc"], values: Float[Tensor, "n c"], ridges: Sequence[float]
) -> Float[Tensor, " k"]:
    """Return ``sum_i |y_i - K_i (K_-i + eps I)^-1 y_-i|^2 / |y|^2`` for several ridges.

    Every sample is predicted from the others, all of its outputs at once. With
    ``B = (K + eps I)^-1`` its error is ``B_ii^-1 (B y)_i``, so that one decomposition serves all.

    Args:
        kernel: ``K(X, X)``, full or trace.
        values: What is regressed on, one row per sample.
        ridges: ``eps`` as shares of the mean eigenvalue, above 0.

    Returns:
        An error for each ridge, without unit; 1 is as good as predicting zeros.

    Raises:
        KernelMismatchError: If kernel and values do not belong together.
        NonFiniteError: If the kernel holds NaN or infinity.
        InputError: If a ridge is not positive, the kernel is zero, or all values are.

    Source:
        The identity for one output: Allen, Technometrics 1974 (PRESS).
    """
    check_rows(kernel, values, "values")
    n, c = values.shape
    flat = as_matrix(kernel, outputs=c)
    mean = flat.diagonal().mean()
    if not ridges or not all(ridge > 0 for ridge in ridges) or mean <= 0 or not bool(values.any()):
        raise InputError(
            f"ridges {tuple(ridges)} on a kernel of mean eigenvalue {float(mean):.3g} with values "
            f"of size {float(values.norm()):.3g} leave nothing to predict. Give ridges above 0, "
            "and a kernel and values that are not all zero."
        )
    modes = eigenmodes(flat)
    wanted = values.to(flat)
    # One block of outputs per sample; a trace kernel treats all outputs alike.
    size = c if kernel.ndim == 4 else 1
    right = wanted.reshape(n * size, -1)
    along, blocks = modes.vectors.mT @ right, modes.vectors.reshape(n, size, -1)
    # Below zero by rounding only.
    values_up = modes.values.clamp(min=0)
    errors = []
    for ridge in ridges:
        inverse = 1 / (values_up + ridge * mean)
        own = torch.einsum("iak,k,ibk->iab", blocks, inverse, blocks)
        solved = (modes.vectors @ (inverse[:, None] * along)).reshape(n, size, -1)
        errors.append(torch.linalg.solve(own, solved).square().sum())
    return torch.stack(errors) / wanted.square().sum()
