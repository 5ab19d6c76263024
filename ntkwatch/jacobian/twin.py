"""The linearized twin of a model: a module that trains like it and can learn no features.

Nothing here knows of a run; how far a network is from its twin is measured elsewhere.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.functional import ModelFunction, Params, jacobian_dtype
from ntkwatch.jacobian.inputs import Inputs, cast_inputs
from ntkwatch.jacobian.linearize import (
    EXACT,
    OutputsOf,
    jacobian_vector_product,
    linearized_outputs,
)
from ntkwatch.jacobian.parameters import select_parameters
from ntkwatch.jacobian.quiet import quiet_torch

__all__ = ["LinearizedModel"]

# Where the twin keeps what does not train: weights, and the model's own buffers.
_WEIGHTS, _STATE = "linearized_at.weights", "linearized_at.state"


class LinearizedModel(nn.Module):
    """``f_lin(x; delta) = f(x; theta) + J(x; theta) delta``: linear in what it trains.

    Its parameters are ``delta``, zero at first, under the names of the model's trainable ones, so
    that the same optimizer, loss and loop train it: where it reaches what the model does from the
    same weights on, the model was a kernel machine from there on. The weights ``theta`` and all
    buffers are copied and stay as they are, as buffers; frozen parameters are part of ``theta``. It
    computes what the model does in evaluation mode: no dropout, BatchNorms on their running
    averages. A step costs two to three times that of the model. Weight decay pulls ``delta`` to 0,
    that is, the weights to ``theta``.

    Args:
        model: At the weights to linearize at; it is copied.
        forward: ``(model, inputs) -> outputs``, given what the twin is called with; by default
            the model is called in just the same way.

    Raises:
        SelectionError: If none of the model's parameters trains.

    Source:
        Lee et al., NeurIPS 2019, arXiv:1902.06720, section 2.2: the linearized model trained
        beside the network.
    """

    def __init__(self, model: nn.Module, forward: ForwardFn | None = None) -> None:
        super().__init__()
        trained = select_parameters(model)

        def call(inner: nn.Module, inputs: Inputs) -> Any:
            args, kwargs = inputs
            if forward is None:
                return inner(*args, **kwargs)
            return forward(inner, args[0] if len(args) == 1 and not kwargs else args)

        function = ModelFunction(
            copy.deepcopy(model).eval(), call, dtype=jacobian_dtype(trained, None)
        )
        self._function, self._names = function, list(trained)
        self._method: str | None = None
        for branch, tensors in ((_WEIGHTS, function.params), (_STATE, function.buffers)):
            for name, tensor in tensors.items():
                owner, key = _owner(self, f"{branch}.{name}")
                owner.register_buffer(key, tensor.detach().clone())
        for name in trained:
            owner, key = _owner(self, name)
            setattr(owner, key, nn.Parameter(torch.zeros_like(function.params[name])))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs of the linearized model.

        Args:
            args: As for the model.
            kwargs: Likewise.

        Returns:
            A tensor, samples first: the outputs, or the logits in what the model returns.

        Raises:
            CoverageError: If autograd has no exact derivative of the model.
        """
        weights = {n: _found(self, f"{_WEIGHTS}.{n}") for n in self._function.params}
        state = {n: _found(self, f"{_STATE}.{n}") for n in self._function.buffers}
        theta = {name: weights[name] for name in self._names}
        delta = {name: _found(self, name) for name in self._names}
        place = next(iter(theta.values()))
        inputs = cast_inputs((args, kwargs), device=place.device, dtype=self._function.dtype)

        def outputs_of(params: Params) -> Tensor:
            return self._function({**weights, **params}, inputs, state)

        differentiable = torch.is_grad_enabled()
        with quiet_torch([place.device]):
            if self._method is None:
                self._method = _exact_method(outputs_of, theta)
            outputs = linearized_outputs(self._method, outputs_of, theta, delta)
        return outputs if differentiable else outputs.detach()


def _exact_method(outputs_of: OutputsOf, theta: Params) -> str:
    """How ``J v`` can be had exactly, checked along one direction."""
    generator = torch.Generator().manual_seed(0)
    direction = {
        name: torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor)
        for name, tensor in theta.items()
    }
    method = jacobian_vector_product(outputs_of, theta, direction).method
    if method in EXACT:
        return method
    raise CoverageError(
        "this model could be linearized by differences of its outputs only, which have no exact "
        "gradient to train a twin with. Pass forward= to take a part of the model that autograd "
        "can differentiate twice."
    )


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that is to own a tensor of a dotted name, made on the way, and its last part."""
    *path, key = name.split(".")
    for part in path:
        if part not in root._modules:
            setattr(root, part, nn.Module())
        child = root._modules[part]
        assert child is not None
        root = child
    return root, key


def _found(root: nn.Module, name: str) -> Tensor:
    owner, _, key = name.rpartition(".")
    tensor: Tensor = getattr(root.get_submodule(owner), key)
    return tensor
