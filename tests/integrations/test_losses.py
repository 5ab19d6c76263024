"""The window of training losses; oracle: arithmetic."""

import pytest
import torch

from ntkwatch.integrations.run.losses import Losses


def test_the_mean_is_over_the_last_twenty_and_the_first_is_kept():
    losses = Losses()
    for value in range(30):
        losses.note(torch.tensor(float(value)))
    assert losses.first == 0.0
    assert losses.mean == pytest.approx(sum(range(10, 30)) / 20)
    assert losses.recent == [float(value) for value in range(10, 30)]


def test_nothing_noted_is_nothing_known():
    losses = Losses()
    assert (losses.first, losses.mean, losses.recent) == (None, None, [])


@pytest.mark.parametrize("loss", [None, torch.zeros(3), torch.zeros(0)])
def test_what_is_no_single_number_is_passed_over(loss):
    losses = Losses()
    losses.note(loss)
    assert losses.mean is None


def test_a_loss_is_copied_and_may_have_a_graph_and_a_shape():
    losses, loss = Losses(), torch.full((1, 1), 2.0, requires_grad=True)
    losses.note(loss)
    with torch.no_grad():
        loss.fill_(9.0)
    assert losses.mean == 2.0


def test_losses_put_back_count_in_the_mean_and_not_as_the_first():
    losses = Losses()
    losses.put_back([4.0, 2.0])
    assert (losses.first, losses.mean) == (None, 3.0)
    losses.note(torch.tensor(0.0))
    assert (losses.first, losses.mean) == (0.0, 2.0)
    losses.let_go()
    assert (losses.first, losses.recent) == (None, [])
