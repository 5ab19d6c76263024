"""Parameters that FSDP2 spreads over processes: what is sharded, and its parts put back in place.

Between forward passes each process holds a shard of every parameter; FSDP's own hooks gather a
module's parameters when it runs and free them afterwards. Modules and tensors are known by the
names of their classes, so that torch.distributed is not imported for a model that needs none of it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "gathered_by",
    "is_shard",
    "local_part",
    "of_the_first",
    "over_processes",
    "over_shards",
    "part_of",
    "recover",
    "reshard",
    "set_up",
    "sharding_modules",
    "shards_kept",
    "units_of",
    "whole",
    "with_local",
]


def sharding_modules(model: nn.Module) -> dict[str, Any]:
    """Return the modules that gather and free parameters, by name; none for a model held whole."""
    return {name: module for name, module in model.named_modules() if _is(module, "FSDPModule")}


def is_shard(tensor: Tensor) -> bool:
    """Return whether a tensor is only one process's part of it."""
    return _is(tensor, "DTensor")


def local_part(tensor: Any) -> Tensor:
    """Return the entries that this process holds: all of them, of an ordinary tensor."""
    return tensor.to_local() if is_shard(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """Return all entries of a tensor, gathered for the moment; every process must ask for them."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def with_local(shard: Any, local: Tensor) -> Tensor:
    """Return other entries in the layout of a shard; of an ordinary tensor, the entries."""
    if not is_shard(shard):
        return local
    layout = {"shape": shard.shape, "stride": shard.stride()}
    return type(shard).from_local(
        local, shard.device_mesh, shard.placements, run_check=False, **layout
    )


def part_of(tensor: Tensor, shard: Any) -> Tensor:
    """Return the entries of a whole tensor that this process holds in the layout of a shard."""
    for axis, dim in _shard_axes(shard):
        parts = tensor.chunk(shard.device_mesh.size(axis), dim)
        place = shard.device_mesh.get_local_rank(axis)
        # Where there are fewer rows than processes, the last ones have none.
        tensor = parts[place] if place < len(parts) else tensor.narrow(dim, 0, 0)
    return tensor


def over_shards(numbers: Tensor, like: Any) -> Tensor:
    """Return numbers of one process's entries added up over the processes that hold the others.

    Args:
        numbers: Sums over the entries of this process's shards.
        like: One of these shards; all of one layout. Copies of a shard count once.

    Returns:
        The sums, the same in each process.
    """
    for axis, _ in _shard_axes(like):
        torch.distributed.all_reduce(numbers, group=like.device_mesh.get_group(axis))
    return numbers


def _shard_axes(shard: Any) -> list[tuple[int, int]]:
    """The mesh axes over which a tensor is spread, with the dimension that is cut there."""
    if not is_shard(shard):
        return []
    return [(axis, p.dim) for axis, p in enumerate(shard.placements) if p.is_shard()]


def of_the_first(tensors: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors as the first process has them, which others may have in their own way.

    Args:
        tensors: By name; they are written to.
        parameters: Some of them shards, which tell the processes; or none.

    Returns:
        The tensors.
    """
    meshes = {p.device_mesh: None for p in parameters.values() if is_shard(p)}
    for mesh in meshes:
        for axis in range(mesh.ndim):
            group = mesh.get_group(axis)
            first = torch.distributed.get_global_rank(group, 0)
            for tensor in tensors.values():
                torch.distributed.broadcast(tensor, first, group=group)
    return dict(tensors)


def over_processes(numbers: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Return numbers added up over the processes that share some parameters.

    Args:
        numbers: This process's.
        parameters: Some of them shards, or none.

    Returns:
        The sums, the same in each process; of parameters held whole, the numbers themselves.
    """
    meshes = {p.device_mesh: None for p in parameters.values() if is_shard(p)}
    for mesh in meshes:
        for axis in range(mesh.ndim):
            torch.distributed.all_reduce(numbers, group=mesh.get_group(axis))
    return numbers


def same_everywhere(number: int, parameters: Mapping[str, Any]) -> bool:
    """Return whether all processes that share some parameters give the same number."""
    parts = [p for p in parameters.values() if is_shard(p)]
    extremes = torch.tensor([number, -number], device=parts[0].device if parts else None)
    for mesh in dict.fromkeys(p.device_mesh for p in parts):
        for axis in range(mesh.ndim):
            largest = torch.distributed.ReduceOp.MAX
            torch.distributed.all_reduce(extremes, largest, group=mesh.get_group(axis))
    return extremes.tolist() == [number, -number]


def gathered_by(model: nn.Module, name: str) -> tuple[str, Any]:
    """Return the module whose forward pass gathers a parameter, with its name; None if none does.

    Args:
        model: The model.
        name: Of a parameter, as ``named_parameters`` gives it.
    """
    found: tuple[str, Any] = ("", None)
    for path, module in sharding_modules(model).items():
        if name.startswith(f"{path}." if path else ""):
            found = path, module  # inner modules come after those around them
    return found


def units_of(model: nn.Module) -> list[Any]:
    """Return what FSDP keeps of each parameter that it shards."""
    groups = [group for m in sharding_modules(model).values() for group in _groups(m)]
    return list({id(u): u for group in groups for u in group.fsdp_params}.values())


def reshard(model: nn.Module) -> None:
    """Free what is gathered: each process holds its shards alone again."""
    for module in sharding_modules(model).values():
        module.reshard()


def set_up(model: nn.Module) -> None:
    """Let FSDP make its own arrangements, which it puts off until a model first runs.

    Made during a measurement, its hooks would be taken for the measurement's and removed; and a
    part of the model that runs before the whole would count as the root for good.
    """
    for module in _outermost(model):
        _do(module._get_fsdp_state(), "_lazy_init")


def recover(model: nn.Module) -> None:
    """Bring FSDP back to rest after a forward pass that was cut short by an exception."""
    groups = [group for m in sharding_modules(model).values() for group in _groups(m)]
    partial = [getattr(group, "_partial_reduce_output", None) for group in groups]
    for module in _outermost(model):
        # Older versions of torch have no way back: a run that meets such an exception is over.
        if hasattr(module, "reset_iter_state"):
            module.reset_iter_state()
    # It gives up the gradients that the training has gathered so far, which are not at fault.
    for group, output in zip(groups, partial, strict=True):
        group._partial_reduce_output = output


@contextmanager
def shards_kept(model: nn.Module) -> Iterator[None]:
    """Measure a sharded model inside this; gradients that wait to be reduced go on waiting.

    Args:
        model: Any model; one that is held whole is left alone.

    Yields:
        Nothing.
    """
    groups = [group for m in sharding_modules(model).values() for group in _groups(m)]
    waiting = [group.reduce_grads for group in groups]
    set_up(model)
    try:
        # The backward passes of a measurement would reduce gradients of accumulated batches early.
        for group in groups:
            group.reduce_grads = False
        yield
    finally:
        for group, flag in zip(groups, waiting, strict=True):
            group.reduce_grads = flag
        reshard(model)


def _groups(module: Any) -> list[Any]:
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


def _outermost(model: nn.Module) -> list[Any]:
    found: dict[str, Any] = {}
    for name, module in sharding_modules(model).items():
        if not any(name.startswith(f"{outer}." if outer else "") for outer in found):
            found[name] = module
    return list(found.values())


def _do(owner: Any, name: str) -> None:
    method: Callable[[], None] | None = getattr(owner, name, None)
    if method is not None:
        method()


def _is(thing: object, kind: str) -> bool:
    return any(base.__name__ == kind for base in type(thing).__mro__)
