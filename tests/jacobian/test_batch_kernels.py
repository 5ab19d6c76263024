"""Kernels of the batch function, with its statistics differentiated; oracle: plain autograd.

The oracle runs a copy of the whole model in the modes of training, over the whole batch at once,
and pulls one output after the other back by ``autograd.grad``.
"""

import copy

import pytest
import torch
from jacobian.models import ImageNet, gap
from jacobian.snapshots import assert_same, state_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ntkwatch import empirical_ntk
from ntkwatch.errors import InputError, RandomForwardError, SampleCouplingError
from ntkwatch.jacobian.outputs import random_directions

from oracles import dense_jacobian, dense_ntk

IMAGES = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class TwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second, self.after = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.after(self.second(torch.relu(self.norm(self.first(x))))))
        return self.head(x.mean(dim=(2, 3)))


class Checkpointed(TwoNorms):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def _used(build: type[nn.Module]) -> nn.Module:
    model = build().train()
    with torch.no_grad():
        for _ in range(3):
            model(3 + 2 * torch.randn(16, 3, 6, 6))
    return model


@pytest.mark.parametrize("build", [ImageNet, TwoNorms, Checkpointed])
@pytest.mark.parametrize(("engine", "dtype"), [("auto", torch.float64), ("loop", torch.float32)])
def test_rows_are_gradients_of_the_whole_batch_in_train_mode(build, engine, dtype):
    model = _used(build)
    before = state_of(model)
    expected = dense_ntk(copy.deepcopy(model).train(), IMAGES)
    kernel = empirical_ntk(model, IMAGES, batchnorm="batch", engine=engine, dtype=dtype)
    assert_same(before, state_of(model))
    assert gap(kernel.matrix, expected) < (1e-12 if dtype is torch.float64 else 5e-6)
    torch.testing.assert_close(sum(kernel.layers.values()), kernel.trace)
    assert kernel.spec.batchnorm == "batch"
    assert kernel.spec.coupled
    assert set(kernel.coverage.values()) == {"loop"}
    constant = empirical_ntk(model, IMAGES, batchnorm="probe", dtype=torch.float64)
    assert gap(constant.matrix, expected) > 0.05
    assert not constant.spec.coupled


def test_each_reduction_is_that_of_the_coupled_rows():
    model = _used(TwoNorms)
    jacobian = dense_jacobian(copy.deepcopy(model).train(), IMAGES)
    rows = torch.cat(list(jacobian.values()), dim=2)
    directions = random_directions(2, (3,))
    for outputs, pulled in (
        ("trace", rows),
        ("sum", rows.sum(dim=1, keepdim=True)),
        ("random:2", torch.einsum("rc,ncp->nrp", directions, rows)),
    ):
        kernel = empirical_ntk(
            model, IMAGES, outputs=outputs, batchnorm="batch", dtype=torch.float64
        )
        assert gap(kernel.matrix, torch.einsum("nrp,mrp->nm", pulled, pulled)) < 1e-12


def test_memory_and_parameters_are_chosen_as_ever():
    model = _used(TwoNorms)
    settings = {"batchnorm": "batch", "dtype": torch.float64}
    whole = empirical_ntk(model, IMAGES, **settings)
    small = empirical_ntk(model, IMAGES, memory_budget=20_000, **settings)
    assert gap(small.matrix, whole.matrix) < 1e-12
    some = empirical_ntk(model, IMAGES, params="first.*", outputs="trace", **settings)
    torch.testing.assert_close(some.matrix, whole.layers["first"])


def test_a_frozen_norm_is_not_part_of_the_batch():
    model = _used(TwoNorms)
    model.norm.eval()
    twin = copy.deepcopy(model).train()
    twin.norm.eval()
    kernel = empirical_ntk(model, IMAGES, batchnorm="batch", dtype=torch.float64)
    assert gap(kernel.matrix, dense_ntk(twin, IMAGES)) < 1e-12
    assert gap(kernel.matrix, dense_ntk(copy.deepcopy(model).train(), IMAGES)) > 0.01


def test_a_norm_without_running_statistics_has_only_this_kernel():
    model = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh(), nn.Linear(5, 2)
    )
    x = torch.randn(6, 4, dtype=torch.float64)
    with pytest.raises(SampleCouplingError, match="BatchNorm1d"):
        empirical_ntk(model, x, dtype=torch.float64)
    for net in (model.train(), model.eval()):
        kernel = empirical_ntk(net, x, batchnorm="batch", dtype=torch.float64)
        assert gap(kernel.matrix, dense_ntk(net, x)) < 1e-12
        assert kernel.spec.batchnorm == "batch"


def test_a_model_without_batchnorm_is_the_same_and_is_still_checked():
    class Centres(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(dim=0))

    x = torch.randn(5, 4)
    kernel = empirical_ntk(nn.Linear(4, 2), x, batchnorm="batch")
    assert kernel.spec.batchnorm == "none"
    assert "loop" not in kernel.coverage.values()
    with pytest.raises(SampleCouplingError, match="mixes samples"):
        empirical_ntk(Centres(4, 2), x, batchnorm="batch")


def test_chance_is_refused_in_a_batch_too():
    class Noisy(TwoNorms):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.1 * torch.randn_like(x))

    with pytest.raises(RandomForwardError, match="random numbers"):
        empirical_ntk(Noisy(), IMAGES, batchnorm="batch", dtype=torch.float64)


@pytest.mark.parametrize("batchnorm", ["probe", "batch"])
def test_one_vector_has_no_statistics(batchnorm):
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    with pytest.raises(InputError, match="find no statistics in 1 samples"):
        empirical_ntk(model, torch.randn(1, 4), batchnorm=batchnorm)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batchnorm": "batch", "engine": "vmap"}, "Use engine='auto' or 'loop'"),
        ({"batchnorm": "batch", "other": IMAGES}, "no one function of which to take a cross"),
        ({"batchnorm": "reference"}, "Use KernelTracker or NTKMonitor"),
        ({"batchnorm": "train"}, "batchnorm='train' is not known"),
    ],
)
def test_what_is_not_to_be_had_is_refused_with_what_is(settings, said):
    with pytest.raises(InputError, match=said):
        empirical_ntk(TwoNorms(), IMAGES, **settings)
