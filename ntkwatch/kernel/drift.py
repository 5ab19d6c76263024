"""How far an empirical NTK has moved from a reference kernel.

Tensors in, 0-dim tensors out: nothing here knows of models, steps or files.

All measures compare a kernel ``K`` with a reference ``R`` on the same probe batch, in the same
sample order and with the same reduction over outputs:

- relative change ``|K - R|_F / |R|_F`` sees scale and direction;
- scale ``ln(<K, R> / <R, R>)`` sees growth along the reference only;
- distance ``1 - cos(K, R)`` and angle ``arccos cos(K, R)`` see direction only.

With ``s`` the scale before the logarithm and ``phi`` the angle they obey
``change^2 = (s - 1)^2 + s^2 tan^2 phi``. A kernel that has merely doubled has change 1 and angle 0.
Everything is reduced in float64 where the device has it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import KernelMismatchError
from ntkwatch.kernel.gram import centre, check_same_shape, inner, offdiag, widest_float

__all__ = [
    "kernel_angle",
    "kernel_distance",
    "kernel_distance_centred",
    "kernel_distance_offdiag",
    "kernel_scale",
    "offdiag_share",
    "relative_kernel_change",
]


def relative_kernel_change(
    kernel: Float[Tensor, "n m"], reference: Float[Tensor, "n m"]
) -> Float[Tensor, ""]:
    """Return ``|K - R|_F / |R|_F``, the drift of a kernel from its reference.

    Args:
        kernel: Empirical NTK ``K`` now.
        reference: Empirical NTK ``R`` at the reference step, on the same probe batch.

    Returns:
        A ratio without unit: 0 for an unchanged kernel, no upper bound. It counts pure rescaling;
        read it beside ``kernel_scale`` and ``kernel_angle``.

    Raises:
        KernelMismatchError: If the shapes differ, or the reference is zero.

    Source:
        Under lazy training the model follows its linearization around the start (Chizat, Oyallon
        and Bach, NeurIPS 2019, arXiv:1812.07956), so ``K`` stays at ``R`` and this stays near 0.
    """
    check_same_shape(kernel, reference)
    size = _norm(reference)
    _check_nonzero(size, reference, "relative change")
    return _norm(kernel - reference) / size


def kernel_scale(
    kernel: Float[Tensor, "n m"], reference: Float[Tensor, "n m"]
) -> Float[Tensor, ""]:
    """Return ``ln s`` with ``s = <K, R> / <R, R>``: how much the kernel grew along its reference.

    Args:
        kernel: Empirical NTK ``K`` now.
        reference: Empirical NTK ``R`` at the reference step, on the same probe batch.

    Returns:
        A natural logarithm without unit: 0 for an unchanged scale, ``-inf`` for orthogonal kernels.

    Raises:
        KernelMismatchError: If the shapes differ, or the reference is zero.
    """
    check_same_shape(kernel, reference)
    _check_nonzero(_norm(reference), reference, "scale")
    # Both are positive semi-definite, so the inner product is negative by rounding only.
    return (inner(kernel, reference) / inner(reference, reference)).clamp(min=0).log()


def kernel_distance(
    kernel: Float[Tensor, "n m"], reference: Float[Tensor, "n m"]
) -> Float[Tensor, ""]:
    """Return ``1 - cos(K, R)`` as ``|K/|K| - R/|R||^2 / 2``.

    The difference form keeps its digits where ``1 - cos`` loses them: a perturbation of relative
    size 1e-6 has distance 5e-13, and ``1 - cos`` in float32 would read 0.

    Args:
        kernel: Empirical NTK ``K`` now.
        reference: Empirical NTK ``R`` at the reference step, on the same probe batch.

    Returns:
        A number without unit in [0, 1] for kernels, which are positive semi-definite. It is biased
        low at small N, where the diagonals dominate.

    Raises:
        KernelMismatchError: If the shapes differ, or either kernel is zero.

    Source:
        Fort et al., NeurIPS 2020, arXiv:2010.15110.
    """
    check_same_shape(kernel, reference)
    now, then = _unit(kernel, "kernel"), _unit(reference, "reference kernel")
    return 0.5 * (now - then).square().sum()


def kernel_angle(
    kernel: Float[Tensor, "n m"], reference: Float[Tensor, "n m"]
) -> Float[Tensor, ""]:
    """Return the angle between two kernels as ``2 arcsin sqrt(D / 2)``, ``D`` their distance.

    Args:
        kernel: Empirical NTK ``K`` now.
        reference: Empirical NTK ``R`` at the reference step, on the same probe batch.

    Returns:
        Radians in [0, pi/2]. ``arccos`` is not used: it loses all digits near 1.

    Raises:
        KernelMismatchError: If the shapes differ, or either kernel is zero.
    """
    return 2 * torch.asin((kernel_distance(kernel, reference) / 2).sqrt().clamp(max=1))


def kernel_distance_offdiag(
    kernel: Float[Tensor, "n n"], reference: Float[Tensor, "n n"]
) -> Float[Tensor, ""]:
    """Return the distance of the two kernels with both diagonals set to zero.

    It is nearly unbiased in the number of probe points, which ``kernel_distance`` is not. Where
    ``offdiag_share`` of the reference is small (whitened inputs) it is noise.

    Args:
        kernel: Empirical NTK ``K`` now.
        reference: Empirical NTK ``R`` at the reference step, on the same probe batch.

    Returns:
        A number without unit in [0, 2].

    Raises:
        KernelMismatchError: If the shapes differ, or either off-diagonal part is zero.
    """
    check_same_shape(kernel, reference)
    return kernel_distance(offdiag(kernel), offdiag(reference))


def kernel_distance_centred(
    kernel: Float[Tensor, "n n"], reference: Float[Tensor, "n n"]
) -> Float[Tensor, ""]:
    """Return the distance of ``H K H`` and ``H R H``, the kernels without their mean mode.

    Much of a rotation may be that of the mean mode alone, which a constant added to all outputs
    takes up; what is left here is how samples are told apart. It depends on the number of probe
    points: read it for N of at least 32, beside ``kernel_distance``.

    Args:
        kernel: Empirical NTK ``K`` now.
        reference: Empirical NTK ``R`` at the reference step, on the same probe batch.

    Returns:
        A number without unit in [0, 1] for kernels; it sees neither scale nor an added constant.

    Raises:
        KernelMismatchError: If the shapes differ, or all entries of either kernel are equal up to
            rounding (only an output bias is watched, say).

    Source:
        This project's own; for one kernel centring is that of Baratin et al., AISTATS 2021,
        arXiv:2008.00938.
    """
    check_same_shape(kernel, reference)
    return kernel_distance(
        _centred(kernel, "kernel"),
        _centred(reference, "reference kernel"),
    )


def offdiag_share(kernel: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Return ``|offdiag(K)|_F / |K|_F`` in [0, 1]: how much of a kernel relates different samples.

    Args:
        kernel: Any square kernel.

    Returns:
        A ratio without unit.

    Raises:
        KernelMismatchError: If the kernel is zero.
    """
    size = _norm(kernel)
    _check_nonzero(size, kernel, "share of the off-diagonal")
    return _norm(offdiag(kernel)) / size


def _centred(kernel: Tensor, name: str) -> Tensor:
    wide = kernel.to(widest_float(kernel.device))
    centred = centre(wide)
    # Rounding of the arithmetic that the kernel arrived in, of entries of its own mean size.
    rounding = torch.finfo(kernel.dtype).eps * _norm(wide)
    if _norm(centred) <= len(kernel) * rounding:
        raise KernelMismatchError(
            f"the {kernel.numel()} entries of the {name} are equal up to rounding, so nothing of "
            "it is left once its mean mode is taken off. Watch more than an output bias."
        )
    return centred


def _norm(kernel: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(kernel.to(widest_float(kernel.device)))
    return size


def _unit(kernel: Tensor, name: str) -> Tensor:
    size = _norm(kernel)
    _check_nonzero(size, kernel, "direction", name)
    return kernel.to(widest_float(kernel.device)) / size


def _check_nonzero(size: Tensor, kernel: Tensor, what: str, name: str = "reference kernel") -> None:
    if size == 0:
        raise KernelMismatchError(
            f"the {name} ({kernel.shape[0]} samples) is exactly zero, so its {what} is undefined. "
            "Is every watched parameter frozen, its layer initialised to zero, or the output "
            "detached?"
        )
