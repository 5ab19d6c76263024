"""Samples that a training did not see, beside all that it did, from names on the command line."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ntkwatch.errors import InputError
from ntkwatch.integrations.named_parts import build_probe
from ntkwatch.jacobian.forward import guess_forward, outputs_of
from ntkwatch.jacobian.inputs import cast_inputs, take
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.readings.held_out import check_held_out

__all__ = ["training_set_and_held_out"]

_MOST_ROWS = 4000  # of the kernel between outputs; regression with more takes minutes and gigabytes
_HELD_OUT = 2000  # samples, as where a callback watches


def training_set_and_held_out(
    data: str | None, held_out: str, model: nn.Module, *, kept: Mapping[str, Any]
) -> tuple[ProbeBatch, ProbeBatch]:
    """Return the whole training set as a probe, and samples that are not in it.

    Args:
        data: As given to --data.
        held_out: "val" for the validation data of that, or a name like that.
        model: That they are for.
        kept: Arguments of the data module.

    Returns:
        Both.

    Raises:
        InputError: If --data is missing, its training set is too large for regression, or both
            share samples.
    """
    if data is None:
        raise InputError(
            "--held-out compares the network with regression on its whole training set, and that "
            "comes from --data. Give --data pkg.mod:DataModule in place of --probe."
        )
    train = build_probe(data, model, _MOST_ROWS + 1, kept=kept, loaders=("train_dataloader",))
    outputs = _outputs_each(model, train)
    if len(train) * outputs > _MOST_ROWS:
        more = "more than " if len(train) > _MOST_ROWS else ""
        raise InputError(
            f"the training set of {data} has {more}{min(len(train), _MOST_ROWS)} samples of "
            f"{outputs} outputs, and regression by their kernel is in reach up to {_MOST_ROWS} "
            "rows, samples times outputs. Leave --held-out out, or train LinearizedModel(model) "
            "from the first checkpoint on: it asks the same question of any training set."
        )
    if held_out == "val":
        others = build_probe(data, model, _HELD_OUT, kept=kept, loaders=("val_dataloader",))
    else:
        others = build_probe(held_out, model, _HELD_OUT)
    train = replace(train, whole_training_set=True, origin=f"whole training set of {data}")
    check_held_out(train, others)
    return train, others


def _outputs_each(model: nn.Module, probe: ProbeBatch) -> int:
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    few = take(probe.inputs, slice(0, 2))
    few = cast_inputs(few, device=parameter.device, dtype=parameter.dtype)
    with undisturbed(model), torch.no_grad():
        forward, _ = guess_forward(model, few)
        return outputs_of(forward(model, few)).numel() // 2
