"""Kernels of infinitely wide fully connected networks, and how far a finite one is from its limit.

Tensors in, tensors out: nothing here knows of models, steps or files. Networks are those of the NTK
parameterization: every layer computes ``sqrt(v_w / fan_in) W h + sqrt(v_b) b`` with W, b ~ N(0, 1),
**the first layer too**, whose fan-in is the input dimension. Kernels of networks whose first layer
does not divide are larger by that dimension where there are no biases.

Angles are carried from layer to layer, never recovered as ``arccos`` of a cosine: near 1 it keeps
half the digits, and ReLU's derivative kernel is linear in the angle.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.kernel.drift import relative_kernel_change
from ntkwatch.kernel.gram import flatten_kernel, widest_float

__all__ = [
    "Activation",
    "InfiniteWidth",
    "arc_cosine_kernel",
    "distance_to_infinite_width",
    "infinite_width_kernels",
]

Activation: TypeAlias = Literal["relu", "erf", "linear"]


class InfiniteWidth(NamedTuple):
    """Kernels of one output of an infinitely wide network; several outputs share them.

    Attributes:
        nngp: Covariance of the outputs over random weights, in squared units of the output.
        ntk: The neural tangent kernel.
    """

    nngp: Float[Tensor, "n m"]
    ntk: Float[Tensor, "n m"]


class _Pair(NamedTuple):
    """Second moments of two sets of vectors: squared norms, inner products, angles."""

    left: Tensor  # (n, 1)
    right: Tensor  # (1, m)
    cross: Tensor  # (n, m)
    angle: Tensor  # (n, m), in [0, pi]


class _Dual(NamedTuple):
    """Moments behind an activation, with ``gap = sqrt(left right) - cross``, and its slope's."""

    left: Tensor
    right: Tensor
    cross: Tensor
    gap: Tensor
    slope: Tensor


def infinite_width_kernels(
    inputs: Float[Tensor, "n d"],
    other: Float[Tensor, "m d"] | None = None,
    *,
    depth: int,
    activation: Activation,
    weight_variance: float | Sequence[float] = 1.0,
    bias_variance: float | Sequence[float] = 0.0,
) -> InfiniteWidth:
    """Return NNGP and NTK of a fully connected network in the limit of infinite width.

    With ``S`` the NNGP after a layer and ``T`` the NTK, both start at
    ``v_w x x' / d + v_b``; each hidden layer then makes ``S <- v_w E[act(u) act(u')] + v_b`` and
    ``T <- S + v_w E[act'(u) act'(u')] T`` with Gaussian u, u' of covariance S.

    Args:
        inputs: One input per row.
        other: Columns of the kernel, if not the inputs themselves.
        depth: Hidden layers L; 0 is a linear model.
        activation: ``"relu"`` is ``max(z, 0)``: with a weight variance of 2 behind it, signals keep
            their size.
        weight_variance: ``v_w`` of all L + 1 layers, or one for each, the input's first.
        bias_variance: ``v_b``, likewise.

    Returns:
        Both kernels, for one output.

    Raises:
        InputError: If a number of layers, variances or an activation makes no sense.

    Source:
        NNGP: Lee et al., ICLR 2018, arXiv:1711.00165. NTK: Jacot et al., NeurIPS 2018,
        arXiv:1806.07572. ReLU: Cho and Saul, NeurIPS 2009. erf: Williams, NeurIPS 1996.
    """
    dual = _DUALS.get(activation)
    if dual is None or depth < 0:
        raise InputError(
            f"there is no limit known here for {depth} hidden layers of activation "
            f"{activation!r}. Give a depth from 0 up and one of {', '.join(_DUALS)}."
        )
    weights = _per_layer(weight_variance, depth, "weight")
    biases = _per_layer(bias_variance, depth, "bias")
    pair = _first_layer(inputs, inputs if other is None else other, weights[0], biases[0])
    ntk = pair.cross
    for v_w, v_b in zip(weights[1:], biases[1:], strict=True):
        behind = dual(pair)
        pair = _affine(behind, v_w, v_b)
        ntk = pair.cross + v_w * behind.slope * ntk
    return InfiniteWidth(pair.cross, ntk)


