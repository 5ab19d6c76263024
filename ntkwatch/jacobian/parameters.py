"""Which parameters a kernel is taken over, and what they are called.

Every tensor counts once, under its first name; wrapper prefixes such as ``_orig_mod.`` that
``torch.compile`` adds are left out of names.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ntkwatch.errors import DivergedError, SelectionError
from ntkwatch.jacobian.shards import local_part, over_processes

__all__ = [
    "check_finite_parameters",
    "clean_name",
    "layer_of",
    "parameters_of",
    "select_parameters",
    "unwrapped",
]

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")


def clean_name(name: str) -> str:
    """Return a parameter or module name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that a data-parallel wrapper copies to devices or processes.

    It has the same parameters under names without ``module.``, and its forward pass waits for
    nobody; hooks of the wrapper see ``backward()`` alone, which no measurement calls.

    Args:
        model: Any module; one that is not wrapped is returned as it is.

    Returns:
        The module inside, also where the wrapper itself was compiled.
    """
    inner: nn.Module | None = model
    while inner is not None:
        if isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = inner = inner.module
        else:
            inner = getattr(inner, "_orig_mod", None)
    return model


def layer_of(name: str) -> str:
    """Return the module that owns a parameter: the block it counts to in per-layer numbers.

    Args:
        name: Clean name of the parameter.

    Returns:
        The module's name; "(root)" for a parameter of the model itself. A parametrized weight
        (``fc.parametrizations.weight.original0``) counts to the module it parametrizes.
    """
    owner = f".{name}".rpartition(".")[0]
    return owner.split(".parametrizations.")[0].removeprefix(".") or "(root)"


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter once, tied ones under their first name."""
    return {clean_name(name): parameter for name, parameter in model.named_parameters()}


def select_parameters(
    model: nn.Module, patterns: str | Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Return the trainable parameters that a kernel is taken over.

    Args:
        model: Any module.
        patterns: Names or shell patterns such as "encoder.*"; None takes all trainable ones. A
            module's name takes all parameters below it.

    Returns:
        Parameters by clean name, in the model's order.

    Raises:
        SelectionError: If none is left, with what was there.
    """
    shapeless = [name for name, p in parameters_of(model).items() if is_lazy(p)]
    if shapeless:
        raise SelectionError(
            f"{len(shapeless)} parameters of {type(model).__name__} have no shape yet (such as "
            f"{shapeless[0]}, of a lazy module), so there is nothing to differentiate by. Call the "
            "model on a batch once before the measurement."
        )
    floating = {
        name: parameter
        for name, parameter in parameters_of(model).items()
        if parameter.is_floating_point() or parameter.is_complex()
    }
    trainable = {name: p for name, p in floating.items() if p.requires_grad}
    if patterns is None:
        if not trainable:
            raise SelectionError(
                f"{type(model).__name__} has {len(floating)} floating parameters and none of them "
                "requires a gradient, so there is nothing to differentiate by. Unfreeze what is "
                "trained, or set requires_grad_(True) for the measurement."
            )
        return trainable
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    # A tied tensor may be asked for by any of its names, and counts once under the first.
    every = model.named_parameters(remove_duplicate=False)
    asked = {id(p) for name, p in every if _matches(clean_name(name), wanted)}
    chosen = {name: p for name, p in trainable.items() if id(p) in asked}
    if not chosen:
        frozen = [name for name, p in floating.items() if id(p) in asked]
        why = (
            f"the {len(frozen)} it matches (such as {frozen[0]}) are frozen"
            if frozen
            else f"the model has names like {', '.join(list(trainable)[:4]) or 'none'}"
        )
        raise SelectionError(
            f"params={wanted!r} selects no trainable parameter of {type(model).__name__}: {why}. "
            'Give names or patterns of trainable parameters, such as "encoder.*", or params=None.'
        )
    return chosen


def check_finite_parameters(parameters: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        parameters: By name.

    Raises:
        DivergedError: If any is, naming the first few.
    """
    # One synchronisation with the device for all parameters together.
    own = [local_part(p.detach()) for p in parameters.values()]
    sums = torch.stack([(p * 0).sum().real.float() for p in own])
    # No process may go on where another one stops, since it would wait for it for ever.
    sums = over_processes(sums, parameters)
    bad = [name for name, ok in zip(parameters, (sums == 0).tolist(), strict=True) if not ok]
    if bad:
        raise DivergedError(
            f"{len(bad)} of {len(parameters)} parameters hold NaN or infinity ({', '.join(bad[:3])}"
            f"{', ...' if len(bad) > 3 else ''}), so the kernel is not defined: the training has "
            "diverged. Lower the learning rate, or observe an earlier checkpoint."
        )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) or name.startswith(f"{p}.") for p in patterns)
