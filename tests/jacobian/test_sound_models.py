"""Models that treat samples one by one are not refused, whatever rounding and zeros look like."""

import copy

import pytest
import torch
from jacobian.models import MLP, Cancels, Part, Single, Wrapped, centred
from torch import nn

from ntkwatch.errors import SampleCouplingError
from ntkwatch.jacobian.engine import empirical_ntk


def _deep(norm):
    blocks = [part for _ in range(30) for part in (nn.Linear(32, 32), norm(), nn.ReLU())]
    return nn.Sequential(nn.Linear(4, 32), *blocks, nn.Linear(32, 3))


SOUND = {
    "batch norm in evaluation mode": (Wrapped(nn.BatchNorm1d(6)), (4,)),
    "layer norm": (Wrapped(nn.LayerNorm(6)), (4,)),
    "group norm": (Wrapped(nn.GroupNorm(2, 6)), (4,)),
    "dropout": (Wrapped(nn.Dropout()), (4,)),
    "attention": (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (5, 4)),
    "deep, without norms": (_deep(nn.Identity), (4,)),
    "deep, with norms": (_deep(lambda: nn.LayerNorm(32)), (4,)),
    "zero head": (nn.Sequential(MLP(), nn.Linear(3, 2)), (4,)),
    "zero everywhere": (MLP(), (4,)),
    "dead": (nn.Sequential(MLP(), Part(lambda y: 0 * y)), (4,)),
    "rounding in float32": (Cancels(), (300,)),
    "float32 inside": (Single(), (300,)),
}
nn.init.zeros_(SOUND["zero head"][0][1].weight)
for _parameter in SOUND["zero everywhere"][0].parameters():
    nn.init.zeros_(_parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", SOUND)
def test_models_that_treat_samples_one_by_one_are_not_refused(case, dtype):
    model, shape = SOUND[case]
    model = model.to(dtype)
    inputs = torch.randn(9, *shape, dtype=dtype)
    assert empirical_ntk(model, inputs, outputs="sum").matrix.shape == (9, 9)


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_the_size_of_the_outputs_does_not_matter(scale):
    x = torch.randn(6, 4)
    scaled = Part(lambda x: x * scale)
    assert empirical_ntk(nn.Sequential(MLP(), scaled), x, dtype=torch.float64)
    with pytest.raises(SampleCouplingError):
        empirical_ntk(nn.Sequential(Wrapped(Part(centred)), scaled), x, dtype=torch.float64)


def test_outputs_that_are_zero_at_the_start_are_neither_refused_nor_trusted():
    """Training often starts from f - f_0, whose size is 0 or rounding."""

    class Centred(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.start = net, copy.deepcopy(net).requires_grad_(False)

        def forward(self, x):
            return 100 * (self.net(x) - self.start(x))

    x = torch.randn(6, 4)
    assert empirical_ntk(Centred(MLP()), x).matrix.shape == (6, 6, 3, 3)
    with pytest.raises(SampleCouplingError):
        empirical_ntk(Centred(Wrapped(Part(centred))), x)


@pytest.mark.xfail(reason="samples are taken in reverse order", raises=SampleCouplingError)
def test_sequences_that_have_to_come_in_order_of_length_are_no_coupling():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.head(self.layer(packed)[1][0])

    inputs = (torch.randn(5, 4, 4), torch.tensor([4, 3, 3, 2, 1]))
    assert empirical_ntk(Packed(), inputs).matrix.shape == (5, 5, 2, 2)


def test_samples_that_are_all_alike_are_no_coupling():
    assert empirical_ntk(MLP(), torch.ones(6, 4)).matrix.shape == (6, 6, 3, 3)
