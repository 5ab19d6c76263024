"""A finite network beside its infinite-width limit: closed forms, and the rate of rung 3.

The closed form of one and of three ReLU layers is written out here with ``arccos``; the rate is
that of a mean over neurons.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from ntkwatch import infinite_width_gap
from ntkwatch.errors import InputError

from oracles import dense_jacobian

f64 = {"dtype": torch.float64}
MEASURED = {
    1: {32: 0.42, 128: 0.22, 512: 0.108, 1024: 0.072},
    3: {32: 0.797, 128: 0.281, 512: 0.161},
}


class Times(nn.Module):
    def __init__(self, factor, act):
        super().__init__()
        self.factor, self.act = factor, act

    def forward(self, z):
        return self.factor * self.act(z)


def _inputs(n: int, d: int = 16, seed: int = 1) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), **f64)
    return x / x.norm(dim=1, keepdim=True)


def _network(width: int, depth: int, *, seed: int, act=None, outputs=1, bias=False):
    """``w ~ N(0, 1 / fan_in)`` and sqrt 2 in the activation: signals keep their size."""
    torch.manual_seed(seed)
    sizes = [16, *[width] * depth, outputs]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out, bias=bias, **f64)
        nn.init.normal_(linear.weight, std=fan_in**-0.5)
        if bias:
            nn.init.normal_(linear.bias, std=0.3)
        layers += [linear, Times(math.sqrt(2), torch.relu) if act is None else act]
    return nn.Sequential(*layers[:-1])


def _closed_form(x: torch.Tensor, depth: int) -> torch.Tensor:
    """Of sqrt 2 ReLU on unit inputs without biases, over d as the first layer divides."""
    cosine = (x @ x.T).clamp(-1, 1)
    ntk = cosine
    for _ in range(depth):
        angle = torch.arccos(cosine)
        ntk = ntk * (math.pi - angle) / math.pi
        cosine = ((1 - cosine**2).clamp(min=0).sqrt() + (math.pi - angle) * cosine) / math.pi
        cosine = cosine.clamp(-1, 1)
        ntk = ntk + cosine
    return ntk / x.shape[1]


@pytest.mark.parametrize("depth", [1, 3])
def test_the_distance_falls_as_the_root_of_the_width(depth):
    """Rung 3: slope and sizes over 8 seeds, as a program of its own measured them."""
    x, found = _inputs(32), {}
    for width in MEASURED[depth]:
        gaps = [
            infinite_width_gap(_network(width, depth, seed=s), x, weight_variance=1.0).distance
            for s in range(8)
        ]
        found[width] = math.exp(sum(map(math.log, gaps)) / len(gaps))
        assert found[width] == pytest.approx(MEASURED[depth][width], rel=0.35)
    logs = [(math.log(width), math.log(gap)) for width, gap in found.items()]
    mean = [sum(column) / len(logs) for column in zip(*logs, strict=True)]
    slope = sum((a - mean[0]) * (b - mean[1]) for a, b in logs) / sum(
        (a - mean[0]) ** 2 for a, _ in logs
    )
    assert slope == pytest.approx(-0.5, abs=0.06 if depth == 1 else 0.15)


def test_the_limit_is_the_closed_form_and_relu_without_its_root_of_two_gives_half():
    x = _inputs(12)
    for depth in (1, 3):
        net = _network(64, depth, seed=0)
        limit = infinite_width_gap(net, x, weight_variance=1.0).limit
        torch.testing.assert_close(limit, _closed_form(x, depth), rtol=1e-6, atol=1e-9)
    plain = infinite_width_gap(_network(64, 1, seed=0, act=nn.ReLU()), x, weight_variance=1.0)
    torch.testing.assert_close(plain.limit, _closed_form(x, 1) / 2, rtol=1e-6, atol=1e-9)
    both = infinite_width_gap(_network(4096, 1, seed=0), x, weight_variance=1.0)
    plain = infinite_width_gap(_network(4096, 1, seed=0, act=nn.ReLU()), x, weight_variance=1.0)
    torch.testing.assert_close(plain.kernel, both.kernel / 2, rtol=1e-9, atol=1e-12)


def test_the_kernel_is_that_of_the_layers_with_every_part_rescaled():
    """By autograd in torch's own parameterization: ``v_w / fan_in`` and ``v_b`` times each part."""
    net, x = _network(10, 2, seed=0, outputs=3, bias=True), _inputs(5)
    gap = infinite_width_gap(net, x, weight_variance=(1.0, 2.0, 0.5), bias_variance=0.09)
    J, expected = dense_jacobian(net, x), torch.zeros(5, 5, 3, 3, **f64)
    for i, v_w in zip((0, 2, 4), (1.0, 2.0, 0.5), strict=True):
        for name, scale in (("weight", v_w / net[i].in_features), ("bias", 0.09)):
            rows = J[f"{i}.{name}"]
            expected += scale * torch.einsum("iap,jbp->ijab", rows, rows)
    torch.testing.assert_close(gap.kernel, expected, rtol=1e-10, atol=1e-12)
    full = torch.einsum("ij,ab->ijab", gap.limit, torch.eye(3, **f64))
    assert gap.distance == pytest.approx(float((expected - full).norm() / full.norm()), rel=1e-9)
    assert gap.widths == (10, 10)
    assert gap.activation == "relu"


