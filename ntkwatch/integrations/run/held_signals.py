"""A signal that comes while a model is being measured is handled when that is over.

Meanwhile the model may hold other weights than its own, and a handler may save a checkpoint of it
(Lightning's does on SLURM) or raise an exception that is meant for the training and not for us.
"""

import inspect
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any

__all__ = ["HeldSignals"]

# These end a training, at once: an interrupt is an exception that nobody here catches, and
# Lightning's handler of SIGTERM takes a note, for which processes that wait for each other look.
_AT_ONCE = (signal.SIGINT, signal.SIGTERM)


class HeldSignals:
    """Puts signals off, but for those that end a process, in the main thread.

    Attributes:
        is_wanted: Whether that is done at all: handlers of several processes may wait for each
            other, and then none of them must wait for a measurement.
    """

    def __init__(self) -> None:
        self.is_wanted = True
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: list[int] = []
        self._is_holding = False

    def hold(self) -> None:
        """Take note of signals from now on, in place of the handlers that Python code has set."""
        if not self.is_wanted or self._is_holding:
            return
        if threading.current_thread() is not threading.main_thread():
            return
        self._is_holding = True
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if number not in _AT_ONCE and callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._note)

    def release(self) -> None:
        """Set the handlers again, and let them handle what has come; what they raise is raised."""
        if not self._is_holding:
            return
        self._is_holding = False
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            if signal.getsignal(number) == self._note:  # else set anew meanwhile
                signal.signal(number, handler)
        came, self._came = self._came, []
        with ExitStack() as stack:  # all of them are called, also where one raises
            for number in reversed(came):
                stack.callback(handlers[number], number, inspect.currentframe())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number not in self._came:  # the system tells several of a kind as one, too
            self._came.append(number)
