"""The training loss of the last batches, kept on the device until somebody asks."""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Losses"]

_WINDOW = 20  # batches that the training loss is averaged over


class Losses:
    """Keeps the first loss and the last ones as tensors: reading one would wait for the device."""

    def __init__(self) -> None:
        self._last: deque[Tensor] = deque(maxlen=_WINDOW)
        self._first: Tensor | None = None

    def note(self, loss: Tensor | None, *, ours: bool = False) -> None:
        """Keep the loss of a batch, unless there is none or it is no number.

        Args:
            loss: As training computed it.
            ours: Whether it has no graph and nobody will write to it, so that it is not copied.
        """
        if loss is not None and loss.numel() == 1:
            self._last.append(loss if ours else loss.detach().clone())
            if self._first is None:
                self._first = self._last[-1]

    def put_back(self, losses: Sequence[float]) -> None:
        """Go on after an interrupted run's last losses."""
        self._last.extend(torch.tensor(loss) for loss in losses)

    def let_go(self) -> None:
        """Forget everything."""
        self._last.clear()
        self._first = None

    @property
    def first(self) -> float | None:
        """The first batch's loss of this fit, or None."""
        return None if self._first is None else float(self._first.float())

    @property
    def mean(self) -> float | None:
        """The mean over the last batches, or None before the first."""
        return float(self._together().mean()) if self._last else None

    @property
    def recent(self) -> list[float]:
        """The last batches' losses."""
        return self._together().tolist() if self._last else []

    def _together(self) -> Tensor:
        device = self._last[-1].device
        return torch.stack([loss.flatten()[0].to(device).float() for loss in self._last])
