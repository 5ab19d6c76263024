"""What the first process of a sharded run says to the others, whose trackers do as its own does."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.jacobian.inputs import leaves, map_inputs
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.record.history import History

__all__ = ["Begin", "GoOn", "Observe", "Probe", "packed", "unpacked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A probe on its way, on the CPU.

    Attributes:
        batch: The probe.
        on_device: Whether it was where the model is.
    """

    batch: ProbeBatch
    on_device: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """A new tracker.

    Attributes:
        probe: Its probe.
        fresh: Whether every observation has a probe of its own.
        words: Where its reference comes from.
    """

    probe: Probe
    fresh: bool
    words: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe:
    """One observation.

    Attributes:
        step: Optimizer steps taken so far.
        warmup_steps: Of the tracker.
        brief: Whether the first process leaves out what takes longest.
        buffers: From before the first update, where its weights are to be measured; or None.
    """

    step: int
    warmup_steps: float
    brief: bool
    buffers: dict[str, Tensor] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GoOn:
    """A tracker that goes on from an earlier run, with the anchors that were just read.

    Attributes:
        history: What was observed until then.
        has_warmup: Whether the anchor at the end of the warm-up is one of them.
        last_kernel: Trace kernel of its last whole observation, on the CPU, or None.
    """

    history: History
    has_warmup: bool
    last_kernel: Tensor | None


def packed(probe: ProbeBatch) -> Probe:
    """Return a probe as it travels."""
    tensors = leaves(probe.inputs)
    return Probe(
        batch=_moved(probe, torch.device("cpu")),
        on_device=any(tensor.device.type != "cpu" for tensor in tensors),
    )


def unpacked(probe: Probe, model: nn.Module) -> ProbeBatch:
    """Return a probe that has travelled, on the model's device if it was there before."""
    return _moved(probe.batch, next(model.parameters()).device) if probe.on_device else probe.batch


def _moved(probe: ProbeBatch, device: torch.device) -> ProbeBatch:
    inputs = map_inputs(lambda tensor: tensor.to(device), probe.inputs)
    targets = None if probe.targets is None else probe.targets.to(device)
    return replace(probe, inputs=inputs, targets=targets)
