"""A measurement leaves the model and torch as found, also where the forward pass fails half way.

The oracle is a copy of everything taken before.
"""

import random
from collections import Counter, defaultdict, deque
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from jacobian.models import MLP, Checkpointed, ImageNet, OldWeightNorm, TiedPair, gap
from jacobian.snapshots import assert_same, state_of, switches
from torch import nn
from versions import needs

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.undisturbed import kept_random_streams

from oracles import dense_ntk


class Busy(nn.Module):
    """Writes to all that a forward pass can write to, and draws from every random stream."""

    def __init__(self):
        super().__init__()
        self.net = ImageNet()
        self.drop = nn.Dropout()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("kept", torch.ones(3), persistent=False)
        self.count, self.total = 0, torch.zeros(3)
        self.log, self.cache, self.names = [], {"a": 1}, {"x"}
        self.recent = deque([1, 2], maxlen=2)
        self.generator = torch.Generator().manual_seed(3)
        self.own = [np.random.default_rng(3), np.random.RandomState(3), random.Random(3)]
        self.lists = defaultdict(list, {"a": []})
        self.graphs = [torch.eye(3).to_sparse()]
        self.chance = random.SystemRandom()
        self.nested = {"mean": torch.zeros(2), "deep": [{"counts": Counter()}]}
        self.fails = False

    def forward(self, x):
        self.seen += 1
        self.kept = self.kept * 2
        self.count += 1
        self.total.add_(1)
        self.log.append(x)
        self.cache["b"] = x
        self.names.add("y")
        self.recent.append(3)
        self.new = x
        self.register_buffer("late", torch.zeros(1))
        self.lists["a"].append(x)
        self.lists["b"].append(x)
        self.nested["mean"].mul_(0.9).add_(1)
        self.nested["deep"][0]["counts"]["calls"] += 1
        for own in self.own:
            own.random()
        torch.rand(1), random.random(), np.random.rand(), torch.rand(1, generator=self.generator)
        x = self.drop(self.net(x))
        if self.fails:
            raise ValueError("half way")
        return x


def _busy(grads):
    model = Busy().train()
    model.net.body[1].eval()  # a frozen batch norm inside a model that trains
    model.net.body[0].bias.requires_grad_(False)
    if grads:
        for p in model.parameters():
            p.grad = torch.randn_like(p)
    return model


@pytest.mark.parametrize("engine", ["vmap", "loop", "auto"])
@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("batchnorm", ["running", "probe"])
def test_everything_is_as_before(engine, grads, batchnorm):
    model, x = _busy(grads), torch.randn(4, 3, 8, 8)
    if engine == "vmap":  # which cannot draw numbers
        model = model.net
    probe, before = x.clone(), state_of(model)
    empirical_ntk(model, x, engine=engine, batchnorm=batchnorm, outputs="trace")
    assert_same(before, state_of(model))
    assert torch.equal(x, probe)
    assert not x.requires_grad


def test_a_buffer_that_each_call_updates_in_place_starts_from_its_value_at_each_call():
    class Counts(MLP):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * self.calls

    model, x = Counts(), torch.randn(4, 4)
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    assert gap(kernel.matrix, dense_ntk(model, x)) < 1e-14
    assert model.calls == 0


def test_random_streams_go_on_where_they_were():
    with kept_random_streams([torch.device("cpu")]):
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        torch.rand(3), random.random(), np.random.rand()
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    np.testing.assert_array_equal(before[2], after[2])


def test_attributes_hold_what_they_held():
    model = _busy(grads=False)
    total, log, kept = model.total, model.log, model.kept
    empirical_ntk(model, torch.randn(4, 3, 8, 8))
    assert model.count == 0
    assert model.total is total
    assert torch.equal(total, torch.zeros(3))
    assert model.log is log
    assert model.log == []
    assert model.cache == {"a": 1}
    assert model.names == {"x"}
    assert list(model.recent) == [1, 2]
    assert model.kept is kept
    assert not hasattr(model, "new")
    assert model.lists == {"a": []}
    assert model.nested["mean"].tolist() == [0, 0]
    assert model.nested["deep"] == [{"counts": Counter()}]
    first, second, third = np.random.default_rng(3), np.random.RandomState(3), random.Random(3)
    assert [own.random() for own in model.own] == [each.random() for each in (first, second, third)]
    fresh = torch.Generator().manual_seed(3)
    assert torch.equal(model.generator.get_state(), fresh.get_state())


def test_everything_is_as_before_when_the_forward_pass_fails_half_way():
    model, x = _busy(grads=True), torch.randn(4, 3, 8, 8)
    model.fails = True
    before = state_of(model)
    with pytest.raises(ValueError, match="half way"):
        empirical_ntk(model, x, forward=lambda m, x: m(x))
    assert_same(before, state_of(model))
    assert model.count == 0


