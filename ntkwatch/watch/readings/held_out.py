"""Samples held out of training: checked against the training set, and a ridge that never saw them.

Nothing is scored here.
"""

import torch
from torch import Tensor

from ntkwatch.errors import InputError
from ntkwatch.jacobian.inputs import Inputs, count_samples, leaves
from ntkwatch.kernel.leave_one_out import leave_one_out_errors
from ntkwatch.watch.probe import ProbeBatch, sample_form
from ntkwatch.watch.readings.measure import Metrics

__all__ = ["HeldOut", "check_held_out", "check_held_out_metrics"]

# Shares of the mean eigenvalue, among which leaving out training samples one by one chooses: from
# interpolation to next to nothing but the leading modes.
_RIDGES = tuple(10.0**power for power in range(-6, 2))
# Held-out samples of which a larger share is in the training set are not held out.
_MOST_SHARED = 0.1


def check_held_out(probe: ProbeBatch, held_out: ProbeBatch, *, metrics: Metrics = "full") -> None:
    """Refuse held-out samples that cannot be compared with the training set, or are part of it.

    Args:
        probe: The training set.
        held_out: Samples that the model is not trained on.
        metrics: Of the tracker.

    Raises:
        InputError: If the tracker measures nothing on them, or if they have no targets, are of
            another form, or were trained on.
    """
    check_held_out_metrics(metrics)
    if held_out.targets is None:
        raise InputError(
            f"the {len(held_out)} held-out samples have no targets, so nothing can be scored on "
            "them. Give held_out=ProbeBatch(inputs, targets)."
        )
    forms = _form(probe), _form(held_out)
    if forms[0] != forms[1]:
        raise InputError(
            f"a training sample is of {_words(forms[0])} and a held-out one of "
            f"{_words(forms[1])}, so one model cannot be scored on both. Give both in one form."
        )
    known = set(_rows(probe.inputs))
    shared = sum(row in known for row in _rows(held_out.inputs))
    if shared > _MOST_SHARED * len(held_out):
        raise InputError(
            f"{shared} of the {len(held_out)} held-out samples are in the training set as well "
            f"(allowed: {_MOST_SHARED:.0%}), so they say nothing about others. Give samples that "
            "the model is not trained on."
        )


def check_held_out_metrics(metrics: str) -> None:
    """Refuse settings under which nothing is measured on held-out samples.

    Args:
        metrics: Of the tracker.

    Raises:
        InputError: If they are not "full".
    """
    if metrics != "full":
        raise InputError(
            f"held-out samples are scored with the kernel between outputs, and metrics={metrics!r} "
            'does without. Give metrics="full", or held_out=None.'
        )


class HeldOut:
    """Samples that a model is not trained on, and the ridge once it was chosen for its start.

    Args:
        batch: The samples, with targets.

    Attributes:
        batch: The samples.
    """

    def __init__(self, batch: ProbeBatch) -> None:
        self.batch = batch
        self._chosen: tuple[Tensor, float] | None = None

    def ridge_for(self, kernel: Tensor, values: Tensor) -> float:
        """Return the ridge for a kernel at the start, chosen without the held-out samples."""
        if self._chosen is None or self._chosen[0] is not kernel:
            errors = leave_one_out_errors(kernel, values, _RIDGES)
            self._chosen = kernel, _RIDGES[int(errors.argmin())]
        return self._chosen[1]


def _form(batch: ProbeBatch) -> list[tuple[bool, tuple[int, ...]]]:
    """Per tensor of a sample, whether it holds whole numbers, and its shape."""
    form = sample_form(batch.inputs, None)[1:]
    return [(not dtype.is_floating_point, tuple(shape)) for dtype, shape in form]


def _words(form: list[tuple[bool, tuple[int, ...]]]) -> str:
    return " and ".join(f"{'whole' if w else 'floating'} numbers {shape}" for w, shape in form)


def _rows(inputs: Inputs) -> list[bytes]:
    """The samples bit by bit."""
    n = count_samples(inputs)
    wide = [leaf.detach().cpu().reshape(n, -1).double() for leaf in leaves(inputs)]
    return [row.tobytes() for row in torch.cat(wide, dim=1).numpy()]
