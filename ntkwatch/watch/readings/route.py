"""The way that a kernel took from observation to observation: its speed and its detours."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.jacobian.functional import Params
from ntkwatch.jacobian.shards import is_shard
from ntkwatch.kernel.path import angular_velocity
from ntkwatch.kernel.sizes import squared_norm
from ntkwatch.watch.readings.look import Seen
from ntkwatch.watch.record.records import Observation

__all__ = [
    "Route",
    "Station",
    "route_numbers",
    "station_of",
    "weight_path_numbers",
    "weights_of",
]

# Ends that are less apart than this many noise floors are joined by a path of noise.
_FLOORS = 3.0


class Station(NamedTuple):
    """An earlier observation, as far as the next one needs it.

    Attributes:
        step: Optimizer steps taken then.
        kernel: Trace kernel, or None where it is not kept.
        length: Path length until then, radians; None where some of the way is not known.
        weights: Copies of the watched parameters, or None where they are not kept.
        weight_path: Length of their path until then; None where some of it is not known.
    """

    step: int
    kernel: Tensor | None
    length: float | None
    weights: Params | None = None
    weight_path: float | None = None


class Route:
    """The last two stations, since a step may be observed again."""

    def __init__(self) -> None:
        self._stations: tuple[Station, ...] = ()

    def before(self, step: int) -> Station | None:
        """Return the last station before a step, or None."""
        earlier = [station for station in self._stations if station.step < step]
        return earlier[-1] if earlier else None

    def pass_by(self, station: Station) -> None:
        """Note an observation."""
        before = self.before(station.step)
        self._stations = (station,) if before is None else (before, station)

    @property
    def weights(self) -> dict[int, Params]:
        """Copies of the watched parameters at the last stations, by step, where they are kept.

        Not where a process has but shards of them, which no checkpoint of a single file can hold.
        """
        kept = {s.step: s.weights for s in self._stations if s.weights is not None}
        return {step: w for step, w in kept.items() if not any(map(is_shard, w.values()))}

    def start_over(self) -> None:
        """Forget everything."""
        self._stations = ()


def weights_of(seen: Seen) -> Params:
    """Return the watched parameters as they are at a look."""
    params = seen.now.problem.function.params
    return {name: params[name].detach() for name in seen.now.problem.names}


def station_of(seen: Seen, observation: Observation) -> Station:
    """Return what the next observation needs of this one.

    Args:
        seen: The look.
        observation: Made of it.

    Returns:
        The station; with copies of the weights only where their path is wanted.
    """
    kept = None
    if seen.settings.metrics == "full":
        kept = {name: tensor.clone() for name, tensor in weights_of(seen).items()}
    return Station(
        observation.step,
        None if seen.now.kernel is None else seen.now.kernel.trace,
        observation.path_length,
        kept,
        observation.displacement_path,
    )


def weight_path_numbers(
    weights: Params,
    before: Station | None,
    *,
    displacement: float | None,
    left_out: dict[str, str],
) -> dict[str, Any]:
    """Return length and detours of the weights' way since the start, as far as it was observed.

    Args:
        weights: The watched parameters now.
        before: The observation before, or None at the reference.
        displacement: From the reference, or None.
        left_out: Takes the reasons for numbers that are not defined.

    Returns:
        Values by field name.
    """
    if before is None:
        return {"displacement_path": 0.0}
    if before.weights is None or before.weight_path is None:
        left_out["displacement_path"] = "the weights of an observation before are not kept"
        return {}
    squares = [squared_norm(weights[name], minus=then) for name, then in before.weights.items()]
    path = before.weight_path + float(torch.stack(squares).sum().sqrt())
    if not displacement:
        left_out["displacement_path_ratio"] = "the weights are where they were at the start"
        return {"displacement_path": path}
    return {"displacement_path": path, "displacement_path_ratio": path / displacement}


def route_numbers(
    kernel: Tensor | None,
    step: int,
    before: Station | None,
    *,
    angle: float | None,
    floor: float,
    left_out: dict[str, str],
) -> dict[str, Any]:
    """Return velocity, length and detours of the kernel's way since the start.

    Args:
        kernel: Trace kernel now, or None.
        step: Optimizer steps taken so far.
        before: The observation before, or None at the reference.
        angle: From the reference, radians, or None.
        floor: What that angle reads if there is none.
        left_out: Takes the reasons for numbers that are not defined.

    Returns:
        Values by field name.
    """
    if kernel is None:
        return {}
    if before is None:
        return {"path_length": 0.0}
    if before.kernel is None:
        left_out["angular_velocity"] = "the kernel of the observation before is not kept"
        left_out["path_length"] = left_out["angular_velocity"]
        return {}
    try:
        velocity = float(angular_velocity(kernel, before.kernel, elapsed=float(step - before.step)))
    except (InputError, KernelMismatchError) as error:
        left_out["angular_velocity"] = str(error)
        return {}
    values: dict[str, Any] = {"angular_velocity": velocity}
    if before.length is None:
        left_out["path_length"] = "a part of the way was not observed"
        return values
    length = before.length + velocity * (step - before.step)
    values["path_length"] = length
    if angle is not None and angle > _FLOORS * floor:
        values["path_length_ratio"] = length / angle
    else:
        left_out["path_length_ratio"] = "the kernel is where it was at the start, up to noise"
    return values
