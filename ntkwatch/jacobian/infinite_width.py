"""How far a finite fully connected network's kernel is from that of infinite width.

The limit is that of the *NTK parameterization*: ``z = sqrt(v_w / fan_in) W h + sqrt(v_b) b`` with W
and b of variance 1. Layers of torch hold ``sqrt(v_w / fan_in) W`` itself, and their kernel grows
with the width; so the network is taken over into the other parameterization, with the same outputs,
and its kernel there is compared.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from ntkwatch.errors import InputError
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.kernel.analytic import (
    Activation,
    distance_to_infinite_width,
    infinite_width_kernels,
)

__all__ = ["Variances", "WidthGap", "infinite_width_gap"]

Variances: TypeAlias = Literal["empirical", "torch"] | float | Sequence[float]

# What activations are told apart by; 0 is where a leaky slope would hide.
_POINTS = torch.linspace(-3, 3, 61, dtype=torch.float64)
_KNOWN: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "erf": torch.erf,
    "linear": torch.clone,
}
_PASSED = (nn.Identity, nn.Flatten, nn.Dropout)  # nothing in evaluation mode, or a shape


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthGap:
    """A network's kernel beside that of infinite width.

    Attributes:
        distance: ``|K - T| / |T|`` over all inputs and outputs, no unit, in [0, inf).
        kernel: ``K`` in the NTK parameterization, (N, N, C, C).
        limit: ``T`` of one output, (N, N); outputs share it and are uncorrelated.
        widths: Of the hidden layers.
        activation: Between layers.
        weight_variance: ``v_w`` of each layer as taken, the input's first.
        bias_variance: ``v_b`` of each layer as taken.
    """

    distance: float
    kernel: Tensor
    limit: Tensor
    widths: tuple[int, ...]
    activation: Activation
    weight_variance: tuple[float, ...]
    bias_variance: tuple[float, ...]


def infinite_width_gap(
    model: nn.Module,
    inputs: Tensor,
    *,
    weight_variance: Variances = "empirical",
    bias_variance: Variances = "empirical",
    memory_budget: str | int = "1GiB",
) -> WidthGap:
    """Return how far the kernel of a fully connected network is from its infinite-width limit.

    At initialization the distance falls as ``width^-1/2``: one hidden layer of 1024 ReLUs is about
    7 % off, three are about 11 %. After training it also holds what was learned.

    Args:
        model: ``nn.Sequential`` (nested ones, too) of ``nn.Linear`` layers with one activation
            between them: ``nn.ReLU``, or any module that computes ``c max(z, 0)``, ``c erf(z)`` or
            ``c z``. ``nn.Flatten``, ``nn.Identity`` and ``nn.Dropout`` are passed over.
        inputs: One input per row.
        weight_variance: By which convention weights were drawn, ``v_w = fan_in Var(W)``. A number,
            or one per layer, if known (2 for He's normal initialization, 1 for LeCun's);
            "torch" for the default of ``nn.Linear``, uniform in ``+-fan_in^-1/2``, 1/3; "empirical"
            takes the mean square of each layer's own weights, right to ``(2 / weights)^1/2``.
        bias_variance: ``v_b = Var(b)``, likewise; torch's default is ``1 / (3 fan_in)``. A layer
            whose biases are zero has 0: they then count neither in outputs nor as parameters.
        memory_budget: Bytes that a kernel may take beyond a forward and a backward pass.

    Returns:
        The distance, both kernels, and the variances taken.

    Raises:
        InputError: If the network has another form, activations that have no limit here, or more
            than one kind of them.

    Source:
        Jacot et al., NeurIPS 2018, arXiv:1806.07572. Standard and NTK parameterization: Sohl-
        Dickstein et al. 2020, arXiv:2001.07301.
    """
    linears, activation, factors = _read(model)
    weights = _variances(weight_variance, linears, "weight", 1 / 3)
    torch_biases = [1 / (3 * linear.in_features) for linear in linears]
    biases = _variances(bias_variance, linears, "bias", torch_biases)
    flat = inputs.flatten(start_dim=1)
    # An activation of c max(z, 0) is max(z, 0) with weights of c^2 the variance behind it.
    behind = [v * c * c for v, c in zip(weights, factors, strict=True)]
    limit = infinite_width_kernels(
        flat,
        depth=len(linears) - 1,
        activation=activation,
        weight_variance=behind,
        bias_variance=biases,
    ).ntk
    taken = _TakenOver(linears, activation, weights, factors, biases)
    kernel = empirical_ntk(taken, flat, outputs="full", memory_budget=memory_budget).matrix
    outputs = linears[-1].out_features
    return WidthGap(
        distance=float(distance_to_infinite_width(kernel, limit, outputs=outputs)),
        kernel=kernel,
        limit=limit,
        widths=tuple(linear.out_features for linear in linears[:-1]),
        activation=activation,
        weight_variance=tuple(weights),
        bias_variance=tuple(biases),
    )


class _TakenOver(nn.Module):
    """The same network with weights of variance 1, multiplied in its forward pass."""

    def __init__(
        self,
        linears: Sequence[nn.Linear],
        activation: Activation,
        weights: Sequence[float],
        factors: Sequence[float],
        biases: Sequence[float],
    ) -> None:
        super().__init__()
        self.act = _KNOWN[activation]
        self.w, self.b = nn.ParameterList(), nn.ParameterDict()
        self.scales: list[tuple[float, float]] = []
        layers = zip(linears, weights, factors, biases, strict=True)
        for i, (linear, v_w, factor, v_b) in enumerate(layers):
            scale = math.sqrt(v_w / linear.in_features)
            self.scales.append((factor * scale, math.sqrt(v_b)))
            self.w.append(nn.Parameter(linear.weight.detach() / scale))
            if linear.bias is not None and v_b > 0:
                self.b[str(i)] = nn.Parameter(linear.bias.detach() / math.sqrt(v_b))

    def forward(self, h: Tensor) -> Tensor:
        for i, (w, (scale, bias_scale)) in enumerate(zip(self.w, self.scales, strict=True)):
            h = scale * (h if i == 0 else self.act(h)) @ w.mT
            if str(i) in self.b:
                h = h + bias_scale * self.b[str(i)]
        return h


def _read(model: nn.Module) -> tuple[list[nn.Linear], Activation, list[float]]:
    """Layers, the activation between them, and by what it is multiplied before each layer."""
    parts = [part for part in _parts(model) if not isinstance(part[1], _PASSED)]
    linears: list[nn.Linear] = []
    factors, kinds, factor = [], set(), None
    for name, part in parts:
        if isinstance(part, nn.Linear):
            if linears and factor is None:
                factor = 1.0
                kinds.add("linear")
            linears.append(part)
            factors.append(1.0 if factor is None else factor)
            factor = None
            continue
        found = _activation(part)
        if found is None or not linears or factor is not None:
            raise InputError(
                f"{name or 'the model'} is a {type(part).__name__}, of which no infinite-width "
                "kernel is known here. Give an nn.Sequential of nn.Linear with nn.ReLU, or a "
                "module that computes erf, between the layers."
            )
        kinds.add(found[0])
        factor = found[1]
    if not linears or factor is not None or len(kinds) > 1:
        raise InputError(
            f"the model has {len(linears)} linear layers and activations "
            f"{', '.join(sorted(kinds)) or 'none'}, and the kernel of infinite width is known here "
            "for one kind of activation between linear layers, the last of which gives the "
            "outputs. Give such a network, or a part of it."
        )
    kind: Activation = kinds.pop() if kinds else "linear"  # type: ignore[assignment]
    return linears, kind, factors


def _parts(model: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Sequential):
        return [(name, model)]
    inner = [_parts(part, f"{name}.{key}" if name else key) for key, part in model.named_children()]
    return [part for parts in inner for part in parts]


def _activation(part: nn.Module) -> tuple[Activation, float] | None:
    """Which activation a module computes, and times what; None for any other."""
    if any(True for _ in part.parameters()) or any(True for _ in part.children()):
        return None
    try:
        with torch.no_grad():
            values = part(_POINTS.clone())
    except Exception:  # not a function of one tensor, entry by entry
        return None
    if not isinstance(values, Tensor) or values.shape != _POINTS.shape:
        return None
    for kind, known in _KNOWN.items():
        plain = known(_POINTS)
        factor = float(values[-1] / plain[-1])
        if factor > 0 and torch.allclose(values.double(), factor * plain, rtol=1e-6, atol=1e-9):
            return kind, factor
    return None


def _variances(
    given: str | float | Sequence[float],
    linears: Sequence[nn.Linear],
    kind: str,
    default: float | Sequence[float],
) -> list[float]:
    """The variance of each layer, by the convention that was named."""
    if given == "torch":
        values = [default] * len(linears) if isinstance(default, float) else list(default)
        has_none = [kind == "bias" and linear.bias is None for linear in linears]
        return [0.0 if none else value for none, value in zip(has_none, values, strict=True)]
    if given == "empirical":
        return [_mean_square(linear, kind) for linear in linears]
    if isinstance(given, str):
        raise InputError(
            f"{kind}_variance={given!r} names no convention. Give 'empirical', 'torch' or numbers."
        )
    values = [given] * len(linears) if isinstance(given, int | float) else list(given)
    if len(values) != len(linears):
        raise InputError(
            f"there are {len(values)} {kind} variances and {len(linears)} linear layers. Give one "
            "number, or one for each layer."
        )
    if kind == "weight" and not all(value > 0 for value in values):
        raise InputError(
            f"the weight variances {values} are not all positive, so weights have no scale. Give "
            "fan_in times the variance that they were drawn with."
        )
    return [float(value) for value in values]


def _mean_square(linear: nn.Linear, kind: str) -> float:
    if kind == "bias":
        return 0.0 if linear.bias is None else float(linear.bias.detach().double().square().mean())
    found = linear.in_features * float(linear.weight.detach().double().square().mean())
    if found == 0:
        raise InputError(
            f"the weights of a layer of {linear.out_features} outputs are all zero, so they have "
            "no scale of their own. Give weight_variance= as they are meant to be drawn."
        )
    return found