def test_everything_is_as_before_when_a_later_call_fails():
    """The first calls succeed, the backward passes do not."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise KeyError("in the backward pass")

    class Model(MLP):
        def forward(self, x):
            return Fails.apply(super().forward(x))

    model, x = Model().train(), torch.randn(4, 4)
    before = state_of(model)
    with pytest.raises(CoverageError, match="in the backward pass"):
        empirical_ntk(model, x)
    assert_same(before, state_of(model))


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode, nullcontext])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_outer_grad_modes_change_neither_the_kernel_nor_are_changed(outer, engine):
    """Inputs made in inference mode have no autograd of their own."""
    model, x = MLP(), torch.randn(4, 4)
    expected = dense_ntk(model, x)
    with outer():
        probe, before = x * 1, switches()
        kernel = empirical_ntk(model, probe, engine=engine, dtype=torch.float64)
        same = empirical_ntk(model, probe, engine=engine)
        assert switches() == before
    assert gap(kernel.matrix, expected) < 1e-14
    assert gap(same.matrix, expected) < 5e-6
    assert not kernel.matrix.is_inference()


def test_callers_switches_neither_reach_the_kernel_nor_are_lost():
    model, x = MLP(), torch.randn(4, 4)
    expected = dense_ntk(model, x)
    seen = []

    def forward(model, x):
        seen.append(torch.get_float32_matmul_precision())
        return model(x)

    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            before = switches()
            kernel = empirical_ntk(model, x, forward=forward)
            assert switches() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert gap(kernel.matrix, expected) < 5e-6
    assert set(seen) == {"highest"}


def test_half_precision_that_a_forward_asks_for_is_not_in_the_kernel():
    """Bfloat16 inside would be noise of a percent."""

    class Mixed(MLP):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x).to(x.dtype)

    model, plain, x = Mixed(), MLP(), torch.randn(4, 4)
    plain.load_state_dict(model.state_dict())
    before = model(x).detach()
    for engine in ("vmap", "loop"):
        assert gap(empirical_ntk(model, x, engine=engine).matrix, dense_ntk(plain, x)) < 5e-6
    assert torch.equal(model(x), before)
    assert gap(before, plain(x).detach()) > 1e-4


@needs("torch", "2.13")
@pytest.mark.parametrize("library", ["cuda", "mkldnn"])
def test_the_newer_precision_switches_are_put_back_too(library):
    """After they are used the older ones raise an error when read."""
    owner = getattr(torch.backends, library).matmul
    seen = []

    def forward(model, x):
        seen.append(owner.fp32_precision)
        return model(x)

    before = owner.fp32_precision
    owner.fp32_precision = "tf32"
    try:
        empirical_ntk(MLP(), torch.randn(4, 4), forward=forward)
        assert owner.fp32_precision == "tf32"
    finally:
        owner.fp32_precision = before
    assert set(seen) == {"ieee"}


def test_a_model_whose_loss_refers_to_it_stays_whole():
    """functional_call corrupts a module that is reachable by two paths (pytorch#164759)."""

    class Loss(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

    class Lit(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = TiedPair()
            self.loss = Loss(self.net)

        def forward(self, x):
            return self.net(x)

    model, x = Lit(), torch.randn(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected, before = dense_ntk(model, x), state_of(model)
    assert gap(empirical_ntk(model, x, dtype=torch.float64).matrix, expected) < 1e-14
    assert_same(before, state_of(model))
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(id(p) in owned for p in model.parameters())
    assert model.loss.net.right.weight is model.net.left.weight
    assert isinstance(model.net.left.weight, nn.Parameter)


def test_a_hook_that_computes_a_weight_leaves_the_weight_it_had():
    model, x = OldWeightNorm(), torch.randn(4, 4)
    model(x)
    weight = model.layer.weight
    empirical_ntk(model, x)
    assert model.layer.weight is weight


def test_backward_hooks_neither_fire_nor_change_the_kernel():
    """They see gradients of the loss; the kernel is of the function. torch.func refuses them."""
    model, x = MLP(), torch.randn(4, 4)
    expected, fired = dense_ntk(model, x), []

    def double(_module, grad_input, _grad_output):
        fired.append(1)
        return tuple(None if g is None else 2 * g for g in grad_input)

    model[2].register_full_backward_hook(double)
    for engine in ("vmap", "loop"):
        kernel = empirical_ntk(model, x, engine=engine, dtype=torch.float64)
        assert gap(kernel.matrix, expected) < 1e-14
    assert fired == []
    model(x.requires_grad_()).sum().backward()
    assert fired == [1]


def test_checkpointing_works_again_afterwards():
    model, calls = Checkpointed(use_reentrant=False), []
    model.hidden.register_forward_hook(lambda *_: calls.append(1))
    empirical_ntk(model, torch.randn(3, 4))
    calls.clear()
    model(torch.randn(3, 4)).sum().backward()
    assert len(calls) == 2
