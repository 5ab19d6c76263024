"""Rules for tables from which rows are picked by an index."""

import torch
from torch import Tensor

from ntkwatch.jacobian.structured.graph import shape_of
from ntkwatch.jacobian.structured.ownership import RaggedOwner
from ntkwatch.jacobian.structured.rules.forms import Outer, rule
from ntkwatch.jacobian.structured.uses import Use

__all__: list[str] = []

_SUM, _MEAN = 0, 1


@rule("EmbeddingBackward0")
def _embedding(use: Use) -> Outer | None:
    """Rows of a table, picked by an index; the padding row gets no gradient."""
    node, owner = use.node, use.owners[0]
    if node._saved_scale_grad_by_freq:  # type: ignore[attr-defined]
        return None
    indices: Tensor = node._saved_indices  # type: ignore[attr-defined]
    last = len(shape_of(use.edges[0])) - 1
    if (owner.lead > last) if isinstance(owner, RaggedOwner) else (owner.axis == last):
        return None
    padding = int(node._saved_padding_idx)  # type: ignore[attr-defined]
    padding = padding - 2**64 if padding >= 2**63 else padding
    # Shifted by one, so that the zeros of padded ragged rows mean "none" as well.
    shifted = torch.where(indices == padding, 0, indices + 1)
    return Outer(
        saved=shifted,
        act=lambda part: part.flatten(1) - 1,
        cot=lambda part: part.flatten(1, -2),
        act_axes=(0,),
        cot_axes=(1,),
    )


@rule("EmbeddingBagBackward0")
def _bags(use: Use) -> Outer | None:
    """Sums or means of rows in bags of one size, such as a matrix of indices makes."""
    node, owner = use.node, use.owners[0]
    mode = node._saved_mode  # type: ignore[attr-defined]
    weighted = node._saved_per_sample_weights is not None  # type: ignore[attr-defined]
    padded = int(node._saved_padding_idx) < 2**63  # type: ignore[attr-defined]
    if mode not in (_SUM, _MEAN) or weighted or padded:
        return None
    if node._saved_scale_grad_by_freq or isinstance(owner, RaggedOwner) or owner.axis != 0:  # type: ignore[attr-defined]
        return None
    indices: Tensor = node._saved_indices  # type: ignore[attr-defined]
    bags = shape_of(use.edges[0])[0]
    size, rest = divmod(len(indices), bags)
    if rest or not size or not _of_one_size(node._saved_offsets[:bags], size):  # type: ignore[attr-defined]
        return None
    return Outer(
        saved=indices.view(bags, size),
        act=lambda part: part.flatten(1),
        cot=lambda part: part.repeat_interleave(size, dim=1),
        act_axes=(0,),
        cot_axes=(1,),
        scale=1 / size if mode == _MEAN else 1.0,
    )


def _of_one_size(offsets: Tensor, size: int) -> bool:
    """Whether bags begin where they would if each held as much; without values they do."""
    if offsets.is_meta:
        return True
    return torch.equal(offsets, size * torch.arange(len(offsets)).to(offsets))