def test_conventions_give_the_variances_of_each_layer():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(50, 400), nn.Sequential(nn.ReLU(), nn.Linear(400, 300))
    )
    x = _inputs(4, 50).float()
    named = infinite_width_gap(net, x, weight_variance="torch", bias_variance="torch")
    assert named.weight_variance == pytest.approx((1 / 3, 1 / 3))
    assert named.bias_variance == pytest.approx((1 / 150, 1 / 1200))
    taken = infinite_width_gap(net, x)
    assert taken.weight_variance == pytest.approx(named.weight_variance, rel=0.03)
    assert taken.bias_variance == pytest.approx(named.bias_variance, rel=0.3)
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(50, 2000), nn.ReLU(), nn.Linear(2000, 1))
    assert (
        infinite_width_gap(wide, x, weight_variance="torch", bias_variance="torch").distance < 0.1
    )


def test_erf_and_linear_networks_have_limits_too():
    x = _inputs(16)
    for act, kind in ((Times(1.0, torch.erf), "erf"), (nn.Identity(), "linear")):
        wide = infinite_width_gap(_network(4096, 1, seed=0, act=act), x, weight_variance=1.0)
        narrow = infinite_width_gap(_network(64, 1, seed=0, act=act), x, weight_variance=1.0)
        assert wide.activation == kind
        assert wide.distance < 0.08 < narrow.distance


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ((nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 1)), "1 is a GELU"),
        ((nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)), "1 is a Tanh"),
        ((nn.Linear(4, 3), nn.LeakyReLU(), nn.Linear(3, 1)), "1 is a LeakyReLU"),
        ((nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1)), "1 is a LayerNorm"),
        ((nn.Conv1d(4, 3, 1),), "0 is a Conv1d"),
        ((nn.Linear(4, 3), nn.ReLU()), "the last of which gives the outputs"),
        ((nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1)), "linear, relu"),
        ((nn.ReLU(), nn.Linear(4, 3)), "0 is a ReLU"),
    ],
)
def test_other_networks_are_refused_by_name(parts, says):
    with pytest.raises(InputError, match=says):
        infinite_width_gap(nn.Sequential(*parts), torch.randn(5, 4))


def test_a_model_that_is_no_sequence_is_refused():
    with pytest.raises(InputError, match="the model is a Bilinear"):
        infinite_width_gap(nn.Bilinear(4, 4, 2), torch.randn(5, 4))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weight_variance": (1.0,)}, "1 weight variances and 2 linear layers"),
        ({"weight_variance": 0.0}, "not all positive"),
        ({"bias_variance": "he"}, "names no convention"),
        ({"bias_variance": -1.0}, "finite and not negative"),
    ],
)
def test_variances_that_make_no_sense_are_refused(settings, says):
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    with pytest.raises(InputError, match=says):
        infinite_width_gap(net, torch.randn(5, 4), **settings)


def test_weights_of_zero_have_no_scale_of_their_own():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    nn.init.zeros_(net[2].weight)
    with pytest.raises(InputError, match="all zero"):
        infinite_width_gap(net, torch.randn(5, 4))
