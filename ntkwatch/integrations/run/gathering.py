"""A probe from the rows of the first training batches, where no dataset can be read from.

By the time there are enough rows the weights have moved on, so those from before the first update
are kept until then.
"""

from typing import Any

from torch import Tensor, nn

from ntkwatch.integrations.trainer_probe import inputs_for
from ntkwatch.jacobian.inputs import Inputs, count_samples, map_inputs
from ntkwatch.watch.probe import ProbeBatch, gather_rows, sample_form, split_batch

__all__ = ["Gathering"]


class Gathering:
    """Collects rows of batches as they pass.

    Batches whose samples are of another form than those of the first (texts padded batch by batch,
    say) are passed over.

    Args:
        size: Rows wanted.
        place: Where training was at the first batch: what an observation there is told.

    Attributes:
        place: The same.
        state: Weights and buffers from before the first update, or None while the model has them.
    """

    def __init__(self, size: int, place: dict[str, Any]) -> None:
        self.place = place
        self.state: dict[str, Tensor] | None = None
        self._size = size
        self._batches: list[tuple[Inputs, Tensor | None]] = []
        self._rows = self._seen = 0

    @property
    def is_enough(self) -> bool:
        """Whether there are as many rows as wanted, or as many batches have passed."""
        return self._rows >= self._size or self._seen >= self._size

    def add(self, model: nn.Module, batch: Any) -> None:
        """Take in the rows of a batch, before the model is trained on it."""
        inputs, targets = split_batch(batch)
        inputs = inputs_for(model, inputs)
        rows = count_samples(inputs)
        self._seen += 1
        if self._batches and sample_form(inputs, targets) != sample_form(*self._batches[0]):
            return
        # Copies: a training step may write to its batch, and a loader may use its memory again.
        inputs = map_inputs(lambda tensor: tensor.detach().clone(), inputs)
        self._batches.append((inputs, None if targets is None else targets.detach().clone()))
        self._rows += rows
        if self.state is None and not self.is_enough:
            tensors = [*model.named_parameters(), *model.named_buffers()]
            self.state = {name: tensor.detach().clone() for name, tensor in tensors}

    def probe(self) -> ProbeBatch:
        """Return the probe that the rows so far make."""
        origin = f"rows of the first {len(self._batches)} training batches"
        return gather_rows(self._batches, self._size, origin=origin)
