"""The processes of one training, and how they exchange what a measurement needs.

Nothing is exchanged on the group that training uses, and nobody waits where a signal could not
reach him: a process that waits looks again and again whether it is over.
"""

import os
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["Team", "TeamGoneError"]

_PAUSE = 2e-4  # seconds between two looks: far less than an observation takes


class TeamGoneError(RuntimeError):
    """The processes are about to end, and wait for each other no more; never seen by users."""


class Team:
    """All processes of a training, in a group of their own.

    Objects and tensors travel through the memory of the CPU, on any device.

    Args:
        group: A group of all processes.
        is_ending: Tells whether this process was told to end.

    Attributes:
        rank: Number of this process; 0 is the first.
        size: Number of processes.
    """

    def __init__(self, group: Any, is_ending: Callable[[], bool] = lambda: False) -> None:
        self._group, self._is_ending = group, is_ending
        self.rank = distributed.get_rank(group)
        self.size = distributed.get_world_size(group)

    @classmethod
    def of_all(cls, is_ending: Callable[[], bool] = lambda: False) -> "Team | None":
        """Return the team of all processes, or None where this one is alone.

        All processes must ask for it at the same point.

        Args:
            is_ending: Tells whether this process was told to end.

        Returns:
            The team.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return None
        if distributed.get_world_size() < 2 or not distributed.is_gloo_available():
            return None
        # A group of its own: its exchanges cannot be taken for the training's, nor for those that
        # Lightning makes in a signal handler.
        return cls(distributed.new_group(backend="gloo"), is_ending)

    @staticmethod
    def has_network() -> bool:
        """Return whether this process finds a network that gloo could use; nobody else is asked."""
        if not (distributed.is_available() and distributed.is_gloo_available()):
            return False
        named = os.environ.get("GLOO_SOCKET_IFNAME", "")
        try:
            for name in filter(None, named.split(",")):
                distributed.ProcessGroupGloo.create_device(interface=name)
            if not named:
                distributed.ProcessGroupGloo.create_default_device()
        except Exception:  # whatever gloo has to say
            return False
        return True

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides, and writes."""
        return self.rank == 0

    def tell(self, message: object = None) -> Any:
        """Return what the first process says to all; each of them must ask.

        Args:
            message: What to say; that of the first process counts.

        Returns:
            It.
        """
        (said,) = self._passed_round(message, [0])
        return said

    def gather(self, message: object) -> list[Any]:
        """Return what each process says to all.

        Args:
            message: What this one says.

        Returns:
            The messages in the order of the processes.
        """
        return self._passed_round(message, list(range(self.size)))

    def add_up(self, numbers: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor of the same shape in each."""
        own = numbers.detach().cpu().contiguous().clone()
        self._wait(distributed.all_reduce(own, group=self._group, async_op=True))
        return own.to(numbers)

    def close(self) -> None:
        """Take leave: a process that still waits for this one is told so by an error."""
        with suppress(Exception):  # nobody may be there any more
            distributed.destroy_process_group(self._group)

    def _passed_round(self, message: object, speakers: list[int]) -> list[Any]:
        said = pickle.dumps(message) if self.rank in speakers else b""
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(said)
        if len(speakers) > 1:
            self._wait(distributed.all_reduce(sizes, group=self._group, async_op=True))
        else:
            self._broadcast(sizes, speakers[0])
        found = []
        for speaker in speakers:
            raw = torch.empty(int(sizes[speaker]), dtype=torch.uint8)
            if speaker == self.rank:
                raw = torch.frombuffer(bytearray(said), dtype=torch.uint8)
            self._broadcast(raw, speaker)
            found.append(pickle.loads(raw.numpy().tobytes()))
        return found

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        first = distributed.get_global_rank(self._group, source)
        self._wait(distributed.broadcast(tensor, first, group=self._group, async_op=True))

    def _wait(self, work: Any) -> None:
        # Not in C++: there no signal is handled, and a process that is told to end would not hear.
        while not work.is_completed():
            if self._is_ending():
                # Lightning's handlers wait for each other on the training's group, one signal at a
                # time: whoever waited for anything else meanwhile would never end.
                raise TeamGoneError
            time.sleep(_PAUSE)
        work.wait()
