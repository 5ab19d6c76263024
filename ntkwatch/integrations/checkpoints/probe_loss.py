"""A loss taken on the probe, where no training tells its own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.errors import InputError
from ntkwatch.jacobian.forward import first_line, guess_forward, outputs_of
from ntkwatch.jacobian.inputs import cast_inputs, take
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.watch.probe import ProbeBatch

__all__ = ["LossFn", "loss_on_probe"]

LossFn = Callable[[Tensor, Tensor], Any]


def loss_on_probe(model: nn.Module, probe: ProbeBatch, loss: LossFn | None) -> float | None:
    """Return a loss of the model's outputs on the probe, in evaluation mode.

    Args:
        model: The model; left as found.
        probe: Inputs and targets.
        loss: ``(outputs, targets) -> number``, or None.

    Returns:
        The loss, or None where none was asked for.

    Raises:
        InputError: If the probe has no targets, or the function fails on them.
    """
    if loss is None:
        return None
    if probe.targets is None:
        raise InputError("--loss needs targets, and the probe has none. Leave --loss out.")
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    inputs = cast_inputs(probe.inputs, device=parameter.device, dtype=parameter.dtype)
    targets = probe.targets.to(parameter.device)
    with undisturbed(model), torch.no_grad():
        forward, _ = guess_forward(model, take(inputs, slice(0, 2)))
        try:
            return float(loss(outputs_of(forward(model, inputs)), targets))
        except Exception as error:  # a user's own code can fail in any way
            raise InputError(
                f"the loss cannot be computed on the probe ({type(error).__name__}: "
                f"{first_line(error)}), so it is unknown. Name a function (outputs, targets) -> "
                "number, such as torch.nn.functional:cross_entropy, or leave --loss out."
            ) from error
