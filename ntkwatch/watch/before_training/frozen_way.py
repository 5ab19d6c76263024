"""The network itself on the way that a model with frozen features goes, and its own loss there.

The two losses part where features matter. A network gets to a loss sooner than its linearization
does, and further on the same way leads it off again: past its own lowest loss nothing of training
is to be seen there. So a place on the way is found by the network's loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ntkwatch.jacobian.problem import Problem
from ntkwatch.jacobian.products import KernelProducts
from ntkwatch.kernel.frozen import FrozenTraining

__all__ = ["FrozenWay", "Place", "outputs_of"]

# Places looked at, evenly in the logarithm of the frozen model's loss.
_LOOKS = 32
# How far beyond the last loss of the frozen model the network may lag: a tenth of it.
_BEYOND = 0.1
_HALVINGS = 12  # of the stretch between two of them: to a few parts in a million of their distance


class Place(NamedTuple):
    """A place on the way.

    Attributes:
        time: Learning rate times steps of gradient flow on half the sum of squares.
        loss_ratio: The network's own square loss there, over that at the start.
    """

    time: Tensor
    loss_ratio: float


class FrozenWay:
    """The way ``theta_0 + J_0' a(t)`` of a model with frozen features.

    Args:
        problem: Model and training set.
        training: Of the model with frozen features.
        residual: ``f_0 - y``, one row per sample.
        budget: Bytes for Jacobian rows.
    """

    def __init__(
        self, problem: Problem, training: FrozenTraining, residual: Tensor, *, budget: int
    ) -> None:
        self._problem, self._training, self._residual = problem, training, residual
        self._products = KernelProducts(problem, budget=budget, coupled=False)
        self._start = outputs_of(problem).to(residual)
        self._seen: list[Place] = []

    def at(self, time: Tensor) -> Problem:
        """Return the network at a time on the way."""
        weights = self._training.weights(time)
        problem = self._problem
        step = self._products.pull(weights.reshape(len(weights), -1).to(problem.function.dtype))
        params = problem.function.params
        return problem.at({**params, **{name: params[name] + d for name, d in step.items()}})

    def place_of(self, ratio: float, last: float) -> Place:
        """Return where the network's loss is first down to a ratio, or where it is lowest.

        Args:
            ratio: Of the network's square loss to that at the start.
            last: Smallest loss ratio that is asked for: the way ends where the model with frozen
                features is a little beyond it.

        Returns:
            The place. Its own ratio is above the wanted one where the network never gets there.
        """
        seen = self._looks(last)
        first = next((k for k, place in enumerate(seen) if place.loss_ratio <= ratio), None)
        if first is not None:
            return self._first(ratio, *seen[max(first - 1, 0) : first + 1])
        return self._lowest(seen)

    def _looks(self, last: float) -> list[Place]:
        if not self._seen:
            begin = Place(torch.zeros_like(self._residual[0, 0]), 1.0)
            end = _BEYOND * last
            ratios = [end ** (k / _LOOKS) for k in range(1, _LOOKS + 1)]
            times = [self._training.time_to_loss_ratio(ratio) for ratio in ratios]
            self._seen = [begin, *(self._look(time) for time in times if time.isfinite())]
        return self._seen

    def _look(self, time: Tensor) -> Place:
        change = outputs_of(self.at(time)).to(self._residual) - self._start
        shares = (self._residual + change).square().sum() / self._residual.square().sum()
        ratio = float(shares)
        return Place(time, ratio if ratio == ratio else torch.inf)

    def _first(self, ratio: float, above: Place, below: Place) -> Place:
        for _ in range(_HALVINGS):
            middle = self._look((above.time + below.time) / 2)
            if middle.loss_ratio > ratio:
                above = middle
            else:
                below = middle
        return below

    def _lowest(self, seen: list[Place]) -> Place:
        """The lowest of three places in a row, which are drawn together around it."""
        k = min(range(len(seen)), key=lambda k: seen[k].loss_ratio)
        if k in (0, len(seen) - 1):
            return seen[k]
        left, best, right = seen[k - 1 : k + 2]
        for _ in range(_HALVINGS):
            for end in (left, right):
                middle = self._look((end.time + best.time) / 2)
                if middle.loss_ratio < best.loss_ratio:
                    left, right = (end, best) if end is left else (best, end)
                    best = middle
                    break
                if end is left:
                    left = middle
                else:
                    right = middle
        return best


def outputs_of(problem: Problem) -> Tensor:
    """Return a network's outputs on its own inputs, one row per sample."""
    with torch.no_grad():
        values = problem.function({}, problem.inputs, problem.buffers)
    return problem.reduction.flatten(values)
