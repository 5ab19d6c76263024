"""The observations of one run, in memory and as ``history.jsonl``.

One line per record, written whole, so that a killed run leaves a readable file. The first line
describes the run and carries the schema number. No torch here.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ntkwatch.errors import HistoryError
from ntkwatch.watch.record.angles import ANGLES_FILE, KernelAngles, angles_from_plain
from ntkwatch.watch.record.cost import Cost
from ntkwatch.watch.record.packing import Observations
from ntkwatch.watch.record.plain import (
    cost_from_plain,
    observation_from_plain,
    run_info_from_plain,
    to_plain,
)
from ntkwatch.watch.record.records import SCHEMA, Gap, GapKind, Observation, RunInfo

__all__ = ["HISTORY_FILE", "History", "append_record", "find_history", "read_history"]

HISTORY_FILE = "history.jsonl"
_RUN, _OBSERVATION, _GAP, _COST = "run", "observation", "gap", "cost"


class History:
    """The observations of one run, ordered by step, with what they have in common.

    Iterating, ``len`` and indexing run over the observations.

    Args:
        run: What all observations share.
        observations: In any order; the last one of a step counts.
        gaps: Steps at which observing failed.
        cost: What watching took, once training is over.
        problems: What was wrong with the file this history was read from, in words.
        path: That file.
        angles: Between the kernels that were kept, or None where they are not known.
    """

    def __init__(
        self,
        run: RunInfo | None = None,
        observations: tuple[Observation, ...] = (),
        gaps: tuple[Gap, ...] = (),
        *,
        cost: Cost | None = None,
        problems: tuple[str, ...] = (),
        path: Path | None = None,
        angles: KernelAngles | None = None,
    ) -> None:
        self.run = run if run is not None else RunInfo()
        self.gaps, self.cost = list(gaps), cost
        self.problems = problems
        self.path = path
        self.angles = angles
        self._kept = Observations(_by_step(observations))

    def add(self, observation: Observation) -> None:
        """Take in one observation; the same step again replaces the first."""
        last = self._kept.last
        if last is None or observation.step > last.step:
            self._kept.append(observation)
        elif not self._kept.replace_last(observation):  # rare: an earlier step is seen again
            self._keep(_by_step((*self._kept, observation)))

    def pack(self) -> None:
        """Hold all but the first and the newest observations compressed, now and from now on.

        Nothing else changes; iterating takes some tens of microseconds more for each.
        """
        self._keep(self._kept, packed=True)

    def unpacked(self) -> "History":
        """Return a copy that holds every observation at hand, to be iterated over many times."""
        rest: dict[str, Any] = {"cost": self.cost, "problems": self.problems, "path": self.path}
        return History(self.run, self.observations, tuple(self.gaps), angles=self.angles, **rest)

    def start_over(self, run: RunInfo) -> None:
        """Forget everything: a new reference was taken, and older numbers belong to another one."""
        self.run = run
        self._keep(())
        self.gaps.clear()
        self.cost = None
        self.angles = None

    @property
    def observations(self) -> tuple[Observation, ...]:
        """All observations, ordered by step."""
        return tuple(self._kept)

    @property
    def last_whole(self) -> Observation | None:
        """The last observation that is not brief, or None."""
        return self._kept.last_whole

    @property
    def whole_steps(self) -> tuple[int, ...]:
        """The steps of all observations that are not brief, ascending."""
        return self._kept.whole_steps

    def __iter__(self) -> Iterator[Observation]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Observation:
        # The ends are asked for at every observation, and a run may have very many.
        end = {0: self._kept.first, -1: self._kept.last}.get(index)
        return self.observations[index] if end is None else end

    def _keep(self, observations: Iterable[Observation], *, packed: bool | None = None) -> None:
        packed = self._kept.packed if packed is None else packed
        self._kept = Observations(observations, packed=packed)

    def __repr__(self) -> str:
        first, last = self._kept.first, self._kept.last
        if first is None or last is None:
            return "History(0 observations, empty)"
        span = f"steps {first.step} to {last.step}"
        return f"History({len(self)} observations, {span})"


def _by_step(observations: Iterable[Observation]) -> list[Observation]:
    """In the order of steps; the last one of a step counts."""
    by_step = {observation.step: observation for observation in observations}
    return [by_step[step] for step in sorted(by_step)]


def append_record(path: Path, record: RunInfo | Observation | Gap | Cost) -> None:
    """Append one whole line to a history file, making the file if it is not there.

    Args:
        path: The ``history.jsonl``.
        record: What to write.
    """
    kind = {RunInfo: _RUN, Observation: _OBSERVATION, Gap: _GAP, Cost: _COST}[type(record)]
    line = json.dumps({"record": kind, **to_plain(record)}, allow_nan=False) + "\n"
    with path.open("ab") as file:
        file.write(_line_break_if_torn(path) + line.encode())


def _line_break_if_torn(path: Path) -> bytes:
    """A run killed while writing leaves half a line; the next record must not be glued to it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            return b""
        file.seek(size - 1)
        return b"" if file.read(1) == b"\n" else b"\n"


