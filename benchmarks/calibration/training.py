"""One training of the calibration: watched by a tracker, with what its twin needs kept."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from calibration.data import Data, load
from calibration.linear import Weights, trainable
from calibration.models import Centred, network
from calibration.recipe import batches, first_rate, loss_of, new_optimizer, rate_at, rate_limit
from calibration.settings import Setting
from ntkwatch import KernelTracker, ProbeBatch, training_of

__all__ = ["Anchor", "Training", "train"]

_STOP = 0.02  # of the targets' norm, where every sample is seen at every step
_WARMUP = 20
_LOOKS = (_WARMUP, 80, 160)  # besides the start and the end
# How often each class comes where targets have nothing to do with the inputs: a bias can learn it.
_PRIOR = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01])


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A moment of a training that its twin can go on from.

    Attributes:
        step: Steps taken until then.
        weights: As they were.
        optimizer: Its state.
    """

    step: int
    weights: Weights
    optimizer: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Training:
    """A training, under way or over.

    Attributes:
        setting: What is trained.
        model: As it is now.
        data: What it is trained on.
        tracker: What was seen of it.
        anchors: The start, and the end of the warm-up where that was reached.
        steps: Taken so far.
        rate: At the start.
    """

    setting: Setting
    model: Centred
    data: Data
    tracker: KernelTracker
    anchors: list[Anchor] = field(default_factory=list)
    steps: int = 0
    rate: float = math.nan


def train(setting: Setting) -> Training:
    """Train and watch as a setting says."""
    data = load(setting.data, setting.seed)
    torch.manual_seed(setting.seed)
    model = Centred(network(setting, data), setting.alpha).to(data.x.dtype).train()
    tracker = KernelTracker(ProbeBatch(data.probe, data.probe_y), warmup_steps=_WARMUP)
    training = Training(setting=setting, model=model, data=data, tracker=tracker)
    _look(training)
    {
        None: _descend,
        "independent targets": _descend,
        "decay only": _decay_only,
        "buffers only": _buffers_only,
        "gauge moves": _gauge_moves,
    }[setting.control](training)
    if tracker.history[-1].step != training.steps:
        _look(training)
    return training


def _look(training: Training, optimizer: torch.optim.Optimizer | None = None) -> None:
    known = None if optimizer is None else training_of(optimizer)
    loss = _loss_now(training)
    training.tracker.observe(training.model, training.steps, loss=loss, training=known)


# Ways to move weights. ----------------------------------------------------------------------------


def _descend(training: Training) -> None:
    setting, model, data = training.setting, training.model, training.data
    training.rate = first_rate(setting, model, data)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = new_optimizer(setting, weights, training.rate)
    independent = torch.Generator().manual_seed(setting.seed)
    for step, rows in enumerate(batches(setting, data, setting.steps)):
        if step in (0, _WARMUP):
            training.anchors.append(_anchor(training, optimizer))
        x, y = data.x[rows], data.y[rows]
        if setting.control == "independent targets":
            y = torch.multinomial(_PRIOR, len(x), replacement=True, generator=independent)
        output = model(x)
        if setting.optimizer == "gd" and (output - y).norm() <= _STOP * y.norm():
            return
        rate = rate_at(setting, step, training.rate)
        if setting.refreshed:
            rate = setting.rate * rate_limit(setting, model, data)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss_of(setting, output, y).backward()
        optimizer.step()
        training.tracker.note_step(optimizer)
        training.steps = step + 1
        if training.steps in _LOOKS:
            _look(training, optimizer)


def _decay_only(training: Training) -> None:
    """No gradient at all: weights shrink by a tenth."""
    weights = [p for p in training.model.parameters() if p.requires_grad]
    for step in range(training.setting.steps):
        with torch.no_grad():
            for p in weights:
                p.mul_(0.9 ** (1 / training.setting.steps))
        training.steps = step + 1
        if training.steps in _LOOKS:
            _look(training)


def _buffers_only(training: Training) -> None:
    """Batches run through and no weight moves."""
    setting, data = training.setting, training.data
    for step, rows in enumerate(batches(setting, data, setting.steps)):
        with torch.no_grad():
            training.model(data.x[rows])
        training.steps = step + 1
        if training.steps in _LOOKS:
            _look(training)


def _gauge_moves(training: Training) -> None:
    """The two layers of a ReLU network are scaled against each other: the same function."""
    scale = (1.1, 1.5, 2.0, 10.0)[training.setting.seed]
    net = training.model.net
    with torch.no_grad():
        net.w.weight.mul_(scale)
        net.a.weight.div_(scale)
    training.steps = 100


# What is kept, and what is known. -----------------------------------------------------------------


def _anchor(training: Training, optimizer: torch.optim.Optimizer) -> Anchor:
    weights = {name: value.clone() for name, value in trainable(training.model).items()}
    state = copy.deepcopy(optimizer.state_dict())
    return Anchor(step=training.steps, weights=weights, optimizer=state)


def _loss_now(training: Training) -> float | None:
    """On the whole training set, leaving running averages as they are; None if none is trained."""
    setting, data, y = training.setting, training.data, training.data.y
    if setting.control == "independent targets":
        maker = torch.Generator().manual_seed(2000 + setting.seed)
        y = torch.multinomial(_PRIOR, len(y), replacement=True, generator=maker)
    elif setting.control is not None:
        return None
    with torch.no_grad():
        value = float(loss_of(setting, copy.deepcopy(training.model)(data.x), y))
    return value if math.isfinite(value) else math.inf
