"""The angles between the kernels of one run, in plain numbers; and as ``angles.json``.

No torch here, so that they are read and drawn where torch is not installed.
"""

import math
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = ["ANGLES_FILE", "KernelAngles", "angles_from_plain"]

ANGLES_FILE = "angles.json"
_FORM = 1

_Row = tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelAngles:
    """How far the kernels of a run have turned from each other.

    Attributes:
        steps: Of the kernels that were kept, in order; the first and the last are always there.
        below: Row i holds the angles of kernel i to kernels 0 to i - 1, radians in [0, pi/2];
            None where one of the two is zero or was not there to be compared.
        layers: Per module, the angle of its part of each kernel to that of the last, radians.
        medians: Median of these over modules with a matrix weight, by kernel.
        left_out: Why there are no kernels to compare, or no layers; or None.
    """

    steps: tuple[int, ...] = ()
    below: tuple[_Row, ...] = ()
    layers: dict[str, _Row] = field(default_factory=dict)
    medians: _Row = ()
    left_out: str | None = None

    def between(self, i: int, j: int) -> float | None:
        """Return the angle between two kernels by their place in ``steps``."""
        return 0.0 if i == j else self.below[max(i, j)][min(i, j)]

    @property
    def matrix(self) -> tuple[_Row, ...]:
        """All angles, row by row."""
        count = range(len(self.steps))
        return tuple(tuple(self.between(i, j) for j in count) for i in count)

    def only(self, steps: Container[int]) -> Self:
        """Return what is left where only some steps count; angles to the last kernel go."""
        places = [place for place, step in enumerate(self.steps) if step in steps]
        return type(self)(
            steps=tuple(self.steps[i] for i in places),
            below=tuple(tuple(self.below[i][j] for j in places if j < i) for i in places),
            left_out=self.left_out,
        )

    def to_plain(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "ntkwatch_angles": _FORM,
            "steps": list(self.steps),
            "below": [list(row) for row in self.below],
            "layers": {name: list(row) for name, row in self.layers.items()},
            "medians": list(self.medians),
            "left_out": self.left_out,
        }


def angles_from_plain(plain: Any) -> KernelAngles:
    """Return what ``to_plain`` gave.

    Args:
        plain: Parsed JSON.

    Returns:
        The angles.

    Raises:
        ValueError: If it is not of that form, or of a newer one.
    """
    if not isinstance(plain, dict) or plain.get("ntkwatch_angles") != _FORM:
        raise ValueError("not angles as this version of ntkwatch writes them")
    try:
        steps = tuple(int(step) for step in plain["steps"])
        below = tuple(_row(row) for row in plain["below"])
        layers = {str(name): _row(row) for name, row in plain["layers"].items()}
        medians, why = _row(plain["medians"]), plain.get("left_out")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not angles as this version of ntkwatch writes them: {error}") from error
    lengths = {len(row) for row in layers.values()} | {len(medians)}
    whole = [len(row) for row in below] == list(range(len(steps)))
    if not whole or sorted(set(steps)) != list(steps) or not lengths <= {0, len(steps)}:
        raise ValueError("angles of another number of kernels than there are steps")
    return KernelAngles(
        steps=steps,
        below=below,
        layers=layers,
        medians=medians,
        left_out=why if isinstance(why, str) else None,
    )


def _row(values: Any) -> _Row:
    found = tuple(None if value is None else float(value) for value in values)
    if any(value is not None and not 0 <= value <= math.pi for value in found):
        raise TypeError("an angle outside of 0 to pi")
    return found
