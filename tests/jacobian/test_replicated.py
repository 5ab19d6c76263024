"""Models copied to two processes by DDP; oracle: plain autograd, and runs that nobody watched."""

import copy

import pytest
import torch
from jacobian.models import gap
from jacobian.processes import results_of
from jacobian.replicated_worker import ENGINES, build
from jacobian.snapshots import assert_same
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.parameters import unwrapped

from oracles import dense_ntk

NAMES = [f"{layer}.{kind}" for layer in ("module", "norm", "head") for kind in ("weight", "bias")]


def two_processes(test):
    return pytest.mark.slow(pytest.mark.distributed(test))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return results_of("jacobian.replicated_worker", tmp_path_factory.mktemp("replicated"))


@pytest.fixture
def in_a_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@two_processes
def test_the_kernel_of_a_wrapped_model_is_that_of_the_model_inside(both):
    model, x = build()
    expected = dense_ntk(model.eval(), x)
    kernels, planned = both[0]["kernels"]
    assert len(kernels) == 2 * len(ENGINES)
    for matrix, coverage, layers in kernels.values():
        assert gap(matrix, expected) < 1e-12
        assert list(coverage) == NAMES
        assert layers == ["module", "norm", "head"]
    assert planned == NAMES


@two_processes
def test_a_training_that_one_process_watches_is_the_same_bit_for_bit_in_both(both):
    for saved in both:
        for (watched, exchanged, _), (alone, alone_exchanged, _) in saved["trainings"]:
            assert all(torch.equal(watched[name], alone[name]) for name in alone)
            assert exchanged == alone_exchanged > 0


@two_processes
def test_a_wrapped_model_is_left_as_found(both):
    for (_, _, states), _ in both[0]["trainings"]:
        assert len(states) == len(ENGINES)
        for before, after in states:
            assert_same(before, after)


@pytest.mark.parametrize("patterns", [None, "module.*", ["head"]])
def test_names_of_a_wrapped_model_are_those_of_the_model_inside(in_a_group, patterns):
    model, x = build()
    wrapped = DistributedDataParallel(copy.deepcopy(model))
    inside, seen = (empirical_ntk(m, x, params=patterns) for m in (model, wrapped))
    assert seen.spec == inside.spec
    assert list(seen.coverage) == list(inside.coverage)
    assert torch.equal(seen.matrix, inside.matrix)


def test_a_forward_function_is_given_the_model_inside(in_a_group):
    model, x = build()
    given = []

    def forward(model, inputs):
        given.append(model)
        return model(inputs)

    empirical_ntk(DistributedDataParallel(model), x, forward=forward)
    assert set(given) == {model}


def test_wrappers_are_taken_off_however_they_are_nested(in_a_group):
    model, _ = build()
    compiled = torch.compile(model, backend="eager")
    wrapped = DistributedDataParallel(model)
    assert unwrapped(model) is model
    assert unwrapped(compiled) is compiled
    assert unwrapped(wrapped) is unwrapped(torch.compile(wrapped, backend="eager")) is model
    assert unwrapped(DistributedDataParallel(compiled)) is compiled
    assert unwrapped(nn.DataParallel(wrapped)) is model
