"""Further anchors along a run, a few at a time: from each of them the same network is read again.

How long a network has been a kernel machine shows only from anchors on the way. They are taken
where the distance from the start has doubled and thinned to four, so that with the start and the
end of the warm-up there are never more than six, whatever the length of the run.
"""

import math
from collections.abc import Container, Iterator
from typing import Protocol

import torch

from ntkwatch.watch.anchors.anchors import Anchor

__all__ = ["MOST", "InMemory", "LaterAnchors", "Shelf"]

MOST = 4  # besides the start and the end of the warm-up
_GROWTH = 2  # times as far from the start as the anchor before


class Shelf(Protocol):
    """Where anchors are kept."""

    def put(self, anchor: Anchor) -> None:
        """Keep an anchor; one of the same step is replaced."""

    def get(self, step: int, device: torch.device) -> Anchor | None:
        """Return the anchor of a step, on a device; None where it is gone."""

    def drop(self, step: int) -> None:
        """Forget the anchor of a step."""

    @property
    def steps(self) -> list[int]:
        """Steps of the anchors that are kept."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the anchors take here."""


class InMemory:
    """Keeps anchors as they are: one copy of all parameters and buffers each."""

    def __init__(self) -> None:
        self._anchors: dict[int, Anchor] = {}

    def put(self, anchor: Anchor) -> None:
        """Keep an anchor."""
        self._anchors[anchor.step] = anchor

    def get(self, step: int, device: torch.device) -> Anchor | None:
        """Return the anchor of a step."""
        return self._anchors.get(step)

    def drop(self, step: int) -> None:
        """Forget the anchor of a step."""
        self._anchors.pop(step, None)

    @property
    def steps(self) -> list[int]:
        """Steps of the anchors."""
        return list(self._anchors)

    @property
    def nbytes(self) -> int:
        """Bytes that the anchors take."""
        return sum(anchor.nbytes for anchor in self._anchors.values())


class LaterAnchors:
    """Takes, thins and gives back the anchors after the warm-up.

    Args:
        shelf: Where they are kept.

    Attributes:
        steps: Of those there are, in order.
        lost: By step as text, why an anchor that should be there is not.
    """

    def __init__(self, shelf: Shelf | None = None) -> None:
        self.shelf: Shelf = InMemory() if shelf is None else shelf
        self.steps: list[int] = []
        self.lost: dict[str, str] = {}

    @property
    def at_hand(self) -> bool:
        """Whether the anchors are in memory, so that asking them costs no reading."""
        return isinstance(self.shelf, InMemory)

    def is_due(self, step: int, *, start: int, warmup: int | None) -> bool:
        """Return whether an anchor is to be taken at a step, or the newest one again.

        Args:
            step: Optimizer steps taken so far.
            start: Step of the reference.
            warmup: Step at which the warm-up ended; None where no run has an end of it.

        Returns:
            True from twice the distance of the last anchor on.
        """
        if self.steps and step <= self.steps[-1]:
            return step == self.steps[-1]
        last = self.steps[-1] if self.steps else start if warmup is None else warmup
        return step - start >= max(1, _GROWTH * (last - start))

    def take(self, anchor: Anchor, *, start: int, warmup: int | None) -> None:
        """Keep an anchor, and let go of the one that is missed least where there are too many."""
        key = str(anchor.step)
        try:
            self.shelf.put(anchor)
        except OSError as error:
            self.lost[key] = f"this anchor could not be written: {error}"
            return
        self.lost.pop(key, None)
        if anchor.step not in self.steps:
            self.steps.append(anchor.step)
        if len(self.steps) > MOST:
            self._thin(start, start if warmup is None else warmup)

    def _thin(self, start: int, before: int) -> None:
        """Let go of the inner anchor whose neighbours lie closest, as ratios of distances."""
        away = [max(1, step - start) for step in (before, *self.steps)]
        ratio = [math.log(away[i + 2] / away[i]) for i in range(len(self.steps) - 1)]
        place = min(range(len(ratio)), key=lambda i: (round(ratio[i], 9), i))
        self.shelf.drop(self.steps.pop(place))

    def each(self, device: torch.device) -> Iterator[Anchor]:
        """Give the anchors one after the other, so that no more than one need be in memory.

        Args:
            device: Where they are wanted.

        Yields:
            Those that can be read.
        """
        for step in list(self.steps):
            try:
                anchor = self.shelf.get(step, device)
                why = "its file is gone"
            except (OSError, ValueError, KeyError) as error:
                anchor, why = None, str(error)
            if anchor is None:
                self.lost[str(step)] = f"this anchor could not be read: {why}"
                self.steps.remove(step)
            else:
                yield anchor

    def start_over(self) -> None:
        """Forget all of them."""
        for step in self.shelf.steps:
            self.shelf.drop(step)
        self.steps, self.lost = [], {}

    def go_on(self, steps: Container[int]) -> None:
        """Go on with the anchors on the shelf that were taken at some steps; others are let go.

        Args:
            steps: At which the run that goes on was observed after its start.
        """
        there = sorted(self.shelf.steps)
        self.steps = [step for step in there if step in steps][-MOST:]
        for step in there:
            if step not in self.steps:
                self.shelf.drop(step)