def arc_cosine_kernel(
    inputs: Float[Tensor, "n d"],
    other: Float[Tensor, "m d"] | None = None,
    *,
    order: Literal[0, 1, 2],
) -> Float[Tensor, "n m"]:
    """Return ``2 E[H(u) H(u') (u u')^order]`` for ``u = w x``, ``w ~ N(0, I)`` and unit steps H.

    It is ``(|x| |x'|)^order J(angle) / pi`` with ``J_0 = pi - a``,
    ``J_1 = sin a + (pi - a) cos a`` and ``J_2 = 3 sin a cos a + (pi - a)(1 + 2 cos^2 a)``.

    Args:
        inputs: One input per row.
        other: Columns of the kernel, if not the inputs themselves.
        order: 0 for steps, 1 for ReLUs, 2 for squared ReLUs.

    Returns:
        The kernel; nothing is divided by the input dimension. For unit vectors of order 0 and 1 it
        lies in [0, 1].

    Raises:
        InputError: If the order is none of these.

    Source:
        Cho and Saul, "Kernel Methods for Deep Learning", NeurIPS 2009.
    """
    if order not in _ARC_COSINES:
        raise InputError(f"there is no arc-cosine kernel of order {order!r} here. Give 0, 1 or 2.")
    pair = _first_layer(inputs, inputs if other is None else other, float(inputs.shape[1]), 0.0)
    sizes = (pair.left * pair.right).sqrt()
    return sizes**order * _ARC_COSINES[order](pair.angle) / math.pi


def distance_to_infinite_width(
    kernel: Float[Tensor, "n m *c"], limit: Float[Tensor, "n m"], *, outputs: int
) -> Float[Tensor, ""]:
    """Return ``|K - T| / |T|``, a finite network's distance from its limit ``T``.

    At initialization it falls as ``width^-1/2``, and grows with depth. Only for networks in the NTK
    parameterization: those of torch's own layers have kernels that grow with the width.

    Args:
        kernel: Full kernel (N, M, C, C), compared with ``T`` times the identity over outputs; or
            trace kernel (N, M), a sum over outputs, compared with ``C T``.
        limit: ``ntk`` of ``infinite_width_kernels``.
        outputs: C.

    Returns:
        A ratio without unit in [0, inf).

    Raises:
        KernelMismatchError: If the shapes do not fit, or the limit is zero.

    Source:
        The rate: Jacot et al., NeurIPS 2018, arXiv:1806.07572 (convergence); as a power of the
        width it is the fluctuation of a mean over that many neurons.
    """
    same = torch.eye(outputs, dtype=limit.dtype, device=limit.device)
    if kernel.ndim == 4:
        full = flatten_kernel(limit[:, :, None, None] * same)
        return relative_kernel_change(flatten_kernel(kernel), full)
    if kernel.ndim != 2:
        raise KernelMismatchError(
            f"the kernel has shape {tuple(kernel.shape)}, which is neither a trace kernel (N, M) "
            "nor a full one (N, M, C, C), so it has no limit to be compared with."
        )
    return relative_kernel_change(kernel, outputs * limit)


def _per_layer(variance: float | Sequence[float], depth: int, name: str) -> list[float]:
    values = [variance] * (depth + 1) if isinstance(variance, int | float) else list(variance)
    if len(values) != depth + 1 or not all(0 <= value < math.inf for value in values):
        raise InputError(
            f"the {name} variances {values} do not fit {depth} hidden layers. Give one number, or "
            f"{depth + 1} of them that are finite and not negative: one per layer, the input's "
            "first."
        )
    return values


