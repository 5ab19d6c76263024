"""Rung 2: the two-layer linear network, whose end of training is known in closed form.

``f = a'Wx / (gamma m)``, inputs the n unit vectors, target of norm Y: with
``q = sqrt(1 + gamma^2 Y^2)`` everything below follows from ``cosh`` and ``sinh`` of one angle. The
formulas are written out here; the network is trained by hand.
"""

import math

import pytest
import torch

from ntkwatch.kernel.two_layer_linear import two_layer_linear

from regimes.solvable import solved


def _closed_form(strength: float, n: int) -> dict[str, float]:
    q = math.sqrt(1 + strength**2)
    c = math.sqrt((1 + q) / 2)
    total = math.sqrt(n * (1 + q) ** 2 + 2 * (1 + q) * (q - 1) + (q - 1) ** 2)
    return {
        "change": (q - 1) * math.sqrt(n + 3) / (2 * math.sqrt(n)),
        "distance": 1 - (n * (1 + q) + q - 1) / (math.sqrt(n) * total),
        "error": 1 - 1 / c,
        "ratio": math.sqrt(2 / (c * (c + 1))),
        "alignment": 2 * q / total,
        "read-out": math.acos((n + q - 1) / math.sqrt(n * (n - 1 + q**2))),
        "along": q,
        "across": (1 + q) / 2,
    }


def _found(strength: float, n: int, seeds: int) -> dict[str, float]:
    """What the package measures at the end, means over seeds."""
    runs = [solved(strength, n, seed=seed) for seed in range(seeds)]
    means = {
        "change": [run.seen.relative_kernel_change for run in runs],
        "distance": [run.seen.kernel_distance for run in runs],
        "error": [run.seen.linearization_error for run in runs],
        "ratio": [run.ratio for run in runs],
        "alignment": [run.alignment for run in runs],
        "read-out": [run.seen.layer_angle["a"] for run in runs],
        "first layer": [run.seen.layer_angle["w"] for run in runs],
        "along": [run.growth[0] for run in runs],
        "across": [run.growth[1] for run in runs],
    }
    return {key: sum(values) / seeds for key, values in means.items()}


@pytest.mark.parametrize("strength", [1.0, 3.0, 10.0])
def test_the_end_of_training_is_that_of_the_closed_form(strength):
    """Within 3 %, of which a width of 4096 and four seeds leave something."""
    found, expected = _found(strength, 8, 4), _closed_form(strength, 8)
    assert found.pop("first layer") < 0.03
    assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("strength", [1.0, 3.0, 10.0])
def test_the_packages_own_closed_form_is_the_same(strength):
    told = two_layer_linear(torch.tensor(strength).double(), samples=8)
    expected = _closed_form(strength, 8)
    assert float(told.relative_kernel_change) == pytest.approx(expected["change"], rel=1e-12)
    assert float(told.kernel_distance) == pytest.approx(expected["distance"], rel=1e-9)
    assert float(told.linearization_error) == pytest.approx(expected["error"], rel=1e-12)
    assert float(told.displacement_ratio) == pytest.approx(expected["ratio"], rel=1e-12)
    assert float(told.target_alignment) == pytest.approx(expected["alignment"], rel=1e-12)
    assert float(told.readout_angle) == pytest.approx(expected["read-out"], rel=1e-12)


def test_error_and_displacement_ratio_do_not_hang_on_the_number_of_probe_points():
    """128 points against 8; the distance is bounded by about one over twice their number."""
    expected = _closed_form(10.0, 8)
    run = solved(10.0, 128)
    assert run.seen.linearization_error == pytest.approx(expected["error"], rel=0.03)
    assert run.ratio == pytest.approx(expected["ratio"], rel=0.03)
    # Of random weights of this width, half of the distance at 128 points is their noise.
    exact = solved(10.0, 128, orthogonal=True)
    assert exact.seen.kernel_distance < 0.003
    assert exact.seen.kernel_distance == pytest.approx(
        _closed_form(10.0, 128)["distance"], rel=0.01
    )


def test_weak_training_hardly_moves_the_kernel():
    assert _found(0.1, 8, 2)["change"] < 0.01


def test_the_residual_decays_as_its_differential_equation_says():
    """``d Delta / dt = -2 sqrt(1 + (Y - Delta)^2) Delta``: the rate is the kernel along y."""
    strength = 3.0
    on_the_way = solved(strength, 8, looks=5).on_the_way
    assert len(on_the_way) == 5
    for residual, rate in on_the_way:
        expected = 2 * math.sqrt(1 + (strength - residual) ** 2)
        assert rate == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("strength", "label"),
    [(0.1, "lazy"), (1.0, "lazy"), (3.0, "transitional"), (10.0, "feature-learning")],
)
def test_the_verdict_follows_the_strength_although_the_distance_stays_small(strength, label):
    run = solved(strength, 32)
    assert run.seen.kernel_distance < 0.012  # 0.0095 and finite width
    assert run.verdict.strength == label


def test_eight_probe_points_are_too_few_for_a_verdict():
    verdict = solved(3.0, 8).verdict
    assert verdict.strength == "undetermined"
    assert verdict.qualifier == "probe too small"
