"""Which module of a model mixes samples or draws random numbers, found by comparing two calls."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["culprit_cure", "culprit_name", "find_culprit"]

_CURES = {
    nn.modules.batchnorm._BatchNorm: (
        "It uses batch statistics in evaluation mode: set track_running_stats=True and let "
        "model.eval() reach it, or use GroupNorm or LayerNorm"
    ),
    nn.modules.dropout._DropoutNd: (
        "It drops at random in evaluation mode: let model.eval() reach it"
    ),
}


class _Seen(NamedTuple):
    module: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]


def find_culprit(
    model: nn.Module,
    call: Callable[[], object],
    call_again: Callable[[], object],
    rows: Tensor | slice,
    n: int,
    *,
    tolerance: float,
) -> tuple[str, nn.Module] | None:
    """Return the innermost module whose outputs differ between two calls though its inputs agree.

    Args:
        model: The model.
        call: Runs it on all samples.
        call_again: Runs it on the samples ``rows``.
        rows: Which of all samples the second call has, in its order.
        n: Number of all samples.
        tolerance: Largest gap, as a share of a tensor's size, that is rounding.

    Returns:
        Its name and itself, or None if no module can be named.
    """
    names = {module: name for name, module in model.named_modules()}

    def agree(whole: list[Tensor], part: list[Tensor]) -> bool:
        return all(_agree(a, b, rows, n, tolerance) for a, b in zip(whole, part, strict=False))

    # Modules are seen as they return, so that an inner one comes before those around it.
    first, second = _recorded(names, call), _recorded(names, call_again)
    for a, b in zip(first, second, strict=False):
        if a.module is not b.module:
            return None
        if agree(a.inputs, b.inputs) and not agree(a.outputs, b.outputs):
            return names[a.module], a.module
    if len(second) < len(first):  # the second call failed, in the module that returns next
        module = first[len(second)].module
        return names[module], module
    return None


def culprit_name(found: tuple[str, nn.Module] | None) -> str:
    """Return what to call a module in a message."""
    if found is None:
        return "code that is not a module of its own"
    name, module = found
    return f"{name or 'the model itself'} ({type(module).__name__})"


def culprit_cure(found: tuple[str, nn.Module] | None, otherwise: str) -> str:
    """Return what to do about a module, or what to try if it is of no known kind."""
    for kind, cure in _CURES.items():
        if found is not None and isinstance(found[1], kind):
            return cure
    return otherwise


def _agree(whole: Tensor, part: Tensor, rows: Tensor | slice, n: int, tolerance: float) -> bool:
    """Tensors that are not per sample, samples first, tell nothing and count as agreeing."""
    if whole.ndim == 0 or len(whole) != n or not whole.is_floating_point():
        return True
    expected = whole[rows]
    if expected.shape != part.shape:
        return True
    if part.numel() == 0:
        return True
    return bool((part - expected).abs().max() <= tolerance * expected.abs().max())


def _recorded(names: dict[nn.Module, str], call: Callable[[], object]) -> list[_Seen]:
    seen: list[_Seen] = []
    began: list[list[Tensor]] = []

    # Inputs are kept before the call: a module may write to them.
    def before(_module: nn.Module, args: object, kwargs: object) -> None:
        began.append(_copies((args, kwargs)))

    def after(module: nn.Module, _args: object, _kwargs: object, output: object) -> None:
        seen.append(_Seen(module, began.pop(), _copies(output)))

    handles = []
    try:
        for module in names:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        with torch.no_grad():
            call()
    except Exception:  # on fewer samples a call may fail; who returned before is known
        return seen
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _copies(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _copies(part)]
    return []
