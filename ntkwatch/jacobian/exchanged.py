"""Other weights in the place of a sharded model's own, while something is measured at them.

Each process swaps its shards before FSDP gathers them. The model's own shards are not written to:
what FSDP reads from is exchanged, and put back afterwards.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.functional import slots_of
from ntkwatch.jacobian.parameters import parameters_of
from ntkwatch.jacobian.shards import is_shard, local_part, reshard, sharding_modules, units_of

__all__ = ["in_place_of", "put_in_place"]

_in_place: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()


@contextmanager
def put_in_place(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a sharded model compute with other parameters; one that is held whole is left alone.

    Call it inside ``undisturbed``, on every process that shares the model.

    Args:
        model: Any model. A function of one that is held whole is given its parameters instead.
        state: Parameters by clean name, as shards of the same layout; others are ignored.

    Yields:
        Nothing.
    """
    if not sharding_modules(model):
        yield
        return
    reshard(model)
    own = parameters_of(model)
    wanted = {name: state[name] for name in own if name in state}
    earlier = _in_place.get(model, {})
    with ExitStack() as stack:
        stack.callback(reshard, model)
        shards = {id(own[n]): t for n, t in wanted.items() if is_shard(own[n])}
        _exchange_shards(stack, model, shards)
        _exchange_whole(stack, model, {n: t for n, t in wanted.items() if not is_shard(own[n])})
        stack.callback(_in_place.__setitem__, model, earlier)
        _in_place[model] = {**earlier, **wanted}
        yield


def in_place_of(model: nn.Module) -> dict[str, Tensor]:
    """Return what stands in the place of a model's own parameters, by name; mostly nothing."""
    return _in_place.get(model, {})


def _exchange_shards(stack: ExitStack, model: nn.Module, wanted: Mapping[int, Tensor]) -> None:
    """What FSDP gathers from, by the identity of the shard that the model shows."""
    found = 0
    for unit in units_of(model):
        other = wanted.get(id(unit.sharded_param))
        if other is None:
            continue
        before = unit._sharded_param_data
        stack.callback(setattr, unit, "_sharded_param_data", before)
        unit._sharded_param_data = _padded(unit, local_part(other), before)
        found += 1
    if wanted and not found:
        raise CoverageError(
            f"this version of torch ({torch.__version__}) keeps the shards of "
            f"{type(model).__name__} in a way that is not known, so it cannot be measured at other "
            "weights than its present ones. Use a version that ntkwatch was tested with."
        )


def _padded(unit: Any, local: Tensor, before: Tensor) -> Tensor:
    """The memory that FSDP would gather: the shard, and zeros behind it where others are larger."""
    whole = torch.zeros_like(before)
    own = local_part(unit.sharded_param)
    view = whole.as_strided(own.shape, own.stride(), 0)
    view.copy_(local)
    return whole


def _exchange_whole(stack: ExitStack, model: nn.Module, wanted: Mapping[str, Tensor]) -> None:
    """Parameters of a model that is sharded in part only."""
    others: dict[str, nn.Parameter] = {}  # one for all the names of a tied parameter
    for slot, name in slots_of(model).items():
        if name in wanted:
            path, _, attribute = slot.rpartition(".")
            held = model.get_submodule(path)._parameters
            own = held[attribute]
            assert own is not None
            if name not in others:
                others[name] = nn.Parameter(wanted[name].to(own), own.requires_grad)
            stack.callback(held.__setitem__, attribute, own)
            held[attribute] = others[name]
