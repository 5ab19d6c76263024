"""Gathered parameters that move in a direction, whose forward pass gives derivatives, too."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.autograd import forward_ad

from ntkwatch.jacobian.shards import is_shard, whole

__all__ = ["set_moving"]


def set_moving(
    stack: ExitStack, model: nn.Module, slots: Mapping[str, str], direction: Mapping[str, Tensor]
) -> None:
    """Put moving parameters in the place of those that are whole at this moment.

    Call it inside ``forward_ad.dual_level``; every process must, in the same order.

    Args:
        stack: Takes what puts them back.
        model: The model.
        slots: The name of the parameter in each of its attributes.
        direction: Shards by name; parameters left out stand still.
    """
    gathered: dict[str, Tensor] = {}
    for slot, name in slots.items():
        path, _, attribute = slot.rpartition(".")
        module = model.get_submodule(path)
        held: dict[str, Any] = module._parameters
        leaf = held.get(attribute)
        if leaf is None or name not in direction or is_shard(leaf):
            continue
        if forward_ad.unpack_dual(leaf).tangent is not None:
            continue
        if name not in gathered:
            gathered[name] = whole(direction[name])
        stack.callback(_put_back, held, attribute, leaf)
        tangent = _without_padding(module, attribute, gathered[name])
        held[attribute] = forward_ad.make_dual(leaf.detach(), tangent)


def _put_back(held: dict[str, Any], attribute: str, leaf: Tensor) -> None:
    """Undo what made a parameter move, unless FSDP has put its shard there since."""
    if not is_shard(held[attribute]):
        held[attribute] = leaf


def _without_padding(module: nn.Module, attribute: str, tangent: Tensor) -> Tensor:
    """A padding row has no gradient, though forward mode would move it."""
    embeds = attribute == "weight" and isinstance(module, nn.Embedding | nn.EmbeddingBag)
    row = getattr(module, "padding_idx", None)
    if embeds and row is not None:
        tangent = tangent.clone()
        tangent[row] = 0
    return tangent
