"""Models whose samples depend on each other, or on chance, are refused with the module and a cure.

The oracle is the definition: changing one sample must not change another one's outputs.
"""

import pytest
import torch
from jacobian.models import MLP, Part, Wrapped, centred
from torch import nn
from torch.nn import functional

from ntkwatch.errors import RandomForwardError, SampleCouplingError
from ntkwatch.jacobian.culprit import find_culprit
from ntkwatch.jacobian.engine import empirical_ntk


class StaysInTraining(nn.Module):
    """Its batch norm is put back into training mode whatever is asked."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def train(self, mode=True):
        super().train(mode)
        self.norm.train(True)
        return self

    def forward(self, x):
        return self.norm(x)


class AttendsOverBatch(nn.Module):
    """Attention without batch_first: the batch is taken for the sequence."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def _pairs(x):
    """Each sample with its neighbour."""
    return (
        x + x.roll(-1, dims=0) if len(x) % 2 else x + x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    )


def _halves(x):
    """Two views of one thing, stacked: sample i goes with sample i + N/2."""
    return x * x.roll(len(x) // 2, dims=0)


def _attention_by_hand(x):
    return x + (x @ x.mT).softmax(dim=-1) @ x


def _spread(x):
    """What a discriminator sees of its minibatch: how much samples differ."""
    return torch.cat([x[:, :5], x.std(dim=0, correction=0).mean().expand(len(x), 1)], dim=1)


def _whitened(x):
    covariance = centred(x).mT @ centred(x) / len(x)
    return x @ torch.linalg.inv(torch.linalg.cholesky(covariance + 0.1 * torch.eye(6).to(x)))


def _limited(x):
    """Experts with room for one sample: who comes later is passed by."""
    chosen = torch.stack([x[:, 0] > -9, x[:, 0] <= -9], dim=1)
    turn = (chosen.cumsum(dim=0) * chosen).sum(dim=1)
    return torch.where((turn <= 1)[:, None], 2 * x, x)


def _balanced(x):
    """Assignments made equal over the batch, as in swapped predictions."""
    share = x.exp()
    for _ in range(3):
        share = share / share.sum(dim=0)
        share = share / share.sum(dim=1, keepdim=True)
    return share


class Plain(Wrapped):
    """The same done between the layers, in no module of its own."""

    def __init__(self, function):
        super().__init__(nn.Identity())
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def _statistics(x):
    return functional.batch_norm(x, None, None, training=True)


COUPLED = {
    "no running statistics": (
        Wrapped(nn.BatchNorm1d(6, track_running_stats=False)),
        r"part \(BatchNorm1d\).*It uses batch statistics in evaluation mode: set track_running",
    ),
    "kept in training mode": (
        Wrapped(StaysInTraining()),
        r"part\.norm \(BatchNorm1d\).*let model\.eval\(\) reach it",
    ),
    "batch statistics by hand": (
        Wrapped(Part(centred)),
        r"part \(Part\).*batch statistics \(BatchNorm with track_running_stats=False",
    ),
    "functional batch norm": (Wrapped(Part(_statistics)), r"part \(Part\)"),
    "between modules": (Plain(centred), r"the model itself \(Plain\)"),
    "attention over the batch": (Wrapped(AttendsOverBatch()), r"attention over the batch"),
    "attention over the batch by hand": (Wrapped(Part(_attention_by_hand)), r"part \(Part\)"),
    "softmax over the batch": (Wrapped(Part(lambda x: x.softmax(dim=0))), r"part \(Part\)"),
    "instance norm of samples as positions": (
        Wrapped(Part(lambda x: functional.instance_norm(x.mT[None])[0].mT)),
        r"part \(Part\)",
    ),
    "statistics held constant": (
        Wrapped(Part(lambda x: x - x.mean(dim=0).detach())),
        r"part \(Part\)",
    ),
    "spread of the batch": (Wrapped(Part(_spread)), r"part \(Part\)"),
    "whitening": (Wrapped(Part(_whitened)), r"part \(Part\)"),
    "balanced assignments": (Wrapped(Part(_balanced)), r"part \(Part\)"),
    "experts that fill up": (Wrapped(Part(_limited)), r"part \(Part\)"),
    "a sum that runs over samples": (
        Wrapped(Part(lambda x: x + x.cumsum(dim=0))),
        r"part \(Part\)",
    ),
    "order among the samples": (
        Wrapped(Part(lambda x: x * (1 + x[:, :1].argsort(dim=0).argsort(dim=0)))),
        r"part \(Part\)",
    ),
    "neighbours": (Wrapped(Part(_pairs)), r"part \(Part\)"),
    "two views": (Wrapped(Part(_halves)), r"part \(Part\)"),
    "size of the batch": (Wrapped(Part(lambda x: x / len(x))), r"part \(Part\)"),
    "weak": (Wrapped(Part(lambda x: x + 1e-3 * centred(x))), r"part \(Part\)"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 4, 7, 8])
@pytest.mark.parametrize("case", COUPLED)
def test_coupled_samples_are_refused_with_the_module_and_a_cure(case, n, dtype):
    model, words = COUPLED[case]
    with pytest.raises(SampleCouplingError, match=rf"mixes samples.*{words}.*or pass forward="):
        empirical_ntk(model.to(dtype), torch.randn(n, 4, dtype=dtype))


def test_a_model_that_needs_company_is_refused_where_it_fails():
    model = Wrapped(nn.BatchNorm1d(6, track_running_stats=False))
    words = r"it fails \(ValueError: Expected more than 1 value.*in part \(BatchNorm1d\)"
    with pytest.raises(SampleCouplingError, match=words):
        empirical_ntk(model, torch.randn(2, 4))


@pytest.mark.parametrize("weight", ["last", "gate"])
def test_coupling_behind_a_weight_that_is_still_zero_is_seen(weight):
    """A zero head or gate hides it from the outputs, and the kernel would be wrong in silence."""

    class Gated(Plain):
        def __init__(self):
            super().__init__(centred)
            self.gate = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            h = self.first(x)
            return self.last(h + self.gate * centred(h) if weight == "gate" else centred(h))

    model = Gated()
    if weight == "last":
        nn.init.zeros_(model.last.weight)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(SampleCouplingError, match=r"first in the model itself \(Gated\)"):
        empirical_ntk(model, torch.randn(6, 4))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_similarities_between_samples_are_refused():
    """A contrastive head: each sample has a logit for every other one."""

    class Contrastive(MLP):
        def forward(self, x):
            z = functional.normalize(super().forward(x), dim=-1)
            return z @ z.mT

    for n in (2, 5):
        with pytest.raises(SampleCouplingError, match="mixes samples"):
            empirical_ntk(Contrastive(), torch.randn(n, 4))


def test_coupling_that_only_gradients_show_is_seen():
    """Straight through: the values of each sample are its own, its gradient is not."""

    def through(x):
        return x + centred(x) - centred(x).detach()

    words = "with another sample beside it, the gradient"
    with pytest.raises(SampleCouplingError, match=words):
        empirical_ntk(Wrapped(Part(through)), torch.randn(6, 4))


def test_gradients_divided_by_how_often_a_token_occurs_in_the_batch_are_refused():
    model = nn.Sequential(nn.Embedding(7, 4, scale_grad_by_freq=True), nn.Flatten())
    with pytest.raises(SampleCouplingError, match="with another sample beside it, the gradient"):
        empirical_ntk(model, torch.tensor([[0, 1], [1, 2], [0, 1], [0, 2]]))


@pytest.mark.parametrize("largest", range(6))
def test_a_scale_taken_from_the_largest_sample_is_seen_whichever_that_is(largest):
    """Calls that hold the largest sample agree with the whole batch."""
    x = torch.randn(6, 4)
    x[largest] *= 100
    with pytest.raises(SampleCouplingError, match=r"part \(Part\)"):
        empirical_ntk(Wrapped(Part(lambda h: h / h.abs().max())), x)


def test_coupling_of_one_sample_in_large_batches_is_seen():
    def first_sees_all(h):
        others = h[1:].mean(dim=0) if len(h) > 2 else 0
        return torch.cat([h[:1] + others, h[1:]])

    with pytest.raises(SampleCouplingError, match=r"on 4 of the 8 probe samples.*part \(Part\)"):
        empirical_ntk(Wrapped(Part(first_sees_all)), torch.randn(8, 4))


def test_looking_for_the_culprit_leaves_no_hook():
    model, x = Wrapped(Part(centred)), torch.randn(6, 4)
    rows = torch.arange(3)
    found = find_culprit(model, lambda: model(x), lambda: model(x[:3]), rows, 6, tolerance=1e-5)
    assert found is not None
    assert found[1] is model.part
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_function_of_the_outputs_that_mixes_samples_is_refused():
    with pytest.raises(SampleCouplingError, match="or an outputs= function that does so"):
        empirical_ntk(MLP(), torch.randn(6, 4), outputs=centred)


def test_a_recurrent_layer_that_takes_samples_for_time_is_refused():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = nn.GRU(4, 3)

        def forward(self, x):
            return self.recurrent(x)[0]

    with pytest.raises(SampleCouplingError, match="mixes samples"):
        empirical_ntk(TimeFirst(), torch.randn(5, 6, 4))


def test_coupling_among_second_inputs_is_not_hidden_by_a_single_first_one():
    x = torch.randn(5, 4)
    with pytest.raises(SampleCouplingError, match="mixes samples"):
        empirical_ntk(Wrapped(Part(centred)), x[:1], other=x[1:])


# Chance. ------------------------------------------------------------------------------------------


def test_dropout_that_stays_active_is_refused_by_name():
    class Active(nn.Dropout):
        def train(self, mode=True):
            return super().train(True)

    words = r"draws random numbers.*first in part \(Active\).*let model\.eval\(\) reach it"
    with pytest.raises(RandomForwardError, match=words):
        empirical_ntk(Wrapped(Active()), torch.randn(6, 4))


def test_chance_behind_a_head_that_is_still_zero_is_seen():
    model = Wrapped(Part(lambda x: x * torch.rand_like(x)))
    nn.init.zeros_(model.last.weight)
    with pytest.raises(RandomForwardError, match=r"part \(Part\)"):
        empirical_ntk(model, torch.randn(6, 4))


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_noise_by_hand_is_refused_even_where_it_is_small(size):
    model = Wrapped(Part(lambda x: x + size * torch.randn_like(x)))
    with pytest.raises(RandomForwardError, match=r"part \(Part\).*Make it deterministic"):
        empirical_ntk(model, torch.randn(6, 4))


def test_a_model_that_remembers_its_last_call_is_refused():
    class Remembers(MLP):
        state = 0.0

        def forward(self, x):
            self.state = self.state + 1.0
            return super().forward(x) * self.state

    with pytest.raises(RandomForwardError, match="or keeps something from call to call"):
        empirical_ntk(Remembers(), torch.randn(6, 4))
