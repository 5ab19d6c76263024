"""Sketches against whole kernels from plain autograd times the same columns."""

import pytest
import torch
from jacobian.batch_kernels import Contrastive, NormedNet, flat, flat_kernel
from jacobian.models import MLP, Attend, TiedPair, gap
from jacobian.snapshots import assert_same, state_of
from torch import nn

from ntkwatch.errors import InputError, NonFiniteError, RandomForwardError
from ntkwatch.jacobian.sketch import sketch_kernel
from ntkwatch.kernel.sketched import gaussian_columns

from oracles import dense_ntk


def _columns(sketch):
    return gaussian_columns(sketch.size, range(sketch.columns), seed=sketch.seed)


CASES = {
    "MLP": (MLP, lambda: torch.randn(6, 4), False),
    "attention": (Attend, lambda: torch.randn(5, 3, 8), False),
    "tied": (TiedPair, lambda: torch.randn(6, 4), False),
    "differentiated batch statistics": (NormedNet, lambda: torch.randn(8, 4), True),
    "contrastive": (Contrastive, lambda: torch.randn(6, 4), True),
}


@pytest.mark.parametrize("budget", ["1GiB", "2KiB"])
@pytest.mark.parametrize("form", ["one-sided", "two-sided"])
@pytest.mark.parametrize("case", CASES)
def test_a_sketch_is_the_batch_kernel_times_its_columns(case, form, budget):
    build, draw, coupled = CASES[case]
    model, x = build().train(), draw()
    before = state_of(model)
    found = sketch_kernel(model, x, columns=7, form=form, dtype=torch.float64, memory_budget=budget)
    assert_same(before, state_of(model))
    kernel, v = flat_kernel(model, x), _columns(found)
    assert gap(found.gram, v.T @ kernel @ v) < 1e-12
    assert found.coupled is coupled
    if form == "one-sided":
        assert gap(found.images, kernel @ v) < 1e-12
        assert found.method in ("jvp", "double-vjp")
        assert not found.layers
    else:
        assert found.images is None
        assert found.method is None
        assert gap(sum(found.layers.values()), found.gram) < 1e-12


def test_a_two_sided_sketch_has_each_layer_s_own_part():
    model, x = NormedNet().train(), torch.randn(8, 4)
    found = sketch_kernel(model, x, columns=5, form="two-sided", dtype=torch.float64)
    v = _columns(found)
    assert list(found.layers) == ["0", "1", "3"]
    for layer, part in found.layers.items():
        names = [f"{layer}.weight", f"{layer}.bias"]
        kernel = flat_kernel(model, x, params=names)
        scale = (v.T @ flat_kernel(model, x) @ v).norm()
        assert (part - v.T @ kernel @ v).norm() < 1e-13 * scale


@pytest.mark.parametrize("form", ["one-sided", "two-sided"])
@pytest.mark.parametrize("outputs", ["trace", "sum"])
def test_other_outputs_are_sketched_as_their_own_kernel(form, outputs):
    model, x = MLP(), torch.randn(6, 4)
    found = sketch_kernel(model, x, columns=5, form=form, outputs=outputs, dtype=torch.float64)
    kernel = dense_ntk(model, x)
    kernel = kernel.sum(dim=(2, 3)) if outputs == "sum" else torch.einsum("nmcc->nm", kernel)
    v = _columns(found)
    assert found.size == 6
    assert gap(found.gram, v.T @ kernel @ v) < 1e-12


def test_what_batchnorm_runs_on_is_chosen_and_said():
    model, x = NormedNet().train(), torch.randn(8, 4)
    with torch.no_grad():
        model(torch.randn(50, 4) + 1)
    running = sketch_kernel(model, x, columns=4, batchnorm="running", dtype=torch.float64)
    v = _columns(running)
    assert gap(running.images, flat_kernel(model, x, train=False) @ v) < 1e-12
    assert (running.spec.batchnorm, running.coupled) == ("running", False)
    probe = sketch_kernel(model, x, columns=4, batchnorm="probe", dtype=torch.float64)
    assert (probe.spec.batchnorm, probe.coupled) == ("probe", False)
    batch = sketch_kernel(model, x, columns=4, dtype=torch.float64)
    assert (batch.spec.batchnorm, batch.coupled) == ("batch", True)
    assert gap(probe.images, batch.images) > 0.02
    plain = sketch_kernel(MLP(), x, columns=4)
    assert plain.spec.batchnorm == "none"


def test_all_outputs_are_taken_by_default_however_many():
    model, x = MLP(outputs=30), torch.randn(3, 4)
    found = sketch_kernel(model, x, columns=4, outputs="auto", dtype=torch.float64)
    assert found.spec.outputs == "full"
    assert gap(found.images, flat(dense_ntk(model, x)) @ _columns(found)) < 1e-12


def test_the_first_columns_are_those_of_a_smaller_sketch():
    model, x = MLP(), torch.randn(6, 4)
    for form in ("one-sided", "two-sided"):
        large, small = (
            sketch_kernel(model, x, columns=m, form=form, dtype=torch.float64) for m in (9, 5)
        )
        assert gap(large.first(5).gram, small.gram) < 1e-12
        if small.images is not None:
            assert gap(large.first(5).images, small.images) < 1e-12
        for layer, part in small.layers.items():
            assert gap(large.first(5).layers[layer], part) < 1e-12


def test_a_sketch_is_the_same_on_every_device(device):
    model, x = MLP(), torch.randn(6, 4)
    here = sketch_kernel(model, x, columns=5)
    there = sketch_kernel(model.to(device), x.to(device), columns=5)
    assert there.images.device.type == device.type
    assert gap(there.images.cpu(), here.images) < 1e-5


def test_a_model_that_draws_random_numbers_is_refused():
    class Noisy(MLP):
        def forward(self, x):
            return super().forward(x) + torch.rand(len(x), 3)

    with pytest.raises(RandomForwardError, match="draws random numbers"):
        sketch_kernel(Noisy(), torch.randn(6, 4))


def test_what_cannot_be_sketched_is_refused():
    model, x = MLP(), torch.randn(6, 4)
    with pytest.raises(InputError, match="columns=3 gives a sketch without a usable error bar"):
        sketch_kernel(model, x, columns=3)
    with pytest.raises(InputError, match="form='both' is not known"):
        sketch_kernel(model, x, form="both")
    with pytest.raises(InputError, match="batchnorm='other' is not known"):
        sketch_kernel(model, x, batchnorm="other")


def test_gradients_that_overflow_are_refused():
    class Root(nn.Linear):
        def forward(self, x):
            return (super().forward(x) * 0).abs().sqrt()

    with pytest.raises(NonFiniteError):
        sketch_kernel(Root(4, 3), torch.randn(6, 4), form="two-sided")
