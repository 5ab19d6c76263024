"""Intervals over the choice of probe points, by a weighted bootstrap that is right for kernels.

Tensors in, tensors out. Drawing samples with replacement would put copies of a sample beside
itself and so diagonal entries off the diagonal. Weights avoid that: entry (i, j) counts
``w_i w_j``, and a diagonal entry counts ``w_i`` rather than ``w_i^2``, since ``E[w_i^2] = 2 - 1/N``
would count it twice. Weights are of no use to eigenvalues: those are taken of halves of the probe.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ntkwatch.kernel.gram import inner, widest_float

__all__ = [
    "angle_samples",
    "bootstrap_weights",
    "central_interval",
    "half_samples",
    "relative_change_samples",
    "residual_ratio_samples",
    "sub_kernels",
]


def bootstrap_weights(
    n: int, draws: int, *, strata: Tensor | None = None, seed: int = 0
) -> Float[Tensor, "draws n"]:
    """Return multinomial weights: how often each sample is drawn, N draws with replacement.

    Args:
        n: Number of samples.
        draws: Number of bootstrap replicates.
        strata: A class label per sample; each class keeps its size in every replicate.
        seed: Of the drawing.

    Returns:
        Non-negative whole numbers that add up to N in each row.
    """
    generator = torch.Generator().manual_seed(seed)
    # On the CPU by name: the caller may have set another default device.
    one = torch.zeros(n, dtype=torch.long, device="cpu")
    labels = one if strata is None else strata.cpu().long()
    weights = torch.zeros(draws, n, dtype=torch.float64, device="cpu")
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        shape = (draws, len(members))
        drawn = torch.randint(len(members), shape, generator=generator, device="cpu")
        ones = torch.ones_like(drawn, dtype=torch.float64)
        weights.scatter_add_(1, members[drawn], ones)
    return weights


def half_samples(
    n: int, draws: int, *, strata: Tensor | None = None, seed: int = 0
) -> Int[Tensor, "draws h"]:
    """Return random halves of the probe, for numbers that take eigenvalues.

    Drawn without replacement, so that no sample stands beside itself. Their spread is that of the
    whole probe, since half a sample has twice the variance and half of that is shared; their centre
    is that of **half as many points**, biased as such. Say so beside the interval.

    Args:
        n: Number of samples.
        draws: Number of halves.
        strata: A class label per sample; each class gives half of its samples, rounded down.
        seed: Of the drawing.

    Returns:
        Indices of the samples of each half, in increasing order.

    Source:
        The delete-d jackknife with d = N/2. Drawn without replacement, the mean of h out of N
        values has the variance ``(1/h - 1/N) s^2``, which at h = N/2 is that of all N, ``s^2 / N``.
    """
    generator = torch.Generator().manual_seed(seed)
    # On the CPU by name: the caller may have set another default device.
    one = torch.zeros(n, dtype=torch.long, device="cpu")
    labels = one if strata is None else strata.cpu().long()
    parts = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        keys = torch.rand(draws, len(members), generator=generator, device="cpu")
        parts.append(members[keys.argsort(dim=1)[:, : len(members) // 2]])
    return torch.cat(parts, dim=1).sort(dim=1).values


def sub_kernels(
    kernel: Float[Tensor, "n n"], subsets: Int[Tensor, "draws h"]
) -> Float[Tensor, "draws h h"]:
    """Return the kernel of each subset of the samples.

    Args:
        kernel: Any square kernel.
        subsets: Indices of samples, from ``half_samples``.

    Returns:
        One kernel per subset.
    """
    subsets = subsets.to(kernel.device)
    return kernel[subsets[:, :, None], subsets[:, None, :]]


def angle_samples(
    kernel: Float[Tensor, "n n"],
    reference: Float[Tensor, "n n"],
    weights: Float[Tensor, "draws n"],
) -> Float[Tensor, " draws"]:
    """Return the angle between two kernels in every replicate.

    Args:
        kernel: Kernel now.
        reference: Reference kernel.
        weights: From ``bootstrap_weights``.

    Returns:
        Radians in [0, pi/2], NaN where a replicate has no kernel left.
    """
    now, then, weights = _wide(kernel, reference, weights)
    scale = inner(now, then) / inner(then, then)
    # What is not along the reference is taken off beforehand: it keeps its digits if it is tiny.
    rest = now - scale * then
    size = _weighted(then.square(), weights).sqrt()
    along = _weighted(rest * then, weights) / size
    across = (_weighted(rest.square(), weights) - along.square()).clamp(min=0).sqrt()
    angles = torch.atan2(across, scale * size + along)
    return torch.where(_weighted(now.square(), weights) > 0, angles, torch.nan)


def relative_change_samples(
    kernel: Float[Tensor, "n n"],
    reference: Float[Tensor, "n n"],
    weights: Float[Tensor, "draws n"],
) -> Float[Tensor, " draws"]:
    """Return ``|K - R| / |R|`` in every replicate.

    Args:
        kernel: Kernel now.
        reference: Reference kernel.
        weights: From ``bootstrap_weights``.

    Returns:
        Ratios without unit.
    """
    now, then, weights = _wide(kernel, reference, weights)
    return (_weighted((now - then).square(), weights) / _weighted(then.square(), weights)).sqrt()


def residual_ratio_samples(
    residual: Float[Tensor, " n"], change: Float[Tensor, " n"], weights: Float[Tensor, "draws n"]
) -> Float[Tensor, " draws"]:
    """Return ``sqrt(sum w r / sum w c)`` in every replicate.

    Args:
        residual: Squared residual per sample.
        change: Squared change per sample.
        weights: From ``bootstrap_weights``.

    Returns:
        Ratios without unit.
    """
    weights = weights.to(device=residual.device, dtype=residual.dtype)
    return ((weights @ residual) / (weights @ change)).sqrt()


def central_interval(samples: Float[Tensor, " draws"], level: float = 0.95) -> Float[Tensor, " 2"]:
    """Return the central interval that holds a share ``level`` of the finite replicates.

    Args:
        samples: One value per replicate.
        level: Share in (0, 1).

    Returns:
        Lower and upper end; NaN where no replicate is finite.
    """
    finite = samples[samples.isfinite()]
    if len(finite) == 0:
        return torch.full((2,), torch.nan, dtype=samples.dtype, device=samples.device)
    ends = [(1 - level) / 2, (1 + level) / 2]
    return torch.quantile(finite, torch.tensor(ends, dtype=finite.dtype, device=finite.device))


def _weighted(squares: Tensor, weights: Tensor) -> Tensor:
    """Sum of entries with weight w_i w_j off the diagonal and w_i on it, per replicate."""
    diagonal = squares.diagonal()
    off = squares - torch.diag(diagonal)
    return ((weights @ off) * weights).sum(dim=1) + weights @ diagonal


def _wide(kernel: Tensor, reference: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = widest_float(kernel.device)
    return kernel.to(wide), reference.to(wide), weights.to(device=kernel.device, dtype=wide)
