"""What a case is: a tiny model that is hard for a kernel engine in one way.

A builder is a function without arguments whose name says what is hard; it returns the model, its
inputs (samples first) and, where needed, keyword arguments of ``empirical_ntk``. Nothing here
imports ntkwatch.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Case", "Net", "case", "cases_of"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One model, and how exact an engine must be on it.

    Attributes:
        name: What is hard about it.
        builder: Gives model and inputs, or model, inputs and settings.
        tolerance: Relative Frobenius error allowed in float64.
        loose: Why the tolerance is not the usual one.
        vmap: Why the vmap engine refuses the model, or None where it must not.
        whole: Why the oracle takes the samples all at once rather than one by one, or None.
        rough: Whether weights are moved off their first values, of which many are zero or one.
    """

    name: str
    builder: Callable[[], tuple[Any, ...]]
    tolerance: float = 1e-12
    loose: str | None = None
    vmap: str | None = None
    whole: str | None = None
    rough: bool = True

    def build(self) -> tuple[nn.Module, Any, dict[str, Any]]:
        """Return a fresh model in evaluation mode, its inputs and its settings; float64, seeded."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(0)
        try:
            model, inputs, *settings = self.builder()
            if self.rough:
                _roughen(model)
        finally:
            torch.set_default_dtype(default)
        return model.eval(), inputs, copy.copy(settings[0]) if settings else {}


def case(builder: Callable[[], tuple[Any, ...]] | None = None, **options: Any) -> Any:
    """Make a case of a builder: ``@case`` or ``@case(tolerance=..., loose="why")``."""
    if builder is None:
        return lambda function: case(function, **options)
    assert ("tolerance" in options) == ("loose" in options), "say why a tolerance is looser"
    return Case(name=builder.__name__.replace("_", " "), builder=builder, **options)


def cases_of(*modules: ModuleType) -> dict[str, Case]:
    """Return the cases defined in some modules, by name; no two may have the same name."""
    found = [item for module in modules for item in vars(module).values() if type(item) is Case]
    by_name = {each.name: each for each in found}
    assert len(by_name) == len(found), "two cases have the same name"
    return by_name


class Net(nn.Module):
    """Parts by name and a forward written beside them: ``Net(lambda net, x: net.up(x), up=...)``.

    A tensor becomes a parameter; a module, or a list of modules, stays one.
    """

    def __init__(self, compute: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                part = nn.Parameter(part)
            setattr(self, name, nn.ModuleList(part) if isinstance(part, list) else part)

    def forward(self, *inputs: Any) -> Any:
        return self.compute(self, *inputs)


@torch.no_grad()
def _roughen(model: nn.Module) -> None:
    """Ones, zeros and unit statistics hide errors: a forgotten factor of one is no error at all."""
    for parameter in model.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
