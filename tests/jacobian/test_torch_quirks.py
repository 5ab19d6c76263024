"""Corners of torch in which a kernel would be wrong, or an error raised, without a word."""

import warnings

import pytest
import torch
from jacobian.models import MLP, TiedPair, gap
from torch import nn
from torch.nn.utils import parametrize

from ntkwatch.errors import NonFiniteError, SelectionError
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.parameters import select_parameters
from ntkwatch.kernel.alignment import target_alignment, target_matrix
from ntkwatch.kernel.bootstrap import bootstrap_weights

from oracles import dense_ntk

ENGINES = pytest.mark.parametrize("engine", ["auto", "loop"])


@ENGINES
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_with_sparse_gradients(kind, engine):
    """The oracle is the same embedding with dense ones."""

    class Words(nn.Module):
        def __init__(self, **options):
            super().__init__()
            if kind is nn.EmbeddingBag:
                options["mode"] = "sum"
            self.embed, self.head = kind(11, 4, **options), nn.Linear(4, 3)

        def forward(self, tokens):
            return self.head(self.embed(tokens).reshape(len(tokens), -1, 4).mean(dim=1))

    model, plain = Words(sparse=True), Words()
    plain.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 11, (5, 3))
    kernel = empirical_ntk(model, tokens, engine=engine, dtype=torch.float64)
    assert gap(kernel.matrix, dense_ntk(plain, tokens)) < 1e-14


@ENGINES
@pytest.mark.parametrize("used_before", [False, True])
def test_parametrizations_that_are_cached(engine, used_before):
    """Within cached() a weight computed once would hide all later substitutes."""
    model, x = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), torch.randn(5, 4)
    expected = dense_ntk(model, x)
    with parametrize.cached():
        if used_before:
            model(x)
        kernel = empirical_ntk(model, x, engine=engine, dtype=torch.float64)
        assert parametrize._cache_enabled == 1
        weight = model.weight
        assert model.weight is weight
    assert gap(kernel.matrix, expected) < 1e-14


@pytest.mark.parametrize("outputs", ["full", "trace", "sum", "random:2"])
def test_a_default_device_other_than_that_of_the_model(outputs):
    """On the meta device any tensor made without naming a device would hold nothing."""
    model, x = MLP(), torch.randn(5, 4)
    expected = empirical_ntk(model, x, outputs=outputs)
    with torch.device("meta"):
        kernel = empirical_ntk(model, x, outputs=outputs, memory_budget=500)
    assert gap(kernel.matrix, expected.matrix) < 1e-6


def test_a_default_device_does_not_reach_bootstrap_and_null():
    K, labels = torch.eye(4, dtype=torch.float64) + 0.1, torch.tensor([0, 1, 0, 1])
    with torch.device("meta"):
        assert bootstrap_weights(4, 3).sum() == 12
        assert bootstrap_weights(4, 3, strata=labels).sum() == 12
        targets = target_matrix(labels, device=torch.device("cpu"))
        assert target_alignment(K, targets).null_sd.isfinite()


def test_a_default_dtype_of_float64_changes_nothing():
    model, x = MLP(), torch.randn(5, 4)
    before = empirical_ntk(model, x, outputs="random:2").matrix
    torch.set_default_dtype(torch.float64)
    try:
        kernel = empirical_ntk(model, x, outputs="random:2")
    finally:
        torch.set_default_dtype(torch.float32)
    assert kernel.spec.dtype == "float32"
    assert torch.equal(kernel.matrix, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_made_in_inference_mode(dtype):
    with torch.inference_mode():
        model = MLP()
    x = torch.randn(5, 4)
    plain = MLP()
    plain.load_state_dict({name: p.clone() for name, p in model.state_dict().items()})
    kernel = empirical_ntk(model, x, dtype=dtype)
    assert gap(kernel.matrix, dense_ntk(plain, x)) < 5e-6


@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
def test_gradients_that_are_not_numbers_are_called_so_and_nothing_else(engine):
    """They look like coupling, and like a wrong batching rule, to who compares them."""

    class AtZero(MLP):
        def forward(self, x):
            return torch.sqrt(super().forward(x) * 0)

    with pytest.raises(NonFiniteError, match=r"entries of the kernel.*such as a square root of 0"):
        empirical_ntk(AtZero(), torch.randn(5, 4), engine=engine)


def test_a_parameter_without_entries_has_no_part():
    class Empty(MLP):
        def __init__(self):
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(0, 3))

        def forward(self, x):
            return super().forward(x) + self.nothing.sum(dim=0)

    kernel = empirical_ntk(Empty(), torch.randn(5, 4))
    assert not kernel.layers["(root)"].any()


def test_a_forward_that_calls_its_parts_functionally():
    class Doubles(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP()

        def forward(self, x):
            weights = {name: 2 * p for name, p in self.net.named_parameters()}
            return torch.func.functional_call(self.net, weights, (x,))

    model, x = Doubles(), torch.randn(5, 4)
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    assert gap(kernel.matrix, dense_ntk(model, x)) < 1e-14


def test_a_tied_weight_may_be_asked_for_by_any_of_its_names():
    model, x = TiedPair(), torch.randn(5, 4)
    assert list(select_parameters(model, "right.weight")) == ["left.weight"]
    assert list(select_parameters(model, "again")) == ["first.weight", "first.bias"]
    kernel = empirical_ntk(model, x, params="right.weight", dtype=torch.float64)
    assert gap(kernel.matrix, dense_ntk(model, x, params=["left.weight"])) < 1e-14
    model.left.weight.requires_grad_(False)
    with pytest.raises(SelectionError, match=r"the 1 it matches .*left\.weight\) are frozen"):
        select_parameters(model, "right.weight")


def test_scripted_models_are_measured_and_stay_scripted():
    plain = MLP()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
        model = torch.jit.script(plain)
    x = torch.randn(5, 4)
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    assert gap(kernel.matrix, dense_ntk(plain, x)) < 1e-14
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    torch.testing.assert_close(model(x), plain(x))
