"""Rules for convolutions of one to three dimensions, transposed and grouped ones included."""

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional

from ntkwatch.jacobian.structured.graph import shape_of
from ntkwatch.jacobian.structured.ownership import RaggedOwner
from ntkwatch.jacobian.structured.rules.forms import Outer, Rows, elementwise, rule
from ntkwatch.jacobian.structured.uses import Use

__all__: list[str] = []


@rule("ConvolutionBackward0", "MkldnnConvolutionBackward0", "CudnnConvolutionBackward0")
def _convolution(use: Use) -> Outer | Rows | None:
    """The unfolded input by the cotangent; transposed, the input by the unfolded cotangent."""
    if use.slot == 2:
        return elementwise(use, lambda cotangent: cotangent, axes=(1,))
    owner = use.owners[0]
    if use.slot != 1 or isinstance(owner, RaggedOwner) or owner.axis != 0:
        return None
    node, shape = use.node, shape_of(use.derived)
    # The nodes of a library's own convolution say "self", and are never transposed.
    image: Tensor = getattr(
        node, "_saved_input" if hasattr(node, "_saved_input") else "_saved_self"
    )
    kernel = shape[2:]
    stride, padding, dilation = (
        _each([int(x) for x in getattr(node, f"_saved_{name}")], len(kernel))
        for name in ("stride", "padding", "dilation")
    )
    groups, transposed = int(node._saved_groups), bool(getattr(node, "_saved_transposed", False))  # type: ignore[attr-defined]

    def flat(part: Tensor) -> Tensor:
        """(n, q, channels, *space) -> (n, q, channels, positions)."""
        return part.flatten(3)

    def unfolded(part: Tensor) -> Tensor:
        """(n, q, channels, *space) -> (n, q, channels * taps, positions)."""
        found = windows(part.flatten(0, 1), kernel, stride, padding, dilation)
        return found.unflatten(0, part.shape[:2])

    def positions_first(part: Tensor) -> Tensor:
        """(n, q, width, positions) -> (n, q positions, width); a view if q = 1."""
        part = part.mT
        return part[:, 0] if part.shape[1] == 1 else part.flatten(1, 2)

    of_act, of_cot = (flat, unfolded) if transposed else (unfolded, flat)
    if groups == 1:
        rest = tuple(range(1, len(shape)))
        return Outer(
            saved=image,
            act=lambda part: positions_first(of_act(part)),
            cot=lambda part: positions_first(of_cot(part)),
            act_axes=(0,) if transposed else rest,
            cot_axes=rest if transposed else (0,),
            copies=not transposed,
        )

    def gradients(cotangent: Tensor) -> Tensor:
        acts = of_act(owner.split(image)).unflatten(2, (groups, -1))
        cots = of_cot(owner.split(cotangent)).unflatten(2, (groups, -1))
        first, second = (acts, cots) if transposed else (cots, acts)
        found = torch.einsum("nqgap,nqgbp->ngab", first, second)
        return found.reshape(len(found), *shape)

    return Rows(of=gradients)


def _each(numbers: list[int], dims: int) -> list[int]:
    """One number may stand for all dimensions."""
    return numbers * dims if len(numbers) == 1 else numbers


def windows(
    images: Shaped[Tensor, "n c *space"],
    kernel: tuple[int, ...],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Shaped[Tensor, "n ck positions"]:
    """Return what each tap of a kernel sees at each position, channels before taps."""
    if all(size == 1 for size in kernel) and all(s == 1 for s in stride) and not any(padding):
        return images.flatten(2)
    if len(kernel) == 2:
        return functional.unfold(
            images, kernel, dilation=tuple(dilation), padding=tuple(padding), stride=tuple(stride)
        )
    images = functional.pad(images, [side for p in reversed(padding) for side in (p, p)])
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        images = images.unfold(axis, (size - 1) * gap + 1, step)[..., ::gap]
    dims = len(kernel)
    order = [0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims)]
    return images.permute(order).flatten(1, 1 + dims).flatten(2)