def find_history(run: str | Path) -> Path:
    """Return the history file of a run.

    Args:
        run: The file itself, the folder it lies in, or a log folder with one such folder in it.

    Returns:
        Path of the ``history.jsonl``.

    Raises:
        HistoryError: If there is none, or several.
    """
    path = Path(run)
    if path.is_file():
        return path
    if not path.is_dir():
        raise HistoryError(
            f"{path} does not exist, so there is no run to report on. Give the folder that the "
            "training logged to, such as lightning_logs/version_0."
        )
    if (path / HISTORY_FILE).is_file():
        return path / HISTORY_FILE
    found = sorted(path.glob(f"*/{HISTORY_FILE}"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(file.parent) for file in found)
        raise HistoryError(
            f"{path} holds {len(found)} watched runs and a report is about one. "
            f"Name one of: {names}."
        )
    deeper = sorted(path.glob(f"**/{HISTORY_FILE}"))[:5]
    hint = (
        "Deeper down there is: " + ", ".join(str(file.parent) for file in deeper) + "."
        if deeper
        else "Was NTKMonitor() in the Trainer's callbacks, and did it take its reference?"
    )
    raise HistoryError(
        f"{path} has no {HISTORY_FILE}, neither itself nor one folder down, so nothing was "
        f"recorded there that could be reported. {hint}"
    )


def read_history(run: str | Path) -> History:
    """Read what was recorded about a run.

    A line that cannot be read (a run was killed while writing it, say) is left out and named in
    ``History.problems``; the others are kept.

    Args:
        run: A history file, its folder, or the log folder one above.

    Returns:
        The history.

    Raises:
        HistoryError: If there is no such file, nothing in it can be read, or it was written by a
            newer version of this package.
    """
    path = find_history(run)
    info: RunInfo | None = None
    observations: list[Observation] = []
    gaps: list[Gap] = []
    cost: Cost | None = None
    problems: list[str] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        plain = _parse(line)
        if plain is None:
            problems.append(_unreadable(path, number, last=number == len(lines)))
            continue
        try:
            if plain.get("record") == _RUN:
                _check_schema(plain, path)
                info = run_info_from_plain(plain)
            elif plain.get("record") == _OBSERVATION:
                observations.append(observation_from_plain(plain))
            elif plain.get("record") == _GAP:
                gaps.append(_gap(plain))
            elif plain.get("record") == _COST:
                cost = cost_from_plain(plain)
        except (TypeError, KeyError, ValueError, AttributeError):
            problems.append(_unreadable(path, number, last=number == len(lines)))
    if info is None and not observations:
        raise HistoryError(
            f"{path} holds no whole record of ntkwatch ({path.stat().st_size} bytes), so there is "
            "nothing to report. Is this the history.jsonl that NTKMonitor wrote, or was the run "
            "killed before its first observation?"
        )
    if info is None:
        # Without it nobody knows what the reference was, so no verdict may rest on it.
        info = RunInfo(reference="unknown", reference_is_start=False)
        problems.append(f"{path.name} has no line that describes the run: settings are unknown")
    angles = _read_angles(path.with_name(ANGLES_FILE), problems)
    rest: dict[str, Any] = {"cost": cost, "problems": tuple(problems), "path": path}
    return History(info, tuple(observations), tuple(gaps), angles=angles, **rest)


def _read_angles(path: Path, problems: list[str]) -> KernelAngles | None:
    if not path.is_file():
        return None
    try:
        return angles_from_plain(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read and was left out: {error}")
        return None


def _gap(plain: dict[str, Any]) -> Gap:
    # Early gaps have no kind; one that only a newer version knows reads as a failure.
    kind: GapKind = "diverged" if plain.get("kind") == "diverged" else "failed"
    return Gap(step=int(plain["step"]), reason=str(plain["reason"]), kind=kind)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        plain = json.loads(line)
    except ValueError:
        return None
    return plain if isinstance(plain, dict) else None


def _unreadable(path: Path, number: int, *, last: bool) -> str:
    cause = "cut off, as when a run is killed while writing" if last else "not a whole record"
    return f"line {number} of {path.name} is {cause}; it was left out and the others were kept"


def _check_schema(plain: dict[str, Any], path: Path) -> None:
    schema = plain.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise HistoryError(
            f"{path} is of schema {schema} and this version of ntkwatch reads up to {SCHEMA}, so "
            "its numbers could be misread. Update ntkwatch: pip install --upgrade ntkwatch."
        )
