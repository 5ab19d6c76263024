"""What a kernel costs, parameter by parameter, as a table."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["KernelPlan", "Step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is computed for one parameter.

    Attributes:
        parameter: Its name.
        operations: The operations that use it, as autograd names them.
        route: "structured", or "generic": an operation without a rule is called sample by sample.
        order: How its part of the kernel is contracted: "ghost", "mixed", "materialise" or "rows".
        length: Positions T per sample; 0 for rows.
        depth: Activations d per position; 0 for rows.
        width: Cotangents e per position; the parameter's size for rows.
        multiplications: Of the contraction, symmetry counted.
        nbytes: Of its operands, for all samples and directions.
        passes: Backward passes that it shares in.
    """

    parameter: str
    operations: tuple[str, ...]
    route: Literal["structured", "generic"]
    order: str
    length: int
    depth: int
    width: int
    multiplications: float
    nbytes: int
    passes: int


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """The steps of a kernel; ``print`` shows them as a table.

    Attributes:
        steps: One per parameter that the structured engine serves.
        passes: Backward passes to activations in all.
    """

    steps: tuple[Step, ...] = ()
    passes: int = 0

    @property
    def multiplications(self) -> float:
        """Of all contractions together, without the passes."""
        return sum(step.multiplications for step in self.steps)

    def __str__(self) -> str:
        if not self.steps:
            return "No parameter is served by the structured engine."
        head = (
            "parameter",
            "operations",
            "route",
            "order",
            "T",
            "d",
            "e",
            "mults",
            "bytes",
            "passes",
        )
        body = [
            (
                step.parameter,
                ", ".join(name.removesuffix("Backward0") for name in step.operations),
                step.route,
                step.order,
                str(step.length or "-"),
                str(step.depth or "-"),
                str(step.width),
                _count(step.multiplications),
                _count(step.nbytes),
                str(step.passes),
            )
            for step in self.steps
        ]
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.rjust(w) if i >= 4 else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (head, *body)
        ]
        lines.append(
            f"{_count(self.multiplications)} multiplications in contractions, "
            f"{self.passes} backward passes to activations"
        )
        return "\n".join(lines)


def _count(number: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}P"
