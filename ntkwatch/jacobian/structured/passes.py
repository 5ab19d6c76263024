"""Forward passes with their uses sorted, and what backward passes bring back from them."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.outputs import Reduction
from ntkwatch.jacobian.structured.contraction import Factors
from ntkwatch.jacobian.structured.graph import Edge, dtype_of, shape_of
from ntkwatch.jacobian.structured.operands import Bundle, Parameter, rows_of
from ntkwatch.jacobian.structured.tagging import OwnersByTags
from ntkwatch.jacobian.structured.tape import Tape
from ntkwatch.jacobian.structured.uses import Use, find_uses

__all__ = ["Collected", "Pass", "PassRows", "run_pass"]


class Pass:
    """A forward pass over some samples with the uses of its parameters.

    Args:
        tape: The forward pass.
        uses: Where each parameter meets the data.

    Attributes:
        tape: The pass.
        parameters: Those that the outputs depend on, by name.
    """

    def __init__(self, tape: Tape, uses: Mapping[str, Sequence[Use]]) -> None:
        self.tape = tape
        self.parameters = {
            name: Parameter(tape, name, found) for name, found in uses.items() if found
        }

    @property
    def count(self) -> int:
        """Samples that were asked for."""
        return self.tape.kept

    def cotangents(self, edges: Sequence[Edge], row: int) -> dict[Edge, Tensor]:
        """Return the cotangents of one direction, zeros where there are none."""
        found = self.tape.cotangents(edges, self.tape.direction(row))
        return {
            edge: _zeros(edge, self.tape.outputs.device) if c is None else c
            for edge, c in zip(edges, found, strict=True)
        }


def run_pass(
    function: ModelFunction,
    inputs: Inputs,
    reduction: Reduction,
    names: Sequence[str],
    buffers: Params,
    budget: int,
) -> Pass:
    """Run a forward pass and find out where its parameters meet the data.

    Args:
        function: The model as a function.
        inputs: Samples.
        reduction: Output directions.
        names: Parameters to differentiate by.
        buffers: Buffers to use instead of the model's.
        budget: Bytes that cotangents may take.

    Returns:
        The pass.
    """
    tape = Tape(function, inputs, reduction, names, buffers)
    return Pass(tape, find_uses(tape, function.model, OwnersByTags(tape, budget)))


class Collected:
    """The operands of some parameters for some directions, made pass by pass.

    Args:
        side: A forward pass.
        names: Parameters.
        as_rows: Those of them whose gradients are wanted as rows.
        directions: Output directions.
        as_given: Whether cotangents may stay in the order in which an operation gave them, which
            saves moving them twice; otherwise positions come before directions in memory.

    Attributes:
        rows: (n, directions, p) for each parameter in ``as_rows``.
    """

    def __init__(
        self,
        side: Pass,
        names: Sequence[str],
        as_rows: Collection[str],
        directions: range,
        *,
        as_given: bool,
    ) -> None:
        self.side, self._as_given = side, as_given
        self.rows: dict[str, Tensor] = {}
        self._cot: dict[int, Tensor] = {}
        rows = [side.parameters[name] for name in names if name in as_rows]
        outer = [side.parameters[name] for name in names if name not in as_rows]
        edges = list(dict.fromkeys(e for name in names for e in side.parameters[name].edges))
        for index, row in enumerate(directions):
            found = side.cotangents(edges, row)
            for parameter in outer:
                for bundle in parameter.bundles:
                    self._keep(bundle, parameter.pieces(bundle, found), index, len(directions))
            for name, part in rows_of(rows, found, side.count).items():
                if name not in self.rows:
                    shape = (len(part), len(directions), part.shape[1])
                    self.rows[name] = part.new_empty(shape)
                self.rows[name][:, index] = part

    def _keep(self, bundle: Bundle, pieces: list[Tensor], index: int, count: int) -> None:
        """Put the cotangents of a direction beside those of the others."""
        if count == len(pieces) == 1:
            self._cot[id(bundle)] = pieces[0][:, :, None]  # as autograd gave them
            return
        if id(bundle) not in self._cot:
            length = sum(piece.shape[1] for piece in pieces)
            n, _, e = pieces[0].shape
            if self._as_given and pieces[0].stride(1) == 1:  # convolutions have positions last
                held = pieces[0].new_empty(n, count, e, length).permute(0, 3, 1, 2)
            else:
                held = pieces[0].new_empty(n, length, count, e)
            self._cot[id(bundle)] = held
        start = 0
        for piece in pieces:
            self._cot[id(bundle)][:, start : start + piece.shape[1], index] = piece
            start += piece.shape[1]

    def factors(self, name: str, bundle: Bundle) -> Factors:
        """Return the operands of a bundle of a parameter's uses."""
        return self.side.parameters[name].factors(bundle, self._cot[id(bundle)])


class PassRows:
    """Rows of parameters for ranges of samples, made anew for each range.

    Args:
        side: A forward pass.
        rows: Directions R.
    """

    def __init__(self, side: Pass, rows: int) -> None:
        self.side, self.rows, self.count = side, rows, side.count

    def row_blocks(self, names: Sequence[str], samples: range, budget: int) -> dict[str, Tensor]:
        """Return gradients (n, R, p) per parameter."""
        parameters = [self.side.parameters[name] for name in names]
        edges = list(dict.fromkeys(edge for p in parameters for edge in p.edges))
        blocks: dict[str, Tensor] = {}
        for row in range(self.rows):
            found = rows_of(parameters, self.side.cotangents(edges, row), samples.stop)
            for name, part in found.items():
                if name not in blocks:
                    shape = (len(samples), self.rows, part.shape[1])
                    blocks[name] = part.new_empty(shape)
                blocks[name][:, row] = part[samples.start :]
        return blocks


def _zeros(edge: Edge, device: torch.device) -> Tensor:
    return torch.zeros(shape_of(edge), dtype=dtype_of(edge), device=device)
