"""How far weight decay alone has shrunk the weights, counted at every step from the optimizer.

A lazy run with decay looks rich from where it started: its weights shrink without any gradient, and
no linearization around weights that are no longer there can follow. So the linearization error is
taken around ``c_t theta_0`` as well, with ``c_t`` what decay alone would have left of a weight.
Counting it costs a few multiplications per step and waits for no device.
"""

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam

from ntkwatch.jacobian.parameters import parameters_of
from ntkwatch.kernel.gram import widest_float

__all__ = ["NO_DECAY", "DecayClock", "Shrunk"]

# Exactly these classes: a subclass may step in its own way.
_DECOUPLED_IF_TOLD = (Adam, NAdam, RAdam)

_Number = float | Tensor


class Shrunk(NamedTuple):
    """What weight decay alone would have left of the weights since an anchor.

    Attributes:
        factors: ``c`` by parameter name; those left out did not decay.
        why_not: Why it is not known, or None.
    """

    factors: dict[str, float]
    why_not: str | None = None


NO_DECAY = Shrunk({})


@dataclass(slots=True)
class _Group:
    """One parameter group: what is left of a weight ``c``, and of its momentum ``u``."""

    left: _Number = 1.0
    momentum: _Number = 0.0
    moving: bool = False
    # Of the parameters themselves: an optimizer may be gone when its training is looked at.
    members: list[weakref.ref[Tensor]] = field(default_factory=list)


class DecayClock:
    """Follows ``c_t``, what weight decay alone would have left of each weight.

    With decoupled decay (AdamW; Adam, NAdam and RAdam told so) ``c <- (1 - lr wd) c``. In
    torch's SGD decay passes through the momentum buffer, ``u <- beta u + (1 - dampening) wd c``
    and ``c <- c - lr u`` (Nesterov: ``c <- c - lr (wd c + beta u)``), which lags behind by
    ``1 / (1 - beta)`` steps. Both are exact: the weights are ``c_t theta_0`` plus what gradients
    did. Decay coupled into an adaptive step has no such factor, and neither has an unknown
    optimizer's.
    """

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._optimizers: dict[int, weakref.ref[Optimizer]] = {}
        self._why_not: str | None = None

    @property
    def counts(self) -> bool:
        """Whether any step was noted."""
        return bool(self._groups)

    def note(self, optimizer: Optimizer, number: int = 0) -> None:
        """Count one step; call it where the learning rate is the one that the step used.

        Args:
            optimizer: That stepped, or is about to.
            number: Which of several optimizers this is.
        """
        optimizer = getattr(optimizer, "optimizer", optimizer)  # inside a wrapper of Accelerate
        before = self._optimizers.get(number)
        is_new = before is None or before() is not optimizer
        if is_new:
            self._optimizers[number] = weakref.ref(optimizer)
        overflow = getattr(optimizer, "found_inf", None)
        for place, settings in enumerate(optimizer.param_groups):
            group = self._groups.get(f"{number}.{place}")
            if group is None:
                group = self._groups[f"{number}.{place}"] = _Group()
            if is_new and before is not None:
                group.momentum, group.moving = 0.0, False  # a new optimizer starts at rest
                group.members = []
            if len(group.members) != len(settings["params"]):
                group.members = [weakref.ref(p) for p in settings["params"]]
            left, momentum = group.left, group.momentum
            self._step(group, optimizer, settings)
            # A fused step is told by a gradient scaler, on the device, whether to do nothing.
            if isinstance(overflow, Tensor):
                taken = (overflow == 0).to(widest_float(overflow.device))
                group.left = left + taken * (group.left - left)
                group.momentum = momentum + taken * (group.momentum - momentum)

    def _step(self, group: _Group, optimizer: Optimizer, settings: Mapping[str, Any]) -> None:
        decay, rate = settings.get("weight_decay"), _on_its_device(settings.get("lr"))
        kind = type(optimizer)
        if kind is SGD:
            _sgd_step(group, settings, rate)
        elif decay == 0 or (decay is None and kind.__module__.startswith("torch.optim")):
            return
        elif kind is AdamW or (
            kind in _DECOUPLED_IF_TOLD and settings.get("decoupled_weight_decay")
        ):
            group.left = group.left * (1 - rate * float(decay or 0.0))
        else:
            self._why_not = (
                f"{kind.__name__} decays weights through its adaptive step"
                if kind.__module__.startswith("torch.optim")
                else f"how {kind.__name__} decays weights is not known"
            )
            group.left = math.nan

    def reading(self) -> dict[str, float]:
        """Return what is left in each parameter group, of weights as they were at first."""
        return {key: float(group.left) for key, group in self._groups.items()}

    def since(self, then: Mapping[str, float] | None, model: nn.Module) -> Shrunk:
        """Return what decay alone would have left of each weight since an anchor.

        Args:
            then: ``reading`` at the anchor; None where it is not known.
            model: Whose parameters the optimizers hold.

        Returns:
            A factor per parameter that decayed, or why it is not known.
        """
        now = self.reading()
        if then is None and any(left != 1 for left in now.values()):
            return Shrunk({}, "what weight decay did since the anchor was not written down")
        factors = {key: left / (then or {}).get(key, 1.0) for key, left in now.items()}
        if all(factor == 1 for factor in factors.values()):
            return NO_DECAY
        if not all(map(math.isfinite, factors.values())):
            return Shrunk({}, self._why_not or "the optimizer's weight decay is not understood")
        by_parameter = self._by_parameter(factors)
        # A frozen parameter in a group is skipped by every optimizer.
        own = {name: p for name, p in parameters_of(model).items() if p.requires_grad}
        found = {name: by_parameter[id(p)] for name, p in own.items() if id(p) in by_parameter}
        if not found:
            return Shrunk({}, "the optimizer holds other parameters than the model")
        return Shrunk({name: factor for name, factor in found.items() if factor != 1})

    def _by_parameter(self, factors: Mapping[str, float]) -> dict[int, float]:
        found: dict[int, float] = {}
        for key, group in self._groups.items():
            alive = [member() for member in group.members]
            found.update((id(p), factors.get(key, 1.0)) for p in alive if p is not None)
        return found

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs to go on counting: plain values only."""
        groups = {
            key: [float(group.left), float(group.momentum), group.moving]
            for key, group in self._groups.items()
        }
        return {"groups": groups, "why_not": self._why_not}

    def put_back(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self._groups = {key: _Group(*kept) for key, kept in state.get("groups", {}).items()}
        self._why_not = state.get("why_not")


def _sgd_step(group: _Group, settings: Mapping[str, Any], rate: _Number) -> None:
    """One step of torch's SGD on a weight of 1 that sees no gradient."""
    beta, decay = settings["momentum"], settings["weight_decay"]
    if decay == 0 and not group.moving:
        return
    force = decay * group.left
    if beta:
        # The first step fills the buffer as it is, whatever the dampening.
        share = 1 - settings["dampening"] if group.moving else 1.0
        group.momentum = beta * group.momentum + share * force
        force = force + beta * group.momentum if settings["nesterov"] else group.momentum
        group.moving = True
    group.left = group.left - rate * force


def _on_its_device(rate: Any) -> _Number:
    """A learning rate; one that lives on a device stays there, since reading it would wait."""
    if not isinstance(rate, Tensor):
        return 0.0 if rate is None else float(rate)
    if rate.device.type == "cpu":
        return float(rate)
    with torch.no_grad():
        return rate.detach().clone().to(widest_float(rate.device))
