"""The experiment that verdicts are judged by, where its outcome is known.

A network that is linear in its weights is its own twin, whatever the optimizer; and in the
two-layer network the output scale decides (Chizat, Oyallon and Bach 2019).
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from calibration import training as calibration_training
from calibration.settings import Setting, all_settings
from calibration.training import train
from calibration.twin import answer_of, twin_gaps

# Torch compiles its own rules for forward mode when they are first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

_LINEAR = Setting(
    group="linear",
    architecture="mlp",
    data="digits",
    loss="cross-entropy",
    optimizer="sgd",
    alpha=1.0,
    steps=40,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "square"},
        {"optimizer": "adamw", "rate": 2e-3},
        {"optimizer": "adamw", "rate": 2e-3, "shrink": 0.1},
    ],
    ids=["sgd", "square", "adamw", "decay"],
)
def test_a_linear_network_is_its_own_twin(changes, monkeypatch):
    def linear(setting, data):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, data.outputs))

    monkeypatch.setattr(calibration_training, "network", linear)
    trained = train(replace(_LINEAR, **changes))
    assert [anchor.step for anchor in trained.anchors] == [0, 20]
    for anchor in trained.anchors:
        assert max(twin_gaps(trained, anchor)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "answer"), [(10.0, "lazy"), (0.01, "feature-learning")])
def test_the_twin_follows_a_large_output_scale_and_not_a_small_one(alpha, answer):
    settings = [s for s in all_settings() if s.group == "scale of tanh" and s.alpha == alpha]
    trained = train(settings[0])
    assert answer_of(twin_gaps(trained, trained.anchors[0])[0]) == answer


def test_the_halves_share_neither_a_setting_nor_a_seed_and_names_tell_all_apart():
    settings = all_settings()
    fitted = [s for s in settings if s.fits]
    judging = [s for s in settings if not s.fits]
    assert {replace(s, seed=0) for s in fitted}.isdisjoint({replace(s, seed=0) for s in judging})
    assert {s.seed for s in fitted}.isdisjoint({s.seed for s in judging})
    assert len({s.name for s in settings}) == len(settings)
    assert sum(s.control is None for s in settings) >= 120
    for control in (None, "independent targets", "decay only"):
        assert any(s.control == control for s in judging)
