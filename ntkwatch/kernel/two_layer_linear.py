"""The two-layer linear network: feature learning whose end is known in closed form.

Tensors in, tensors out: nothing here knows of models, steps or files. The network is
``f(x) = a' W x / (gamma m)`` with all weights N(0, 1) and infinite width m, trained by gradient
flow on the square loss of ``f - f_0`` at the n unit vectors, to the end. One number decides
everything: its strength ``gamma Y``, with Y the norm of the targets.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError

__all__ = ["TwoLayerLinear", "two_layer_linear"]


class TwoLayerLinear(NamedTuple):
    """What every measure reads at the end of training.

    Attributes:
        relative_kernel_change: ``|K - K_0| / |K_0|``, no unit, in [0, inf).
        kernel_angle: Radians; below about ``1 / sqrt(n)`` however strong the training.
        kernel_distance: ``1 - cos``, no unit.
        readout_angle: Angle of the read-out's own kernel, radians; that of the first layer is 0.
        target_alignment: Cosine of the kernel, not centred, with that of the targets.
        linearization_error: No unit, in [0, 1); independent of n.
        displacement_ratio: No unit, in (0, 1]; independent of n.
        eigenvalue_growth: Factors along the targets and across them.
    """

    relative_kernel_change: Float[Tensor, ""]
    kernel_angle: Float[Tensor, ""]
    kernel_distance: Float[Tensor, ""]
    readout_angle: Float[Tensor, ""]
    target_alignment: Float[Tensor, ""]
    linearization_error: Float[Tensor, ""]
    displacement_ratio: Float[Tensor, ""]
    eigenvalue_growth: Float[Tensor, " 2"]


def two_layer_linear(strength: Float[Tensor, ""], *, samples: int) -> TwoLayerLinear:
    """Return the end of training in closed form.

    With ``q = sqrt(1 + strength^2)`` the kernel goes from ``2 I`` to ``(1 + q) I + (q - 1) u u'``,
    u the direction of the targets: ``(a +- W u) / sqrt(2)`` grow and shrink by ``exp(+-tau)``,
    ``sinh(2 tau) = strength``, and all else of W stays.

    Args:
        strength: ``gamma Y``, above 0. Below about 0.3 lazy; a finite width m adds ``m^-1/2``.
        samples: n, at least 2.

    Returns:
        All measures. Differences from 1 are never taken, so that weak training keeps its digits.

    Raises:
        InputError: If the strength is not positive, or there are fewer than two samples.

    Source:
        Derived above; the network is that of Bordelon and Pehlevan, NeurIPS 2022, arXiv:2205.09653.
    """
    if samples < 2 or not bool(strength > 0):
        raise InputError(
            f"strength={strength:.3g} on {samples} samples leaves nothing to turn. Give a strength "
            "above 0 and at least 2 samples."
        )
    q = (1 + strength.square()).sqrt()
    grown = strength.square() / (1 + q)  # q - 1
    tau = torch.asinh(strength) / 2
    across = grown * math.sqrt(1 - 1 / samples)  # of K - K_0, what is orthogonal to the identity

    def angle(rest: Tensor) -> Tensor:
        """Of ``rest I + (q - 1) u u'`` from the identity."""
        return torch.atan2(across, math.sqrt(samples) * (rest + grown / samples))

    whole = angle(1 + q)
    c = tau.cosh()
    size = (samples * (1 + q).square() + 2 * (1 + q) * grown + grown.square()).sqrt()
    return TwoLayerLinear(
        relative_kernel_change=grown * math.sqrt(samples + 3) / (2 * math.sqrt(samples)),
        kernel_angle=whole,
        kernel_distance=2 * (whole / 2).sin().square(),
        readout_angle=angle(torch.ones_like(q)),
        target_alignment=2 * q / size,
        linearization_error=2 * (tau / 2).sinh().square() / c,
        displacement_ratio=(2 / (c * (c + 1))).sqrt(),
        eigenvalue_growth=torch.stack([q, (1 + q) / 2]),
    )
