"""The way that a kernel took: its speed, its detours, and the angles between all its stations.

Tensors in, tensors out: nothing here knows of models, steps or files. Stations are kernels of one
probe in the order in which they were taken. Angles are those of ``kernel_angle``, a metric on
directions, so a path is never shorter than its ends are apart.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from ntkwatch.errors import InputError
from ntkwatch.kernel.drift import kernel_angle

__all__ = ["angle_matrix", "angular_velocity", "path_length_ratio", "step_angles"]

# An angle under this many noise floors is not distinguishable from zero.
_FLOORS = 3.0


def step_angles(kernels: Sequence[Float[Tensor, "n n"]]) -> Float[Tensor, " t"]:
    """Return the angle between each station and the next.

    Args:
        kernels: T + 1 stations.

    Returns:
        T angles, radians in [0, pi/2].

    Raises:
        InputError: If there are fewer than two stations.
    """
    _check_stations(kernels, "an angle between them")
    return torch.stack([kernel_angle(kernels[i + 1], kernels[i]) for i in range(len(kernels) - 1)])


def angular_velocity(
    kernel: Float[Tensor, "n n"], previous: Float[Tensor, "n n"], *, elapsed: float
) -> Float[Tensor, ""]:
    """Return ``angle(K_t, K_{t+dt}) / dt``, how fast the kernel turns.

    The angle, not the distance: ``1 - cos`` is quadratic in ``dt``, so over ``dt`` it has no limit.

    Args:
        kernel: Kernel at ``t + dt``.
        previous: Kernel at ``t``.
        elapsed: ``dt`` in epochs, or in any unit that stays the same for a run.

    Returns:
        Radians per unit of ``elapsed``, in [0, inf). Below the noise floor it reads noise over
        ``dt``; at the edge of stability it is large without net motion (see ``path_length_ratio``).

    Raises:
        InputError: If no time has passed.

    Source:
        Fort et al., NeurIPS 2020, arXiv:2010.15110, who divide the distance by ``dt``.
    """
    if not elapsed > 0:
        raise InputError(
            f"{elapsed} epochs lie between the two kernels, so a velocity is undefined. Give them "
            "in the order in which they were taken, with the time between them."
        )
    return kernel_angle(kernel, previous) / elapsed


def path_length_ratio(
    kernels: Sequence[Float[Tensor, "n n"]], *, noise_floor: float = 0.0
) -> Float[Tensor, ""]:
    """Return ``sum_i angle(K_i, K_{i+1}) / angle(K_0, K_T)``.

    1 is a steady rotation, far above 1 wandering or oscillation. It depends on how often the kernel
    was taken: compare runs of one schedule only.

    Args:
        kernels: Stations ``K_0`` to ``K_T``.
        noise_floor: Angle that an unchanged kernel reads, radians.

    Returns:
        A ratio without unit, at least 1 up to rounding. NaN while the ends are no further apart
        than three noise floors: the path is then one of noise.

    Raises:
        InputError: If there are fewer than two stations.

    Source:
        This project's own.
    """
    length = step_angles(kernels).sum()
    apart = kernel_angle(kernels[-1], kernels[0])
    return torch.where(apart > _FLOORS * noise_floor, length / apart, torch.nan)


def angle_matrix(kernels: Sequence[Float[Tensor, "n n"]]) -> Float[Tensor, "t t"]:
    """Return the angles between all stations: when the kernel moved, and since when it rests.

    Args:
        kernels: T stations.

    Returns:
        Radians in [0, pi/2], symmetric, with a diagonal of exactly 0.

    Raises:
        InputError: If there are fewer than two stations.

    Source:
        This project's own.
    """
    _check_stations(kernels, "a matrix of angles")
    pairs = [kernel_angle(a, b) for a, b in combinations(kernels, 2)]
    upper = torch.stack(pairs)
    angles = upper.new_zeros(len(kernels), len(kernels))
    above = torch.ones_like(angles, dtype=torch.bool).triu(diagonal=1)
    angles[above] = upper  # row by row, which is the order of the pairs
    return angles + angles.mT


def _check_stations(kernels: Sequence[Tensor], what: str) -> None:
    if len(kernels) < 2:
        raise InputError(
            f"there are {len(kernels)} kernels, and {what} takes at least two. Observe the model "
            "more often."
        )
