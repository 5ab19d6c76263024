"""A folder of its own for every run, also where several jobs start at once in one place.

Until its reference is taken a run has written nothing that another one could see, so it leaves a
mark in its folder. A mark of a process that is gone means nothing.
"""

import json
import os
import socket
import uuid
from contextlib import suppress
from pathlib import Path

from ntkwatch.watch.record.history import HISTORY_FILE

__all__ = ["free_folder", "let_go_of"]

_MARK = ".claimed"
_OURSELVES = {"host": socket.gethostname(), "token": uuid.uuid4().hex}


def free_folder(folder: Path) -> Path:
    """Return the folder, or the next free name beside it, and mark it as taken.

    Args:
        folder: That is wanted. One with a history, or taken by a run that goes on, is not free; one
            that cannot be written to is, since there nothing can be overwritten.

    Returns:
        The folder, which ``let_go_of`` frees.
    """
    number, free = 1, folder
    while not _taken_by_us(free):
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def let_go_of(folder: Path) -> None:
    """Take the mark away, and the folder with it where nothing was written.

    Args:
        folder: From ``free_folder``, or any other, of which nothing is then changed.
    """
    mark = folder / _MARK
    try:
        found = _read(mark)
        if found.get("token") == _OURSELVES["token"] and found.get("process") == os.getpid():
            mark.unlink()
            if found.get("made"):
                folder.rmdir()
    except OSError:  # it is not empty, as should be; or not ours to write to
        return


def _taken_by_us(folder: Path) -> bool:
    if (folder / HISTORY_FILE).exists():
        return False
    mark, is_ours, made = folder / _MARK, False, not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _is_of_the_dead(mark):
            _take_away(mark)
        with mark.open("x", encoding="utf-8") as file:
            is_ours = True
            # A forked process is another one.
            json.dump({**_OURSELVES, "process": os.getpid(), "made": made}, file)
    except FileExistsError:
        return False
    except OSError:
        if is_ours:  # and there is no room for a word in it
            with suppress(OSError):
                mark.unlink()
        return is_ours or not mark.exists()
    if (folder / HISTORY_FILE).exists():  # of one that was quicker, and is over
        mark.unlink(missing_ok=True)
        return False
    return True


def _take_away(mark: Path) -> None:
    """Remove the mark of one who is gone; of several that see it, one succeeds."""
    aside = mark.with_name(f"{_MARK}-{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        mark.rename(aside)
        if _is_of_the_dead(aside):
            aside.unlink()
        else:  # another one was quicker, and this is his
            aside.rename(mark)


def _read(mark: Path) -> dict[str, object]:
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_of_the_dead(mark: Path) -> bool:
    """Whether who left a mark is gone for certain: it can be told of this machine alone."""
    found = _read(mark)
    process = found.get("process")
    if (
        found.get("host") != _OURSELVES["host"]
        or not isinstance(process, int)
        or os.name != "posix"
    ):
        return False
    if process == os.getpid():  # or its number is used again, by us
        return found.get("token") != _OURSELVES["token"]
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
