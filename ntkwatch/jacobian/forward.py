"""How a model is called on a probe batch, and where its outputs are in what it returns.

Guesses are made in a fixed order and the first that works is kept; ``forward=`` overrides them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.errors import (
    DivergedError,
    ForwardError,
    ModelChangedError,
    OutputError,
    ProcessError,
)
from ntkwatch.jacobian.inputs import Inputs, leaves
from ntkwatch.jacobian.memory import is_out_of_memory

__all__ = [
    "GIVEN",
    "ForwardFn",
    "call_with_inputs",
    "check_outputs",
    "check_outputs_finite",
    "first_line",
    "guess_forward",
    "outputs_of",
]

ForwardFn = Callable[[nn.Module, Inputs], Any]
GIVEN = "forward="  # in words, where the user said how to call the model
_PART = "model."  # how a call of a part of the model begins, in words

# In what a model returns, these hold the function values that a loss would be taken of.
_OUTPUT_KEYS = ("logits", "last_hidden_state")


def call_with_inputs(model: nn.Module, inputs: Inputs) -> Any:
    """Return ``model(x)``, ``model(*inputs)`` or ``model(**inputs)`` by the kind of inputs."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def outputs_of(returned: Any) -> Tensor:
    """Return the output tensor in what a model returned.

    Args:
        returned: A tensor, something with ``logits`` or ``last_hidden_state``, or a tuple whose
            first entry is one of these.

    Returns:
        The outputs, samples first.

    Raises:
        OutputError: If there is no such tensor.
    """
    if isinstance(returned, Tensor):
        return returned
    for key in _OUTPUT_KEYS:
        value = returned.get(key) if isinstance(returned, Mapping) else getattr(returned, key, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(returned, tuple | list) and returned:
        return outputs_of(returned[0])
    raise OutputError(
        f"the model returned a {type(returned).__name__} in which no output tensor was found "
        f"(looked for a tensor, {', '.join('.' + key for key in _OUTPUT_KEYS)}, or a tuple that "
        "starts with one). Pass forward=, a function (model, inputs) -> tensor of shape (N, ...)."
    )


def check_outputs(outputs: Tensor, n: int) -> None:
    """Refuse outputs that have no per-sample derivative.

    Args:
        outputs: What the model gave.
        n: Samples in the probe.

    Raises:
        OutputError: If they are not floating, or do not have the samples first.
    """
    if not outputs.is_floating_point():
        raise OutputError(
            f"the model's outputs are {outputs.dtype}, and only floating outputs have a "
            "derivative. Pass forward= to return logits or values, before any argmax or rounding."
        )
    if outputs.ndim == 0 or outputs.shape[0] != n:
        raise OutputError(
            f"the model's outputs have shape {tuple(outputs.shape)} for a probe of {n} samples, so "
            "it is not clear which output belongs to which sample. Pass forward= to return a "
            "tensor of shape (N, ...), not a loss or a mean."
        )


def guess_forward(
    model: nn.Module,
    inputs: Inputs,
    attempt: Callable[[ForwardFn], Any] | None = None,
    *,
    only: str | None = None,
) -> tuple[ForwardFn, str]:
    """Return the first way of calling the model that works, with its description.

    Args:
        model: Any module, in the state in which it is to be called.
        inputs: A probe batch, or a few samples of it.
        attempt: How to try a way; by default ``way(model, inputs)``.
        only: Description of the one way to try, where the model was called before: another one may
            be another function.

    Returns:
        A forward function and how it calls the model, in words.

    Raises:
        ForwardError: If no way works, with what was tried and how each failed.
        ModelChangedError: If a way works and changes the model.
        ProcessError: If a way waits for other processes.
    """
    tried: list[str] = []
    has_none = False
    for call, words in _candidates(model, inputs):
        is_part = words.startswith(_PART)
        # Where the model's own forward fails, a part of it is another function.
        if words != only and (only is not None or (is_part and not has_none)):
            continue
        try:
            outputs_of(call(model, inputs) if attempt is None else attempt(call))
        except (ModelChangedError, ProcessError):
            raise  # whichever way the model is called
        except Exception as error:
            if is_out_of_memory(error):
                raise  # there may be another day for this way
            has_none = has_none or _says_there_is_none(error, model)
            tried.append(f"{words}: {type(error).__name__}: {first_line(error)}")
        else:
            return call, words
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in leaves(inputs))
    if only is not None:
        failed = tried[0] if tried else f"{only}: the model has no such part any more"
        raise ForwardError(
            f"{type(model).__name__} cannot be called on the probe (a {type(inputs).__name__} of "
            f"shapes {shapes}) the way it was called before: {failed}. Called in another way it "
            "may be another function, whose kernel says nothing about this one. Pass forward=, a "
            "function (model, inputs) -> tensor (N, ...) that works throughout the training."
        )
    raise ForwardError(
        f"no way was found to call {type(model).__name__} on the probe (a "
        f"{type(inputs).__name__} of shapes {shapes}), so its outputs cannot be differentiated. "
        f"Tried {'; '.join(tried)}. Pass forward=, a function (model, inputs) -> tensor (N, ...)."
    )


def _candidates(model: nn.Module, inputs: Inputs) -> list[tuple[ForwardFn, str]]:
    mark = "**inputs" if isinstance(inputs, Mapping) else "inputs"
    if isinstance(inputs, tuple | list):
        mark = "*inputs"
    found: list[tuple[ForwardFn, str]] = [(call_with_inputs, f"model({mark})")]
    if mark != "inputs":
        found.append((_call_with_all, "model(inputs)"))
    child = _only_child(model)
    if child is not None:
        found.append((_call_child(child), f"{_PART}{child}({mark})"))
    return found


def _call_with_all(model: nn.Module, inputs: Inputs) -> Any:
    return model(inputs)


def _says_there_is_none(error: Exception, model: nn.Module) -> bool:
    """Whether a module has no forward of its own; Lightning's passes the question on to torch's."""
    said = f'Module [{type(model).__name__}] is missing the required "forward"'
    return isinstance(error, NotImplementedError) and said in str(error)


def _only_child(model: nn.Module) -> str | None:
    """A module without a forward of its own (a LightningModule, say) often wraps one network."""
    owners = [
        name for name, child in model.named_children() if any(True for _ in child.parameters())
    ]
    return owners[0] if len(owners) == 1 else None


def _call_child(name: str) -> ForwardFn:
    def call(model: nn.Module, inputs: Inputs) -> Any:
        return call_with_inputs(model.get_submodule(name), inputs)

    return call


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, for use inside another one."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"


def check_outputs_finite(values: Tensor, model: nn.Module) -> None:
    """Refuse outputs that hold NaN or infinity.

    Args:
        values: Outputs on the probe.
        model: Whose they are, for the message.

    Raises:
        DivergedError: If some are.
    """
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise DivergedError(
            f"{bad} of the {values.numel()} outputs of {type(model).__name__} on the probe are NaN "
            "or infinite, so they have no derivative. Check the inputs for NaN and the weights for "
            "divergence."
        )
