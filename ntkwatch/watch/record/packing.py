"""Observations by step; the older ones of a running training are held compressed.

As an object, a record of a few layers takes 5 to 10 KB, and compressed a fifth of that. A long
training has thousands of them, and nearly all questions are about the ends. No torch here.
"""

import pickle
import zlib
from array import array
from collections.abc import Iterable, Iterator

from ntkwatch.watch.record.records import Observation

__all__ = ["Observations"]

_BLOCK = 64  # observations that are compressed together, so that names are held once
_FASTEST = 1  # higher levels of zlib take several times as long for a fifth less


class Observations:
    """Observations in the order of their steps.

    The first, the newest whole one and the newest 64 to 128 are at hand. If they are packed, those
    between are held in compressed blocks and unpacked block by block while all are iterated over,
    to the same objects to the last bit.

    Args:
        observations: By ascending steps.
        packed: Whether to compress what is old.
    """

    def __init__(self, observations: Iterable[Observation] = (), *, packed: bool = False) -> None:
        self.packed = packed
        self.first: Observation | None = None
        self.last: Observation | None = None
        self.last_whole: Observation | None = None
        self._blocks: list[bytes] = []
        self._recent: list[Observation] = []  # what comes after all blocks
        self._whole = array("q")
        self._count = 0
        for observation in observations:
            self.append(observation)

    def append(self, observation: Observation) -> None:
        """Take in the newest."""
        if self.first is None:
            self.first = observation
        self.last = observation
        if not observation.is_brief:
            self.last_whole = observation
            self._whole.append(observation.step)
        self._recent.append(observation)
        self._count += 1
        if self.packed and len(self._recent) >= 2 * _BLOCK:
            self._blocks.append(_packed(self._recent[:_BLOCK]))
            self._recent = self._recent[_BLOCK:]

    def replace_last(self, observation: Observation) -> bool:
        """Put another one of the same step in the place of the newest, if nothing else changes.

        Returns:
            Whether it was: not for another step, nor where one is brief and the other is not.
        """
        last = self.last
        if last is None or (last.step, last.is_brief) != (observation.step, observation.is_brief):
            return False
        if self.first is last:
            self.first = observation
        if self.last_whole is last:
            self.last_whole = observation
        self.last = self._recent[-1] = observation
        return True

    @property
    def whole_steps(self) -> tuple[int, ...]:
        """The steps of those that are not brief, ascending."""
        return tuple(self._whole)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Observation]:
        for block in self._blocks:
            yield from _unpacked(block)
        yield from self._recent


def _packed(observations: list[Observation]) -> bytes:
    return zlib.compress(pickle.dumps(observations, pickle.HIGHEST_PROTOCOL), _FASTEST)


def _unpacked(block: bytes) -> list[Observation]:
    observations: list[Observation] = pickle.loads(zlib.decompress(block))
    return observations
