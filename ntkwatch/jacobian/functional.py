"""A module as a function of its parameters: ``f(theta, inputs) -> outputs``.

The module itself is only borrowed: parameters are detached aliases (or copies in another dtype),
buffers are copies, and both are swapped in for the length of one call.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.func import functional_call

from ntkwatch.errors import InputError
from ntkwatch.jacobian.attributes import call_forgotten, kept_attributes
from ntkwatch.jacobian.forward import ForwardFn, call_with_inputs, outputs_of
from ntkwatch.jacobian.inputs import Inputs, map_inputs, ordinary, to_dtype
from ntkwatch.jacobian.lone_samples import outputs_on
from ntkwatch.jacobian.parameters import clean_name, parameters_of
from ntkwatch.kernel.gram import widest_float

__all__ = ["ModelFunction", "Params", "jacobian_dtype", "real_entries", "real_size", "slots_of"]

Params = dict[str, Tensor]


class _Call(nn.Module):
    """Lets ``functional_call`` reach a model through a user's forward function."""

    def __init__(self, model: nn.Module, forward: ForwardFn) -> None:
        super().__init__()
        self.model = model
        self._forward_fn = forward

    def forward(self, inputs: Inputs) -> Any:
        return self._forward_fn(self.model, inputs)


class ModelFunction:
    """A model as a function of named tensors.

    Calling it with parameters (any subset; the others are as in the model) and inputs returns the
    outputs, with the samples first.

    Args:
        model: Any module; used as it is, so modes are the caller's business.
        forward: ``(model, inputs) -> outputs``; by default ``model(inputs)`` in its usual forms.
        dtype: Of parameters and floating buffers inside the function.

    Attributes:
        params: All parameters by clean name, detached, in ``dtype``; tied ones once.
        buffers: Copies of all buffers by clean name, floating ones in ``dtype``.
        replaceable: Whether the model can be called with other parameters than its own.
    """

    replaceable = True

    def __init__(
        self, model: nn.Module, forward: ForwardFn | None = None, *, dtype: torch.dtype
    ) -> None:
        self.model = model
        self.dtype = dtype
        self.params: Params = {
            name: to_dtype(ordinary(parameter).detach(), dtype)
            for name, parameter in parameters_of(model).items()
        }
        self.buffers: Params = {
            clean_name(name): to_dtype(buffer.detach().clone(), dtype)
            for name, buffer in model.named_buffers()
        }
        self._call = _Call(model, forward if forward is not None else call_with_inputs)
        self._slots = slots_of(model)
        self._copied: set[str] = set()
        self._remembers = False

    def __call__(
        self,
        params: Mapping[str, Tensor],
        inputs: Inputs,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the outputs ``f(theta, inputs)`` of shape (N, ...).

        Args:
            params: Parameters by clean name; those left out are as in the model.
            inputs: Model inputs.
            buffers: Buffers by clean name; those left out are as in the model.

        Returns:
            The outputs, in the graph of ``params``.
        """
        values = {**self.params, **params}
        # Weights that a call wrote to stay written, and so must the mark that says that they are.
        if self._remembers or self._copied:
            return self._run(values, inputs, buffers)
        # What a call leaves on the modules for the next one, such as a table of biases made once,
        # was made of other values: the next would not depend on the parameter behind it.
        with call_forgotten(self.model):
            return self._run(values, inputs, buffers)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Let each call find what those before it left on the modules; all is forgotten at the end.

        Yields:
            Nothing.
        """
        self._remembers = True
        try:
            # Shards are gathered into the same attributes, and looked after by their own rules.
            with kept_attributes(self.model) if self.replaceable else nullcontext():
                yield
        finally:
            self._remembers = False

    def _run(self, values: Params, inputs: Inputs, buffers: Mapping[str, Tensor] | None) -> Tensor:
        # Copied at each call: a forward that updates a buffer or its input in place must reach
        # neither the caller's tensors nor the next call.
        kept = {**self.buffers, **(buffers or {})}
        values |= {name: to_dtype(buffer.clone(), self.dtype) for name, buffer in kept.items()}
        inputs = map_inputs(torch.clone, inputs)
        slots = self._slots.items()
        tensors = {f"model.{slot}": values[name] for slot, name in slots if name in values}
        # tie_weights=False with every (module, attribute) once: with tying, a sub-module that is
        # reachable by two paths keeps the substituted tensors afterwards (pytorch#164759).
        return outputs_of(functional_call(self._call, tensors, (inputs,), tie_weights=False))

    def trace(
        self, names: Sequence[str], inputs: Inputs, buffers: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Params]:
        """Return the outputs in the graph of some parameters, and the leaves of that graph.

        Args:
            names: Parameters to differentiate by.
            inputs: Model inputs.
            buffers: Buffers by clean name; those left out are as in the model.

        Returns:
            The outputs, and the parameters as they entered the forward pass, by name.
        """
        leaves = self.leaf_params(list(names))
        with torch.enable_grad():
            return outputs_on(lambda some: self(leaves, some, buffers), inputs), leaves

    def blocks(self, names: Sequence[str]) -> list[list[str]]:
        """Return the names in blocks whose gradients may be held together."""
        return [list(names)]

    @contextmanager
    def gathered(self, name: str, nodes: Sequence[Node]) -> Iterator[None]:
        """Hold a parameter, as it does anyway, so that operations that saved it can be called.

        Args:
            name: The parameter.
            nodes: The operations.

        Yields:
            Nothing.
        """
        yield

    @property
    def widest(self) -> torch.dtype:
        """The widest dtype in which the model can be called."""
        return widest_float(next(iter(self.params.values())).device)

    def copy_params(self, names: Iterable[str]) -> None:
        """Hold copies of the named parameters: of those that the forward pass writes to."""
        for name in names:
            self.params[name] = self.params[name].clone()
            self._copied.add(name)

    def borrowed(self) -> list[Tensor]:
        """Return the parameters that may share memory with the model's own."""
        return [tensor for name, tensor in self.params.items() if name not in self._copied]

    def put_state(self, state: Params) -> None:
        """Use these parameters and buffers instead of the model's present ones, where named."""
        for own in (self.params, self.buffers):
            for name, tensor in own.items():
                if name in state:
                    own[name] = to_dtype(state[name].detach().to(tensor.device), self.dtype)

    def own_buffers(self, buffers: Params) -> Params:
        """Return those of some buffers that the model has in the same shape."""
        mine = self.buffers
        return {n: b for n, b in buffers.items() if n in mine and b.shape == mine[n].shape}

    def leaf_params(self, names: list[str]) -> Params:
        """Return the named parameters as fresh leaves that require gradients."""
        return {name: self.params[name].detach().requires_grad_() for name in names}


def jacobian_dtype(parameters: Mapping[str, Tensor], wanted: torch.dtype | None) -> torch.dtype:
    """Return the dtype to differentiate in: as wanted, else the widest of the parameters.

    Args:
        parameters: Those that the kernel is taken over.
        wanted: A floating dtype, or None.

    Returns:
        At least float32: half precision cannot carry a drift of 1e-3.

    Raises:
        InputError: If what is wanted is not a real floating dtype.
    """
    if wanted is not None:
        if not wanted.is_floating_point:
            raise InputError(
                f"dtype={wanted} has no real derivatives, so no Jacobian can be held in it. Give "
                "torch.float32 or torch.float64, or leave it out."
            )
        return wanted
    dtype = torch.float32
    for parameter in parameters.values():
        real = parameter.dtype.to_real() if parameter.is_complex() else parameter.dtype
        dtype = torch.promote_types(dtype, real)
    return dtype


def real_entries(tensor: Tensor) -> Tensor:
    """Return a complex tensor as pairs of real and imaginary parts; a real one as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_size(tensor: Tensor) -> int:
    """Return how many real numbers a tensor holds; a complex one counts twice."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def slots_of(model: nn.Module) -> dict[str, str]:
    """Return every (module, attribute) that holds a tensor, once, with that tensor's clean name."""
    names: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        names.setdefault(id(tensor), clean_name(name))
    slots = {}
    for module_name, module in model.named_modules():
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                slot = f"{module_name}.{attribute}" if module_name else attribute
                slots[slot] = names[id(tensor)]
    return slots
