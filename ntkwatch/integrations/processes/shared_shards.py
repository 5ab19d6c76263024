"""The anchors of a sharded run on disk: every process writes and reads its own part of them.

The first process asks; the others answer with what their own trackers hold.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ntkwatch.errors import HistoryError
from ntkwatch.integrations.run.mishaps import in_words
from ntkwatch.jacobian.parameters import parameters_of
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.anchors.shard_files import Part, path_of_part, read_part, write_part
from ntkwatch.watch.processes.team import Team

__all__ = ["ReadPart", "SharedShards", "WritePart", "read_own", "write_own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePart:
    """Each process is to write its part of an anchor.

    Attributes:
        folder: Of the run.
        kind: "start" or "warmup".
        mark: Of all parts.
    """

    folder: str
    kind: str
    mark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPart:
    """Each process is to read its part of an anchor.

    Attributes:
        folder: Of the run.
        kind: "start" or "warmup".
    """

    folder: str
    kind: str


class SharedShards:
    """The first process's hand on everybody's parts.

    Args:
        team: All processes.
        model: This process's shards.
        can_ask: Tells whether the others are listening.
    """

    def __init__(self, team: Team, model: nn.Module, can_ask: Callable[[], bool]) -> None:
        self._team, self._model, self._can_ask = team, model, can_ask
        self._part = Part(team.rank, team.size)

    def are_in(self, folder: Path, kind: str) -> bool:
        """Return whether this process has a part of an anchor there."""
        return path_of_part(folder, kind, self._part).is_file()

    def write(self, folder: Path, anchor: Anchor, kind: str) -> None:
        """Write an anchor, of which every process has its part.

        Args:
            folder: Of the run.
            anchor: This process's part.
            kind: "start" or "warmup".

        Raises:
            OSError: If one of the parts could not be written.
        """
        if not self._can_ask():
            raise OSError("the other processes write their shards at observations only")
        # New with every anchor, so that parts of two anchors are never taken for one.
        wish = WritePart(folder=str(folder), kind=kind, mark=uuid.uuid4().hex)
        self._team.tell(wish)
        said = write_own(self._team, wish, anchor)
        if any(said):
            raise OSError(_from_each(said))

    def read(self, folder: Path, kind: str) -> Anchor:
        """Return this process's part of an anchor, once every process has read its own.

        Args:
            folder: Of the run.
            kind: "start" or "warmup".

        Returns:
            The anchor.

        Raises:
            HistoryError: If a part is missing, or they are not parts of one anchor.
        """
        wish = ReadPart(folder=str(folder), kind=kind)
        self._team.tell(wish)
        anchor, said = read_own(self._team, wish, self._model)
        if any(said) or anchor is None:
            raise HistoryError(_from_each(said))
        return anchor


def write_own(team: Team, wish: WritePart, anchor: Anchor | None) -> list[str]:
    """Write this process's part of an anchor.

    Args:
        team: All processes, each of which does this.
        wish: What the first process said.
        anchor: The part; None where there is none.

    Returns:
        For each process, why that failed, or nothing.
    """
    failure = "there is no such anchor here"
    if anchor is not None:
        part = Part(team.rank, team.size)
        try:
            write_part(Path(wish.folder), wish.kind, anchor, part, mark=wish.mark)
            failure = ""
        except Exception as error:
            failure = in_words(error)
    return team.gather(failure)


def read_own(team: Team, wish: ReadPart, model: nn.Module) -> tuple[Anchor | None, list[str]]:
    """Read this process's part of an anchor.

    Args:
        team: All processes, each of which does this.
        wish: What the first process said.
        model: This process's shards.

    Returns:
        The part, and for each process why it is of no use, or nothing.
    """
    anchor, mark, failure = None, "", ""
    part, parameters = Part(team.rank, team.size), parameters_of(model)
    try:
        anchor, mark = read_part(Path(wish.folder), wish.kind, parameters, part)
    except Exception as error:
        failure = in_words(error)
    found: list[Mapping[str, str]] = team.gather({"failure": failure, "mark": mark})
    said = [one["failure"] for one in found]
    if not any(said) and any(one["mark"] != found[0]["mark"] for one in found):
        said = ["the parts in the processes' files are of different anchors" for _ in found]
    return (None if any(said) else anchor), said


def _from_each(said: list[str]) -> str:
    if len(set(said)) == 1:
        return said[0]
    return "; ".join(f"process {i}: {what.rstrip('.')}" for i, what in enumerate(said) if what)
