"""The kernel of a case by plain ``torch.autograd.grad`` on copies, each sample in its own pass.

Imports nothing of ntkwatch but the table of random directions, which are part of the question.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from jacobian.cases.case import Case
from torch import Tensor, nn

from ntkwatch.jacobian.outputs import random_directions

from oracles import dense_jacobian

__all__ = ["Reference", "part_of", "reference", "reference_of"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What an engine must find.

    Attributes:
        matrix: (N, N, C, C), or (N, N) where the outputs are reduced.
        trace: The (N, N) kernel summed over outputs.
        layers: Its parts by module.
        names: Parameters differentiated by, also those without any gradient.
    """

    matrix: Tensor
    trace: Tensor
    layers: dict[str, Tensor]
    names: set[str]


@cache
def reference_of(case: Case) -> Reference:
    """The reference of a case with its own settings, computed once."""
    model, inputs, settings = case.build()
    return reference(model, inputs, whole=case.whole is not None, **settings)


def reference(
    model: nn.Module,
    inputs: Any,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    outputs: Any = "full",
    params: Any = None,
    whole: bool = False,
) -> Reference:
    """Return the kernel that ``empirical_ntk`` with these settings must give."""

    def call(net: nn.Module, batch: Any) -> Tensor:
        found = _called(net, batch) if forward is None else forward(net, batch)
        values = _tensor_in(found).double()  # some models give float32 whatever their dtype
        if callable(outputs):
            return outputs(values)
        if outputs in ("full", "trace"):
            return values
        directions = _directions(outputs, tuple(values.shape[1:]))
        return values.reshape(len(values), -1) @ directions.mT

    count = len(_first_tensor(inputs))
    passes = [slice(0, count)] if whole else [slice(i, i + 1) for i in range(count)]
    parts = [dense_jacobian(model, part_of(inputs, chosen), call) for chosen in passes]
    rows = {
        name: torch.cat([part[name] for part in parts])
        for name in parts[0]
        if params is None or _is_asked(name, params)
    }
    layers: dict[str, Tensor] = {}
    for name, block in rows.items():
        gram = torch.einsum("iap,jap->ij", block, block)
        layers[_owner(name)] = layers.get(_owner(name), 0) + gram
    trace = sum(layers.values())
    matrix = trace
    if outputs == "full":
        matrix = sum(torch.einsum("iap,jbp->ijab", block, block) for block in rows.values())
    return Reference(matrix=matrix, trace=trace, layers=layers, names=set(rows))


def part_of(inputs: Any, chosen: Any, dtype: torch.dtype | None = None) -> Any:
    """Return some of the samples; floating numbers in another dtype, if one is given."""
    if isinstance(inputs, Mapping):
        return {key: part_of(value, chosen, dtype) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(part_of(value, chosen, dtype) for value in inputs)
    few = inputs[chosen]
    return few.to(dtype) if dtype is not None and few.is_floating_point() else few


def _first_tensor(inputs: Any) -> Tensor:
    while not isinstance(inputs, Tensor):
        inputs = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0]
    return inputs


def _called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _tensor_in(returned: Any) -> Tensor:
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping):
        key = "logits" if "logits" in returned else "last_hidden_state"
        return returned[key]
    return returned[0]


def _is_asked(name: str, patterns: Any) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, each) or name.startswith(f"{each}.") for each in patterns)


def _owner(name: str) -> str:
    """The module of a parameter; a parametrized weight belongs to the module that uses it."""
    module = name.split(".parametrizations.")[0] if ".parametrizations." in name else None
    if module is None and name.startswith("parametrizations."):
        module = ""
    return (name.rpartition(".")[0] if module is None else module) or "(root)"


def _directions(outputs: str, shape: tuple[int, ...]) -> Tensor:
    count = max(1, torch.Size(shape).numel())
    if outputs == "sum":
        return torch.ones(1, count, dtype=torch.float64)
    _, k, *plain = outputs.split(":")
    return random_directions(int(k), shape, plain=bool(plain)).double()
