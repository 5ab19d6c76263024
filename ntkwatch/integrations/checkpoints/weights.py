"""Putting a checkpoint's weights into a model, whatever prefix a wrapper gave their names.

Nothing is put in unless all of it fits: half a checkpoint would be a model that never was.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ntkwatch.errors import CheckpointError
from ntkwatch.jacobian.parameters import clean_name

__all__ = ["load_weights", "matched"]

# What a model computes does not depend on these.
_BESIDE = ("num_batches_tracked", "_extra_state")


def load_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], path: Path, *, prefix: str | None = None
) -> None:
    """Copy a checkpoint's weights and buffers into a model.

    Args:
        model: The model.
        tensors: By the names that the file gives them.
        path: The file, for messages.
        prefix: What to take off the names; found by itself where it is None.
    """
    chosen = matched(model, tensors, path, prefix=prefix)
    slots = _slots(model)
    with torch.no_grad():
        for name, tensor in chosen.items():
            slots[name].copy_(tensor)


def matched(
    model: nn.Module, tensors: Mapping[str, Tensor], path: Path, *, prefix: str | None = None
) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by the model's names.

    Args:
        model: The model.
        tensors: By the names that the file gives them.
        path: The file, for messages.
        prefix: What to take off the names; found by itself where it is None.

    Returns:
        One tensor for each of the model's slots that the file fills.

    Raises:
        CheckpointError: If slots stay empty, names are left over, shapes differ, or it is not clear
            which part of the file is meant.
    """
    named = {clean_name(name): t for name, t in tensors.items() if not _is_beside(name)}
    slots = {name: t for name, t in _slots(model).items() if not _is_beside(name)}
    if prefix is None:
        prefix = _prefix(model, named, slots, path)
    if prefix.startswith("+"):  # the file is of a part that the model wraps
        named = {f"{prefix[1:]}{name}": tensor for name, tensor in named.items()}
        prefix = ""
    part = {name.removeprefix(prefix): t for name, t in named.items() if name.startswith(prefix)}
    missing, unexpected = _missing(slots, part), [name for name in part if name not in slots]
    if missing or unexpected:
        raise CheckpointError(_unlike_names(model, path, missing, unexpected, named))
    for name, tensor in part.items():
        if tensor.shape != slots[name].shape:
            raise CheckpointError(
                f"{path} has {name} of shape {tuple(tensor.shape)} and {type(model).__name__} has "
                f"it of shape {tuple(slots[name].shape)}, so these are not its weights. Build the "
                "model as it was in that training, with --set NAME=VALUE for its arguments."
            )
    return part


def _slots(model: nn.Module) -> dict[str, Tensor]:
    state = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    return {clean_name(name): tensor for name, tensor in state.items()}


def _is_beside(name: str) -> bool:
    return name.rpartition(".")[2] in _BESIDE


def _missing(slots: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> list[str]:
    """Slots that nothing fills; safetensors keeps a tied tensor under one of its names only."""
    filled = {_place(tensor) for name, tensor in slots.items() if name in part}
    return [name for name in slots if name not in part and _place(slots[name]) not in filled]


def _place(tensor: Tensor) -> tuple[int, int, tuple[int, ...]]:
    if tensor.numel() == 0:
        return (id(tensor), 0, ())
    return (tensor.data_ptr(), tensor.numel(), tuple(tensor.shape))


def _prefix(
    model: nn.Module, named: Mapping[str, Tensor], slots: Mapping[str, Tensor], path: Path
) -> str:
    """What stands before the model's names in the file; "+..." where it must be put there."""
    if not slots or not _missing(slots, named):
        return ""
    first = next(iter(slots))
    endings = [name.removesuffix(first) for name in named if name.endswith(f".{first}")]
    fitting = [p for p in dict.fromkeys(endings) if not _missing(slots, _under(p, named))]
    if len(fitting) > 1:
        alike = [p for p in fitting if _same_shapes(slots, _under(p, named))]
        fitting = alike or fitting[:1]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        listed = ", ".join(prefix.rstrip(".") for prefix in fitting)
        raise CheckpointError(
            f"{path} has weights for {type(model).__name__} in {len(fitting)} places ({listed}), "
            "so it is not clear which are meant. Name one with --strip-prefix."
        )
    for child in dict.fromkeys(name.partition(".")[0] for name in slots):
        wrapped = {f"{child}.{name}": tensor for name, tensor in named.items()}
        if set(wrapped) <= set(slots) and not _missing(slots, wrapped):
            return f"+{child}."
    return _shared_prefix(named) if _shared_prefix(named) in ("module.", "model.") else ""


def _under(prefix: str, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in named.items() if name.startswith(prefix)}


def _same_shapes(slots: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> bool:
    return all(part[name].shape == slot.shape for name, slot in slots.items() if name in part)


def _shared_prefix(names: Iterable[str]) -> str:
    firsts = {name.partition(".")[0] for name in names}
    return f"{firsts.pop()}." if len(firsts) == 1 else ""


def _unlike_names(
    model: nn.Module,
    path: Path,
    missing: list[str],
    unexpected: list[str],
    named: Mapping[str, Tensor],
) -> str:
    parts = []
    if missing:
        parts.append(f"it has nothing for {len(missing)} of the model's tensors ({_few(missing)})")
    if unexpected:
        parts.append(f"it has {len(unexpected)} that the model does not know ({_few(unexpected)})")
    return (
        f"{path} is no checkpoint of this {type(model).__name__}: {' and '.join(parts)}, and some "
        f"of the weights alone would be a model that never was. The file has names like "
        f"{_few(list(named)) or 'none'}. Name the class that was trained with --model, its "
        "arguments with --set NAME=VALUE, or what stands before its names with --strip-prefix."
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
