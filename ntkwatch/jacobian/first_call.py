"""The first call of a model in a measurement, under guard: a forward pass may write to parameters.

Only what the call does to parameters is looked at here; outputs are judged elsewhere.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.errors import CoverageError, ForwardError, ModelChangedError
from ntkwatch.jacobian.forward import ForwardFn, guess_forward
from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs, count_samples, take
from ntkwatch.jacobian.memory import is_out_of_memory
from ntkwatch.jacobian.parameters import parameters_of
from ntkwatch.jacobian.sharded import function_of
from ntkwatch.jacobian.write_guard import WriteGuard, WritesToParameter

__all__ = ["attempt_on_copies", "first_call", "guarded", "guessed_on"]

_FEW = 7  # samples: no batch is a tuple of so many things, as which the samples would unpack


def guessed_on(
    model: nn.Module, inputs: Inputs, dtype: torch.dtype, *, only: str | None = None
) -> tuple[ForwardFn, str]:
    """Return how to call a model: found out on a few samples, or on all if it takes only so many.

    Args:
        model: The model.
        inputs: The probe.
        dtype: Of the Jacobian.
        only: As in ``guess_forward``.

    Returns:
        A forward function and how it calls the model, in words.

    Raises:
        ForwardError: If no way works.
    """
    few = take(inputs, slice(0, _FEW))
    try:
        return guess_forward(model, few, attempt_on_copies(model, few, dtype), only=only)
    except ForwardError as failed:
        if count_samples(inputs) <= _FEW:
            raise
        try:
            attempt = attempt_on_copies(model, inputs, dtype)
            return guess_forward(model, inputs, attempt, only=only)
        except Exception as error:
            if is_out_of_memory(error):  # which is not what is wrong with it
                raise failed from None
            raise


def attempt_on_copies(
    model: nn.Module, inputs: Inputs, dtype: torch.dtype
) -> Callable[[ForwardFn], Any]:
    """Return how to try a way of calling the model without letting it write to the model."""

    def attempt(forward: ForwardFn) -> Any:
        function = function_of(model, forward, dtype=dtype)
        if not function.replaceable:
            return function({}, inputs)
        with torch.no_grad():
            try:
                with WriteGuard(function.params.values()):
                    return function({}, inputs)
            except WritesToParameter:
                return function(_copies(function), inputs)

    return attempt


def first_call(function: ModelFunction, inputs: Inputs) -> tuple[Tensor, list[str]]:
    """Call a model and look at what it does to its parameters.

    Only where it is about to write to one is it called again, on copies of all.

    Args:
        function: The model as a function.
        inputs: The probe.

    Returns:
        The outputs, and the names of parameters that the forward pass writes to without changing
        a value: those must stay copies.

    Raises:
        ModelChangedError: If the forward pass changes a parameter.
        CoverageError: If it reads one that substitution does not reach.
    """
    if not function.replaceable:  # it watches over its parameters itself, at each call
        return function({}, inputs), []
    aliases = {name: tensor.detach() for name, tensor in function.params.items()}
    try:
        with WriteGuard(aliases.values()):
            # With gradients on, so that outputs show whether they reach the model's own parameters.
            outputs = function(aliases, inputs)
    except WritesToParameter:
        return _call_on_copies(function, inputs)
    if any(alias.data_ptr() != function.params[name].data_ptr() for name, alias in aliases.items()):
        return _call_on_copies(function, inputs)  # one was given other .data
    _check_reached(function.model, outputs)
    return outputs.detach(), []


@contextmanager
def guarded(function: ModelFunction) -> Iterator[None]:
    """Stop a later call that is about to write to a parameter, though the first one was harmless.

    Args:
        function: The model as a function.

    Raises:
        ModelChangedError: In place of the write.
    """
    try:
        with WriteGuard(function.borrowed(), apart=function.replaceable):
            yield
    except WritesToParameter as write:
        raise ModelChangedError(
            f"the forward pass of {type(function.model).__name__} was about to write to one of its "
            "own parameters in evaluation mode, which it did not do when it was first looked at, "
            "so measuring would have altered the training; it was stopped before. Move such "
            "updates out of forward(), or pass forward= without them."
        ) from write


def _call_on_copies(function: ModelFunction, inputs: Inputs) -> tuple[Tensor, list[str]]:
    copies = _copies(function)
    versions = {name: copy._version for name, copy in copies.items()}
    outputs = function(copies, inputs)
    changed = _changed(copies, function.params)
    if changed:
        raise ModelChangedError(
            f"the forward pass of {type(function.model).__name__} writes to {len(changed)} of its "
            f"own parameters in evaluation mode ({', '.join(changed[:3])}), so measuring would "
            "alter the training. Move such updates out of forward(), or pass forward= without them."
        )
    _check_reached(function.model, outputs)
    written = [name for name, copy in copies.items() if copy._version != versions[name]]
    return outputs.detach(), written


def _copies(function: ModelFunction) -> Params:
    return {name: tensor.clone() for name, tensor in function.params.items()}


def _changed(copies: Params, originals: Params) -> list[str]:
    # One synchronisation with the device for all; what was NaN already has not changed.
    differ = [((copies[name] != p) & (p == p)).any() for name, p in originals.items()]
    return [name for name, d in zip(originals, torch.stack(differ).tolist(), strict=True) if d]


def _check_reached(model: nn.Module, outputs: Tensor) -> None:
    """The call used substitutes only; outputs that depend on a parameter itself went round them."""
    if not outputs.requires_grad:
        return
    own = {name: p for name, p in parameters_of(model).items() if p.requires_grad}
    gradients = torch.autograd.grad(outputs.sum(), list(own.values()), allow_unused=True)
    missed = [name for name, g in zip(own, gradients, strict=True) if g is not None]
    if missed:
        raise CoverageError(
            f"{type(model).__name__} reads {len(missed)} of its parameters "
            f"({', '.join(missed[:3])}) by a reference other than the module's own "
            "attribute (kept in a list or a closure, or a value computed earlier), so the engines "
            "cannot follow them. Read them as attributes in forward(), or pass forward= to do so."
        )
