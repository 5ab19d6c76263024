"""The answer that a verdict is judged by: how far a training ends from all of frozen features.

The *twin* is the network made linear in its weights at an anchor, trained on with the same batches,
loss, optimizer (and its state) and learning rate. No kernel is computed and no path of the network
is looked at: it is an experiment. In the lazy limit the two end at the same weights (Chizat,
Oyallon and Bach 2019, arXiv:1812.07956); what the twin cannot follow, at any time, features did.
"""

import copy
from itertools import islice

import torch
from torch import Tensor, nn
from torch.func import functional_call

from calibration.linear import Weights, linear_outputs, stateless, trainable
from calibration.recipe import batches, loss_of, new_optimizer, rate_at, rate_limit
from calibration.settings import Setting
from calibration.training import Anchor, Training

__all__ = ["FEATURE_GAP", "LAZY_GAP", "answer_of", "twin_gaps"]

# The twin ends within a quarter of the network's way of it, or further than half of it away.
LAZY_GAP, FEATURE_GAP = 0.25, 0.5
_LONGER, _LOOKS = 1.5, 32


def answer_of(gap: float) -> str:
    """Return what a gap between weights says: lazy, transitional or feature-learning."""
    if gap < LAZY_GAP:
        return "lazy"
    return "transitional" if gap <= FEATURE_GAP else "feature-learning"


def twin_gaps(training: Training, anchor: Anchor) -> tuple[float, float]:
    """Return how near the twin ever comes: in weights, and in outputs on the probe.

    ``min_t |d(T) - d_twin(t)| / |d(T)|`` of the ways ``d = w - c w_a`` from the anchor, and of the
    outputs' changes along them. At any time ``t``, since features may also make training faster or
    slower; ``c`` is what decoupled decay leaves of the anchor until then.
    """
    twin = _Twin(training, anchor)
    nearest = (1.0, 1.0)
    steps = max(int(_LONGER * training.steps), anchor.step + _LOOKS)
    every = (steps - anchor.step) // _LOOKS
    rows_of = islice(batches(training.setting, training.data, steps), anchor.step, None)
    for step, rows in enumerate(rows_of, start=anchor.step):
        twin.step(step, rows)
        if (step + 1 - anchor.step) % every == 0 or step + 1 in (training.steps, steps):
            gaps = twin.gaps()
            nearest = min(nearest[0], gaps[0]), min(nearest[1], gaps[1])
    return nearest


class _Twin:
    """The linear network under way, and the network's end that it is compared with."""

    def __init__(self, training: Training, anchor: Anchor) -> None:
        self.setting, self.data = training.setting, training.data
        self.model = stateless(training.model)
        self.anchor, self.kept = anchor.weights, 1.0
        self.weights = {n: w.clone().requires_grad_() for n, w in anchor.weights.items()}
        self.optimizer = new_optimizer(self.setting, self.weights.values(), training.rate)
        self.optimizer.load_state_dict(copy.deepcopy(anchor.optimizer))
        self.rate = _stable(self.setting, self.model, training)
        for step in range(anchor.step, training.steps):
            self._decay(step)
        ended, begun = trainable(self.model), self.reference
        self.way = _flat(ended) - _flat(begun)
        with torch.no_grad():
            end, begin = (
                functional_call(self.model, w, (self.data.probe,)) for w in (ended, begun)
            )
        self.change, self.kept = end - begin, 1.0

    @property
    def reference(self) -> Weights:
        """What decay has left of the anchor."""
        return {name: self.kept * value for name, value in self.anchor.items()}

    def step(self, step: int, rows: Tensor) -> None:
        """One step of training: the gradient is ``J_a' dL/dF``."""
        output, pull = linear_outputs(self.model, self.reference, self.weights, self.data.x[rows])
        output.requires_grad_()
        loss = loss_of(self.setting, output, self.data.y[rows])
        (slope,) = torch.autograd.grad(loss, output)
        for name, gradient in pull(slope).items():
            self.weights[name].grad = gradient
        self.optimizer.param_groups[0]["lr"] = rate_at(self.setting, step, self.rate)
        self.optimizer.step()
        self._decay(step)

    def gaps(self) -> tuple[float, float]:
        """How far it is from where the network ended, in weights and in outputs."""
        reference, probe = self.reference, self.data.probe
        way = _flat(self.weights) - _flat(reference)
        here = linear_outputs(self.model, reference, self.weights, probe)[0]
        change = here - linear_outputs(self.model, reference, reference, probe)[0]
        return (
            float((self.way - way).norm() / self.way.norm()),
            float((self.change - change).norm() / self.change.norm()),
        )

    def _outputs(self, weights: Weights) -> Tensor:
        with torch.no_grad():
            return functional_call(self.model, weights, (self.data.probe,))

    def _decay(self, step: int) -> None:
        decay = self.optimizer.param_groups[0].get("weight_decay", 0.0)
        self.kept *= 1 - decay * rate_at(self.setting, step, self.rate)


def _stable(setting: Setting, model: nn.Module, training: Training) -> float:
    """The network's learning rate, but at most half of what frozen features stand."""
    if setting.optimizer == "adamw":
        return training.rate
    begun = copy.deepcopy(model)
    begun.load_state_dict({**begun.state_dict(), **training.anchors[0].weights})
    return min(setting.rate, 0.5) * rate_limit(setting, begun, training.data)


def _flat(weights: Weights) -> Tensor:
    return torch.cat([weights[name].detach().flatten() for name in sorted(weights)])
