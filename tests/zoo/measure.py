"""One entry measured: its kernel by ntkwatch beside that of plain autograd, with routes and time.

The oracle is ``torch.autograd.grad`` on a deep copy in float64, each sample in a forward pass of
its own (``jacobian/cases/reference.py``); the loop engine is held against it too.
"""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jacobian.cases.reference import Reference, reference
from torch import Tensor, nn
from zoo.entry import Entry

from ntkwatch.errors import NtkwatchError
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.forward import outputs_of
from ntkwatch.jacobian.spec import Kernel

__all__ = ["EXACT", "SINGLE", "Found", "measure"]

EXACT = 1e-9
# Of a model that computes partly in float32 inside a float64 model: its cotangents are rounded too.
SINGLE = 2e-6
# A layer's part is looked at for itself, however small, unless it is this share of the whole: zero
# but for rounding, as behind the bias of attention's keys.
_NOTHING = {False: 1e-14, True: 1e-9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of an entry.

    Attributes:
        routes: How many parameters went which way, by words such as "structured".
        called: Operations without a rule, which were called sample by sample.
        single: Whether the model computes partly in float32 inside float64.
        error: Largest relative error, of the kernel or of a layer's part of it.
        loop: The same of the loop engine.
        seconds: Of the first call.
        refused: What was said instead; empty if there is a kernel.
    """

    routes: dict[str, int]
    called: tuple[str, ...] = ()
    single: bool = False
    error: float = 0.0
    loop: float = 0.0
    seconds: float = 0.0
    refused: str = ""

    @property
    def tolerance(self) -> float:
        """Relative error allowed."""
        return SINGLE if self.single else EXACT


@cache
def measure(entry: Entry) -> Found:
    """Return what came of an entry."""
    model, inputs = entry.build()
    settings = {**entry.settings, "dtype": torch.float64}
    began = time.perf_counter()
    try:
        kernel = empirical_ntk(model, inputs, **settings)
    except NtkwatchError as error:
        return Found(routes={}, refused=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - began
    expected = reference(model, inputs, whole=bool(entry.whole), **entry.settings)
    assert set(kernel.coverage) == expected.names
    assert set(kernel.layers) == set(expected.layers)
    slow = empirical_ntk(model, inputs, engine="loop", **settings)
    single = _rounds(model, inputs, entry.settings)
    routes: dict[str, int] = {}
    for route in kernel.coverage.values():
        routes[route] = routes.get(route, 0) + 1
    steps = [step for step in kernel.plan.steps if step.route == "generic"]
    return Found(
        routes=routes,
        called=tuple(sorted({name for step in steps for name in step.operations})),
        single=single,
        error=_error(kernel, expected, single=single),
        loop=_error(slow, expected, single=single),
        seconds=seconds,
    )


def _error(kernel: Kernel, expected: Reference, *, single: bool) -> float:
    errors = [(kernel.matrix - expected.matrix).norm() / expected.matrix.norm()]
    least = _NOTHING[single] * expected.trace.norm()
    for name, part in expected.layers.items():
        difference = (kernel.layers[name] - part).norm()
        if difference > least:
            errors.append(difference / part.norm())
    return float(torch.stack(errors).max())


def _rounds(model: nn.Module, inputs: Any, settings: Any) -> bool:
    """Whether some operation on the way from a parameter to the outputs gives float32."""
    forward = settings.get("forward", lambda net, given: _called(net, given))
    nodes = [outputs_of(forward(model, inputs)).grad_fn]
    seen = set(nodes)
    for node in nodes:  # grows meanwhile
        if any(each.dtype == torch.float32 for each in node._input_metadata):
            return True
        children = [child for child, _ in node.next_functions if child is not None]
        nodes += [child for child in dict.fromkeys(children) if child not in seen]
        seen.update(children)
    return False


def _called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)
