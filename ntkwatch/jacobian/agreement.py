"""Whether ``torch.func`` can differentiate a model and agrees with plain autograd.

A wrong or missing batching rule is found on two samples: with one, a rule that adds up over the
batch would pass. Rounding may flip a kink of the model, so a doubtful gap is looked at again in
float64.
"""

from collections.abc import Callable, Sequence

import torch

from ntkwatch.jacobian.forward import first_line
from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs, cast_inputs, count_samples, take
from ntkwatch.jacobian.loop import LoopRows
from ntkwatch.jacobian.memory import is_out_of_memory
from ntkwatch.jacobian.outputs import Reduction
from ntkwatch.jacobian.vmapped import VmapRows

__all__ = ["why_not_vmap"]

_ROUNDING = 1e4  # rounding units that two orders of the same arithmetic may be apart
# In float64; models that compute partly in float32 whatever their dtype are why it is not smaller.
_WRONG = 1e-5
# A parameter whose gradient is smaller than this share of the whole is rounding, or nearly so.
_NEGLIGIBLE = 1e-2


def why_not_vmap(
    make: Callable[[torch.dtype], ModelFunction],
    inputs: Inputs,
    reduction: Reduction,
    names: Sequence[str],
    *,
    dtype: torch.dtype,
    buffers: Params,
    budget: int,
) -> str | None:
    """Compare gradients of two samples by vmap with those by plain autograd.

    Args:
        make: The model as a function, in a given dtype.
        inputs: The probe.
        reduction: Output directions.
        names: Parameters to differentiate by.
        dtype: That the kernel will be computed in.
        buffers: Buffers to use instead of the model's.
        budget: Bytes for the rows.

    Returns:
        None if vmap runs and agrees, else the reason in words.
    """
    first = max(0, count_samples(inputs) // 2 - 1)
    few = take(inputs, slice(first, first + 2))
    function = make(dtype)
    device = function.params[names[0]].device
    found = _compare(function, few, reduction, names, buffers, budget)
    doubtful = isinstance(found, float) and not found <= _ROUNDING * torch.finfo(dtype).eps
    if doubtful and device.type != "mps":
        few = cast_inputs(few, device=device, dtype=torch.float64)
        found = _compare(make(torch.float64), few, reduction, names, buffers, budget)
        doubtful = isinstance(found, float) and not found <= _WRONG
    if isinstance(found, str):
        return found
    return f"its gradients are {found:.1e} off those of plain autograd" if doubtful else None


def _compare(
    function: ModelFunction,
    inputs: Inputs,
    reduction: Reduction,
    names: Sequence[str],
    buffers: Params,
    budget: int,
) -> float | str:
    """The largest gap of any parameter's gradient, or why torch.func gives none."""
    loop = LoopRows(function, inputs, reduction, buffers)
    direction = loop.rows * 2 // 3
    expected = [loop.one_row(names, sample, direction) for sample in range(loop.count)]
    try:
        rows = VmapRows(function, inputs, reduction, buffers).row_blocks(
            names, range(loop.count), budget
        )
    except Exception as error:  # whatever torch.func cannot do, plain autograd may
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {first_line(error)}"
    gaps = []
    for sample, row in enumerate(expected):
        if not all(bool(gradient.isfinite().all()) for gradient in row.values()):
            return 0.0  # the kernel will be refused for what it is
        sizes = {name: gradient.norm() for name, gradient in row.items()}
        whole = torch.stack(list(sizes.values())).norm()
        for name, gradient in row.items():
            off = (rows[name][sample, direction] - gradient).norm()
            gaps.append(torch.where(off == 0, off, off / (sizes[name] + _NEGLIGIBLE * whole)))
    return float(torch.stack(gaps).max())
