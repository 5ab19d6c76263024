"""Several things to do of which one may fail: a full disk must not stop the other loggers."""

from collections.abc import Callable, Sequence

__all__ = ["do_all"]


def do_all(actions: Sequence[Callable[[], object]]) -> None:
    """Do all that can be done, then raise the first failure.

    Args:
        actions: Done in this order.
    """
    failures: list[Exception] = []
    for action in actions:
        try:
            action()
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]
