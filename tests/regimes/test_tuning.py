"""Rung 12: fine-tuning moves less than training from scratch, and a zero block divides nothing.

Order alone is asserted, at equal loss.
"""

import math

import pytest

from ntkwatch import judge

from regimes.tuning import pretrained, tuned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def body():
    return pretrained()


def _end(tracker):
    return tracker.history[-1]


def test_fine_tuning_moves_outputs_and_features_less_than_training_from_scratch(body):
    watched = tuned("scratch")
    scratch, fine = _end(watched), _end(tuned("full", body))
    assert judge(watched.history).strength == "feature-learning"
    assert fine.linearization_error < scratch.linearization_error
    assert fine.layer_angle_median < scratch.layer_angle_median


def test_with_the_head_trained_first_fine_tuning_moves_the_kernel_less(body):
    """At a lower loss, since the head alone gets some of the way."""
    plain, first = (_end(tuned(way, body, stop=0.4)) for way in ("full", "head first"))
    assert first.layer_angle_median < plain.layer_angle_median
    assert first.relative_kernel_change < plain.relative_kernel_change


def test_low_rank_blocks_that_start_at_zero_have_no_reference_and_stop_nothing(body):
    seen = _end(tuned("low rank", body))
    without = [name for name, angle in seen.layer_angle.items() if angle is None]
    assert without == [f"body.blocks.{i}.{layer}.a" for i in (0, 1) for layer in ("qkv", "up")]
    for name in without:
        assert "zero at the anchor" in seen.left_out[f"layer_angle/{name}"]
    numbers = (seen.layer_angle_median, seen.linearization_error, seen.relative_kernel_change)
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert all(angle >= 0 for angle in seen.layer_angle.values() if angle is not None)
    assert seen.layer_angle["body.blocks.0.qkv.b"] > 0
