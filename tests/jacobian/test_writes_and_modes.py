"""Forward passes that write to weights are refused unharmed; modes are set without asking modules.

The oracle is a copy of everything taken before.
"""

import pytest
import torch
from jacobian.models import MLP, gap
from jacobian.snapshots import assert_same, state_of
from torch import nn

from ntkwatch.errors import ModelChangedError, WeightsChangedError
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.undisturbed import undisturbed

from oracles import dense_ntk


class Clamps(MLP):
    """Keeps its weights in a box at each call, as critics do."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        weight = self[0].weight
        with torch.no_grad():
            if self.how == "in place":
                weight.clamp_(-0.1, 0.1)
            elif self.how == "through .data":
                weight.data.clamp_(-0.1, 0.1)
            else:
                weight.data = weight.data.clamp(-0.1, 0.1)
        return super().forward(x)


@pytest.mark.parametrize("how", ["in place", "through .data", "by a new .data"])
@pytest.mark.parametrize("forward", [None, lambda model, x: model(x)])
def test_a_forward_that_changes_weights_is_refused_before_it_changes_any(how, forward):
    model, x = Clamps(how), torch.randn(4, 4)
    before = state_of(model)
    with pytest.raises(ModelChangedError, match=r"writes to 1 of its own .* \(0\.weight\)"):
        empirical_ntk(model, x, forward=forward)
    assert_same(before, state_of(model))


def test_weights_that_a_forward_only_touches_are_copied_for_it():
    """Rows within max_norm are renormalised to themselves: a write without a change."""
    model = nn.Sequential(nn.Embedding(11, 4, max_norm=1e3), nn.Flatten(), nn.Linear(8, 2))
    x, before = torch.randint(0, 11, (4, 2)), state_of(model)
    kernel = empirical_ntk(model, x, dtype=torch.float32)
    assert_same(before, state_of(model))
    assert gap(kernel.matrix, dense_ntk(model, x)) < 5e-6


def test_a_write_that_goes_round_the_substitutes_is_reported():
    class Writes(MLP):
        def __init__(self):
            super().__init__()
            self.__dict__["own"] = self[0].weight

        def forward(self, x):
            if len(x) == 1:  # as the engines call it, after the first look
                with torch.no_grad():
                    self.own.mul_(1.0)
            return super().forward(x)

    with pytest.raises(ModelChangedError, match=r"wrote to 1 of its own parameters .* \(0\.weight"):
        empirical_ntk(Writes(), torch.randn(4, 4))


class Sneaks(MLP):
    """Writes to its memory by ways that torch does not see, whenever ``does`` says so."""

    def __init__(self, what, does="write"):
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))
        self.what, self.does = what, does
        # A reference of its own, which no substitute replaces.
        self.own = [self[0].weight if what == "0.weight" else self.seen]

    def forward(self, x):
        if self.does != "rest":
            self.own[0].detach().numpy()[0] += 1
        if self.does == "write and fail":
            raise ValueError("afterwards")
        return super().forward(x)


@pytest.mark.parametrize("does", ["write", "write and fail"])
@pytest.mark.parametrize("what", ["0.weight", "seen"])
def test_a_write_that_torch_does_not_see_is_reported_as_harm_done(what, does):
    model, x = Sneaks(what, does), torch.randn(4, 4)
    before = state_of(model)
    with pytest.raises(WeightsChangedError, match=rf"Sneaks changed 1 .* \({what}\)") as caught:
        empirical_ntk(model, x, forward=lambda m, x: m(x), engine="structured")
    assert "start it again from a checkpoint" in str(caught.value)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert not torch.equal(tensors.pop(what), before["values"][what]), "else there is no harm"
    assert all(torch.equal(tensor, before["values"][name]) for name, tensor in tensors.items())


def test_a_write_through_data_and_numpy_is_seen_where_substitutes_are_called():
    class Writes(MLP):
        def forward(self, x):
            self[0].weight.data.numpy()[0] += 1
            return super().forward(x)

    with pytest.raises(WeightsChangedError, match=r"changed 1 .* \(0\.weight\)"):
        empirical_ntk(Writes(), torch.randn(4, 4), engine="structured")


@pytest.mark.parametrize("what", ["0.weight", "seen"])
def test_what_a_copy_holds_is_put_back_after_an_unseen_write(what):
    model = Sneaks(what)
    before = state_of(model)
    stale = {"0.weight": torch.zeros(5, 4), "seen": torch.ones(3)}
    copies = [stale, {name: value.clone() for name, value in before["values"].items()}]
    with (
        pytest.raises(WeightsChangedError, match="They were put back from copies"),
        undisturbed(model, copies=copies),
    ):
        model(torch.randn(4, 4))
    after = state_of(model)
    assert {
        n for n in before["values"] if not torch.equal(before["values"][n], after["values"][n])
    } == set()


def test_an_interruption_is_passed_on_as_it_is():
    with pytest.raises(KeyboardInterrupt), undisturbed(MLP()):
        raise KeyboardInterrupt


# Modes. -------------------------------------------------------------------------------------------


class Merging(nn.Linear):
    """As in loralib: evaluation mode merges an adapter into the weight, training takes it out."""

    def __init__(self):
        super().__init__(4, 3)
        self.adapter = nn.Parameter(torch.randn(3, 4))
        self.merged = False
        self.calls = 0

    def train(self, mode=True):
        super().train(mode)
        self.calls += 1
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.adapter.data
            self.merged = not mode
        return self

    def forward(self, x):
        weight = self.weight if self.merged else self.weight + self.adapter
        return nn.functional.linear(x, weight, self.bias)


def test_a_module_that_merges_weights_when_its_mode_changes_is_not_asked_to():
    model, x = Merging(), torch.randn(4, 4)
    expected, before = dense_ntk(model, x), state_of(model)
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    assert_same(before, state_of(model))
    assert (model.merged, model.calls) == (False, 0)
    assert gap(kernel.matrix, expected) < 1e-14


def test_modes_inside_are_those_that_eval_would_give_whatever_train_does():
    class Keeps(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].train(True)
            return self

    model = nn.Sequential(Keeps(nn.Linear(2, 2), nn.Dropout(0.0)), nn.Dropout()).train()
    with undisturbed(model):
        assert [m.training for m in model.modules()] == [False, False, False, True, False]
    assert all(m.training for m in model.modules())


def test_a_train_method_that_fails_leaves_plain_evaluation_mode():
    class Fails(MLP):
        def train(self, mode=True):
            raise AttributeError("no trainer")

    model = Fails()
    with undisturbed(model):
        assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.modules())