def _first_layer(rows: Tensor, others: Tensor, v_w: float, v_b: float) -> _Pair:
    """Moments of the first pre-activations: a bias is one more input, of the same value for all."""

    def scaled(x: Tensor) -> Tensor:
        wide = x.to(widest_float(x.device)) * math.sqrt(v_w / x.shape[1])
        return torch.nn.functional.pad(wide, (0, 1), value=math.sqrt(v_b))

    x, y = scaled(rows), scaled(others)
    left, right = x.square().sum(dim=1)[:, None], y.square().sum(dim=1)[None, :]
    tiny = torch.finfo(x.dtype).tiny  # a zero vector has no direction, and any will do
    u, v = x / left.sqrt().clamp(min=tiny), y / right.sqrt().mT.clamp(min=tiny)
    # Kahan's angle: right to the last digit for equal and for opposite vectors. Distances must be
    # summed as differences: through a matrix product they lose half their digits.
    exactly = "donot_use_mm_for_euclid_dist"
    apart, together = (torch.cdist(u, w, compute_mode=exactly) for w in (v, -v))
    return _Pair(left, right, x @ y.mT, 2 * torch.atan2(apart, together))


def _affine(behind: _Dual, v_w: float, v_b: float) -> _Pair:
    """Moments of the next pre-activations."""
    left, right = v_w * behind.left, v_w * behind.right
    sizes = ((left + v_b) * (right + v_b)).sqrt()
    tiny = torch.finfo(sizes.dtype).tiny
    # sqrt((l + b)(r + b)) - (sqrt(l r) + b), without the difference of nearly equal numbers.
    apart = v_b * (left.sqrt() - right.sqrt()).square()
    gap = v_w * behind.gap + apart / (sizes + (left * right).sqrt() + v_b).clamp(min=tiny)
    # 1 - cos(angle) = gap / sizes; above 2 by rounding only.
    half = (gap / sizes.clamp(min=tiny) / 2).clamp(max=1).sqrt()
    return _Pair(left + v_b, right + v_b, v_w * behind.cross + v_b, 2 * torch.asin(half))


def _relu(pair: _Pair) -> _Dual:
    sizes, a = (pair.left * pair.right).sqrt(), pair.angle
    bend = (a * a.cos() - a.sin()) / math.pi  # J_1 / pi = cos a - bend
    gap = sizes * (2 * (a / 2).sin().square() + bend).clamp(min=0) / 2
    cross = sizes * _ARC_COSINES[1](a) / (2 * math.pi)
    slope = _ARC_COSINES[0](a) / (2 * math.pi)
    return _Dual(pair.left / 2, pair.right / 2, cross, gap, slope)


def _erf(pair: _Pair) -> _Dual:
    """No angle is needed: the kernels of smooth activations are smooth in the covariance."""
    left, right = 1 + 2 * pair.left, 1 + 2 * pair.right

    def moment(covariance: Tensor, sizes: Tensor) -> Tensor:
        return 2 / math.pi * torch.asin(2 * covariance / sizes)  # its argument is below 1

    behind = [moment(x, 1 + 2 * x) for x in (pair.left, pair.right)]
    cross = moment(pair.cross, (left * right).sqrt())
    gap = ((behind[0] * behind[1]).sqrt() - cross).clamp(min=0)
    slope = 4 / math.pi / (left * right - 4 * pair.cross.square()).sqrt()
    return _Dual(behind[0], behind[1], cross, gap, slope)


def _linear(pair: _Pair) -> _Dual:
    gap = (pair.left * pair.right).sqrt() * 2 * (pair.angle / 2).sin().square()
    return _Dual(pair.left, pair.right, pair.cross, gap, torch.ones_like(pair.cross))


_DUALS: dict[str, Callable[[_Pair], _Dual]] = {"relu": _relu, "erf": _erf, "linear": _linear}

_ARC_COSINES: dict[int, Callable[[Tensor], Tensor]] = {
    0: lambda a: math.pi - a,
    1: lambda a: a.sin() + (math.pi - a) * a.cos(),
    2: lambda a: 3 * a.sin() * a.cos() + (math.pi - a) * (1 + 2 * a.cos().square()),
}
