"""Which trainings the verdict is calibrated on: every one has an answer found without a kernel.

Four dials that theory grades from lazy to feature-learning (output scale, width, parameterization,
learning rate), over architectures, data sets, losses and optimizers; and controls with nothing to
learn features of.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["Setting", "all_settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One training.

    Attributes:
        group: Of settings that are alike but for a dial.
        architecture: "two-layer", "mlp", "cnn", "cnn-batchnorm" or "transformer".
        data: Name of a data set.
        loss: "square" or "cross-entropy".
        optimizer: "gd", "sgd" (momentum 0.9) or "adamw" (its rate falls to 0 in a line).
        alpha: Output scale.
        seed: Of data, weights and batches.
        steps: Most steps.
        activation: Of a two-layer network.
        width: Of a two-layer network.
        power: Of its width in its output scale: 1/2 or 1.
        rate: Learning rate as a share of the largest stable one, or Adam's before ``/ alpha``.
        refreshed: Whether that share is taken of the present limit, or of the one at the start.
        shrink: Share of the weights that decay takes off in all, if not torch's default decay.
        control: What there is nothing to learn from, or None.
    """

    group: str
    architecture: str
    data: str
    loss: str
    optimizer: str
    alpha: float
    steps: int
    seed: int = 0
    activation: str = "relu"
    width: int = 256
    power: float = 0.5
    rate: float = 0.15
    refreshed: bool = False
    shrink: float | None = None
    control: str | None = None

    @property
    def name(self) -> str:
        """One line that tells it from all others."""
        known = {**asdict(self), "group": None}
        return ",".join(str(value) for value in known.values() if value is not None)

    @property
    def fits(self) -> bool:
        """Whether bands are fitted on it; the other half, of other settings and seeds, judges."""
        return self.seed < _SEEDS


_SEEDS = 2  # of each setting, in its half

_SPHERE = {
    "architecture": "two-layer",
    "data": "sphere",
    "loss": "square",
    "optimizer": "gd",
    "steps": 3000,
    "refreshed": True,
}


def all_settings() -> list[Setting]:
    """Return every training, in the order in which they are run.

    Every second setting is fitted on and the ones between judge, with other seeds; from group to
    group it is the other way round, so that each half sees every value of a dial.
    """
    places: dict[str, int] = {}
    found = []
    for number, setting in enumerate(_settings()):
        group = places.setdefault(setting.group, len(places))
        first = _SEEDS * ((number + group) % 2)
        found += [replace(setting, seed=seed) for seed in range(first, first + _SEEDS)]
    return found


def _settings() -> Iterator[Setting]:
    yield from _sphere()
    yield from _real()
    yield from _controls()


def _sphere() -> Iterator[Setting]:
    for activation in ("tanh", "relu", "linear"):
        for alpha in (0.01, 0.1, 1.0, 10.0):
            how = {**_SPHERE, "activation": activation, "alpha": alpha}
            yield Setting(group=f"scale of {activation}", **how)
    for width in (64, 1024):
        for power in (0.5, 1.0):
            group = "width, NTK parameterization" if power == 0.5 else "width, mean field"
            how = {**_SPHERE, "activation": "tanh", "alpha": 1.0, "width": width, "power": power}
            yield Setting(group=group, **how)
    for activation in ("tanh", "relu"):
        for rate in (0.25, 1.5):
            how = {**_SPHERE, "activation": activation, "alpha": 1.0, "width": 1024}
            how |= {"rate": rate, "refreshed": False}
            yield Setting(group="learning rate", **how)


_REAL = {
    "mlp": (("square", "sgd"), ("cross-entropy", "adamw")),
    "cnn": (("square", "sgd"), ("cross-entropy", "sgd"), ("cross-entropy", "adamw")),
    "cnn-batchnorm": (("square", "sgd"), ("cross-entropy", "sgd"), ("cross-entropy", "adamw")),
    "transformer": (("cross-entropy", "sgd"), ("cross-entropy", "adamw")),
}
_SCALES = {
    "mlp": (0.3, 3.0, 30.0, 300.0),
    "cnn": (1.0, 10.0, 100.0, 1000.0),
    "cnn-batchnorm": (1.0, 10.0, 100.0, 1000.0),
    "transformer": (1.0, 10.0, 100.0, 1000.0),
}


def _real() -> Iterator[Setting]:
    for architecture, ways in _REAL.items():
        for loss, optimizer in ways:
            for alpha in _SCALES[architecture]:
                how = _how(architecture, "digits", loss, optimizer, alpha)
                yield Setting(group=f"{architecture}, {loss}, {optimizer}", **how)
    for architecture in ("mlp", "cnn"):
        for alpha in _SCALES[architecture][:3]:
            how = _how(architecture, "digits", "cross-entropy", "adamw", alpha)
            yield Setting(group=f"{architecture}, strong decay", shrink=0.1, **how)
    for data, loss in (("cancer", "cross-entropy"), ("diabetes", "square")):
        for alpha in _SCALES["mlp"]:
            how = _how("mlp", data, loss, "sgd", alpha)
            yield Setting(group=f"{data}, {loss}", **how)


def _how(architecture: str, data: str, loss: str, optimizer: str, alpha: float) -> dict[str, Any]:
    rate = 2e-3 if optimizer == "adamw" else 0.15
    return {
        "architecture": architecture,
        "data": data,
        "loss": loss,
        "optimizer": optimizer,
        "alpha": alpha,
        "steps": 320,
        "rate": rate,
    }


def _controls() -> Iterator[Setting]:
    for control in ("independent targets", "decay only"):
        for architecture in _REAL:
            how = _how(architecture, "digits", "cross-entropy", "adamw", 1.0)
            yield Setting(group=control, control=control, **how)
    for alpha in (1.0, 10.0):
        how = _how("cnn-batchnorm", "digits", "cross-entropy", "sgd", alpha)
        yield Setting(group="buffers only", control="buffers only", **how)
    for alpha in (1.0, 10.0):
        how = {**_SPHERE, "activation": "relu", "alpha": alpha}
        yield Setting(group="gauge moves", control="gauge moves", **how)
