"""Shapes of a kernel: full (N, N, C, C), flat (N·C, N·C), its trace over outputs, off-diagonal.

Tensors in, tensors out: nothing here knows of models, steps or files. Row ``i * C + a`` of a flat
kernel belongs to output ``a`` of sample ``i``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import KernelMismatchError, NonFiniteError

__all__ = [
    "as_matrix",
    "centre",
    "check_finite",
    "check_rows",
    "check_same_shape",
    "flatten_kernel",
    "inner",
    "offdiag",
    "trace_kernel",
    "unflatten_kernel",
    "widest_float",
]


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64 where the device has it, else float32 (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def flatten_kernel(kernel: Float[Tensor, "n m c d"]) -> Float[Tensor, "nc md"]:
    """Return the kernel as a matrix with row ``i * C + a`` for output ``a`` of sample ``i``.

    Args:
        kernel: Full kernel ``K[i, j, a, b]``.

    Returns:
        The same numbers with shape (N·C, M·D).
    """
    n, m, c, d = kernel.shape
    return kernel.permute(0, 2, 1, 3).reshape(n * c, m * d)


def unflatten_kernel(
    flat: Float[Tensor, "nc md"], outputs: tuple[int, int]
) -> Float[Tensor, "n m c d"]:
    """Return the full kernel of a flat one: the inverse of ``flatten_kernel``.

    Args:
        flat: Matrix with row ``i * C + a``.
        outputs: Outputs per sample of its rows and of its columns (C, D).

    Returns:
        The same numbers with shape (N, M, C, D).
    """
    c, d = outputs
    return flat.reshape(flat.shape[0] // c, c, flat.shape[1] // d, d).permute(0, 2, 1, 3)


def as_matrix(kernel: Float[Tensor, "n m *cc"], *, outputs: int) -> Float[Tensor, "p q"]:
    """Return a full kernel flattened, or ``S / C`` of a trace kernel ``S``, in the widest float.

    A trace kernel stands for ``S / C`` times the identity over outputs: the best guess at the full
    kernel that does not relate outputs, and what it is in wide networks near initialization.

    Args:
        kernel: Full kernel (N, M, C, C), or trace kernel (N, M), a sum over outputs.
        outputs: C.

    Returns:
        A matrix (N·C, M·C) that acts on all outputs together, or (N, M) for each output alone.
    """
    wide = kernel.to(widest_float(kernel.device))
    return flatten_kernel(wide) if wide.ndim == 4 else wide / outputs


def trace_kernel(kernel: Float[Tensor, "n m c c"]) -> Float[Tensor, "n m"]:
    """Return ``S[i, j] = sum_a K[i, j, a, a]``: a sum over the C outputs, not a mean.

    Args:
        kernel: Full kernel ``K[i, j, a, b]``.

    Returns:
        The trace kernel.
    """
    return torch.einsum("nmcc->nm", kernel)


def offdiag(kernel: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return the kernel with its diagonal set to zero, as a new tensor."""
    return kernel - torch.diag(kernel.diagonal())


def centre(kernel: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return ``H K H`` with ``H = I - 1 1'/N``: the kernel without its mean mode."""
    rows = kernel - kernel.mean(dim=0, keepdim=True)
    return rows - rows.mean(dim=1, keepdim=True)


def inner(a: Float[Tensor, "n m"], b: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    """Return the Frobenius inner product ``sum_ij A_ij B_ij`` in the widest float of the device."""
    wide = widest_float(a.device)
    return (a.to(wide) * b.to(wide)).sum()


def check_same_shape(kernel: Tensor, reference: Tensor) -> None:
    """Refuse two kernels that are not of one shape.

    Args:
        kernel: Kernel now.
        reference: Kernel to compare it with.

    Raises:
        KernelMismatchError: If their shapes differ.
    """
    if kernel.shape != reference.shape:
        raise KernelMismatchError(
            f"the kernel is {tuple(kernel.shape)} and its reference {tuple(reference.shape)}, so "
            "they cannot be compared entry by entry. Compute both on one probe batch with one "
            "setting of outputs."
        )


def check_rows(kernel: Tensor, values: Tensor, what: str) -> None:
    """Refuse values that are not one row per row of a kernel, one column per output.

    Args:
        kernel: Full kernel (N, M, C, C) or trace kernel (N, M).
        values: Should be (N, C), of any C for a trace kernel.
        what: What to call them in the message.

    Raises:
        KernelMismatchError: If they are not.
    """
    outputs = kernel.shape[2] if kernel.ndim == 4 else values.shape[-1]
    if kernel.ndim not in (2, 4) or values.shape != (len(kernel), outputs):
        raise KernelMismatchError(
            f"the kernel has shape {tuple(kernel.shape)} and the {what} {tuple(values.shape)}, so "
            "they do not belong together. Give one row per sample in the kernel's order, and as "
            "many columns as a full kernel has outputs."
        )


def check_finite(kernel: Tensor, name: str = "kernel") -> None:
    """Refuse a kernel with NaN or infinite entries.

    Args:
        kernel: Any kernel.
        name: What to call it in the message.

    Raises:
        NonFiniteError: If any entry is not finite.
    """
    bad = int((~torch.isfinite(kernel)).sum())
    if bad:
        raise NonFiniteError(
            f"{bad} of the {kernel.numel()} entries of the {name} are NaN or infinite, so no "
            "number can be taken from it. Gradients overflow (try dtype=torch.float64), or the "
            "model is at a point without a derivative, such as a square root of 0."
        )
