"""How far a long command is, for the person who looks at it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

__all__ = ["progress"]


@contextmanager
def progress(label: str, length: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error if that is a terminal, else nothing.

    Args:
        label: What is being done.
        length: Of how many parts.

    Yields:
        What is to be called after each part.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield lambda: bar.update(1)
