"""Which parameters a kernel is taken over, and how inputs and models may be given."""

import collections

import pytest
import torch
from jacobian.models import MLP, TiedPair, gap
from torch import nn

from ntkwatch.errors import ForwardError, InputError, SelectionError
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.inputs import cast_inputs, leaves, take
from ntkwatch.jacobian.parameters import select_parameters

from oracles import dense_ntk


def _two_blocks():
    return nn.Sequential(
        collections.OrderedDict(encoder=MLP(4), head=nn.Linear(4, 3), header=nn.Linear(3, 2))
    )


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("head", ["head.weight", "head.bias"]),
        ("head.*", ["head.weight", "head.bias"]),
        ("head*", ["head.weight", "head.bias", "header.weight", "header.bias"]),
        ("*.bias", ["encoder.0.bias", "encoder.2.bias", "head.bias", "header.bias"]),
        (["head.weight", "encoder.0"], ["encoder.0.weight", "encoder.0.bias", "head.weight"]),
        ("encoder.[02].bias", ["encoder.0.bias", "encoder.2.bias"]),
    ],
)
def test_patterns_choose_parameters_in_the_order_of_the_model(patterns, names):
    model, x = _two_blocks(), torch.randn(4, 4)
    kernel = empirical_ntk(model, x, params=patterns, dtype=torch.float64)
    assert list(kernel.coverage) == names
    assert kernel.spec.params == tuple(names)
    assert gap(kernel.matrix, dense_ntk(model, x, params=names)) < 1e-14


def test_frozen_parameters_are_left_out():
    model, x = _two_blocks(), torch.randn(4, 4)
    model.head.requires_grad_(False)
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    assert "head.weight" not in kernel.coverage
    assert gap(kernel.matrix, dense_ntk(model, x)) < 1e-14


def test_tied_weights_count_once_under_their_first_name():
    assert list(select_parameters(TiedPair())) == [
        "first.weight",
        "first.bias",
        "left.weight",
        "left.bias",
        "right.bias",
    ]


def test_weights_that_are_whole_numbers_are_passed_by():
    model = MLP()
    model.table = nn.Parameter(torch.arange(3), requires_grad=False)
    model.first = model.table
    assert len(select_parameters(model)) == 4
    kernel = empirical_ntk(model, torch.randn(3, 4), memory_budget=500, engine="vmap")
    assert "table" not in kernel.coverage


def test_a_weight_of_a_parametrized_module_counts_to_that_module():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    kernel = empirical_ntk(nn.Sequential(model), torch.randn(4, 4))
    assert list(kernel.layers) == ["0"]


def test_a_model_without_parameters_is_refused():
    with pytest.raises(SelectionError, match="Tanh has 0 floating parameters and none of them"):
        empirical_ntk(nn.Tanh(), torch.randn(3, 4))


def test_a_frozen_model_is_refused():
    model = MLP().requires_grad_(False)
    with pytest.raises(SelectionError, match=r"MLP has 4 floating parameters.*Unfreeze what is"):
        empirical_ntk(model, torch.randn(3, 4))


def test_a_pattern_that_fits_nothing_is_refused_with_names_that_are_there():
    with pytest.raises(SelectionError, match=r"params=\['decoder'\] selects no .*like 0\.weight"):
        empirical_ntk(MLP(), torch.randn(3, 4), params="decoder")


def test_a_pattern_that_fits_frozen_parameters_only_says_so():
    model = _two_blocks()
    model.head.requires_grad_(False)
    with pytest.raises(SelectionError, match=r"the 2 it matches .*head\.weight\) are frozen"):
        empirical_ntk(model, torch.randn(3, 4), params="head")


def test_a_lazy_module_that_has_no_shape_yet_is_refused():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(SelectionError, match=r"2 parameters of Sequential have no shape.*0\.w"):
        empirical_ntk(model, torch.randn(3, 4))


# Forms of inputs. ---------------------------------------------------------------------------------


class Product(nn.Module):
    """x^T W y + b, by position or by name, with one sample-free option."""

    def __init__(self):
        super().__init__()
        self.form = nn.Bilinear(4, 4, 3)

    def forward(self, x, y=None, scale=1.0):
        return scale * self.form(x, x if y is None else y)


Pair = collections.namedtuple("Pair", ["x", "y"])


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (lambda x, y: (x, y), "model(*inputs)"),
        (lambda x, y: [x, y], "model(*inputs)"),
        (lambda x, y: Pair(x, y), "model(*inputs)"),
        (lambda x, y: {"x": x, "y": y}, "model(**inputs)"),
        (lambda x, y: collections.UserDict(y=y, x=x), "model(**inputs)"),
        (lambda x, y: {"x": x, "y": y, "scale": 1.0}, "model(**inputs)"),
    ],
)
def test_tuples_lists_and_mappings_of_tensors_reach_the_model(inputs, words, engine):
    model, x, y = Product(), torch.randn(4, 4), torch.randn(4, 4)
    kernel = empirical_ntk(model, inputs(x, y), engine=engine, dtype=torch.float64)
    assert gap(kernel.matrix, dense_ntk(model, (x, y))) < 1e-13
    assert kernel.spec.forward == words


def test_a_model_that_takes_the_whole_collection_is_found_out():
    class Takes(Product):
        def forward(self, pair):
            return self.form(*pair)

    model, x, y = Takes(), torch.randn(4, 4), torch.randn(4, 4)
    kernel = empirical_ntk(model, (x, y), dtype=torch.float64)
    assert kernel.spec.forward == "model(inputs)"
    assert gap(kernel.matrix, dense_ntk(model, (x, y), lambda m, pair: m(pair))) < 1e-13


def test_a_module_without_a_forward_is_called_by_its_only_network():
    class Lit(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.metric = MLP(), nn.Identity()

    model, x = Lit(), torch.randn(4, 4)
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    assert kernel.spec.forward == "model.net(inputs)"
    assert list(kernel.layers) == ["net.0", "net.2"]
    assert gap(kernel.matrix, dense_ntk(model.net, x)) < 1e-14


def test_forward_overrides_the_guess():
    model, x = _two_blocks(), torch.randn(4, 4)

    def forward(model, x):
        return model.encoder(x)

    kernel = empirical_ntk(model, x, forward=forward, params="encoder", dtype=torch.float64)
    assert kernel.spec.forward == "forward="
    assert gap(kernel.matrix, dense_ntk(model.encoder, x)) < 1e-14


@pytest.mark.parametrize(
    "returned",
    [
        lambda y: (y, "state"),
        lambda y: {"loss": y.sum(), "logits": y},
        lambda y: collections.namedtuple("Out", ["logits"])(y),
        lambda y: {"last_hidden_state": y},
        lambda y: [(y,), y.sum()],
    ],
)
def test_outputs_are_found_in_what_models_return(returned):
    model, x = MLP(), torch.randn(4, 4)
    kernel = empirical_ntk(model, x, forward=lambda m, x: returned(m(x)), dtype=torch.float64)
    assert gap(kernel.matrix, dense_ntk(model, x)) < 1e-14


def test_no_way_to_call_a_model_lists_what_was_tried():
    with pytest.raises(ForwardError) as refusal:
        empirical_ntk(Product(), (torch.randn(3, 4), torch.randn(3, 5)))
    words = str(refusal.value)
    assert "to call Product on the probe (a tuple of shapes (3, 4), (3, 5))" in words
    for way in ("model(*inputs): RuntimeError", "model(inputs): "):
        assert way in words
    assert "model.form" not in words, "its part is another function"
    assert "Pass forward=" in words


def test_casting_leaves_whole_numbers_and_gives_complex_ones_their_kin():
    inputs = {"a": torch.ones(2), "b": (torch.arange(2), torch.ones(2, dtype=torch.cfloat)), "c": 3}
    cast = cast_inputs(inputs, device=torch.device("cpu"), dtype=torch.float64)
    kinds = [tensor.dtype for tensor in leaves(cast)]
    assert kinds == [torch.float64, torch.int64, torch.complex128]
    assert cast["c"] == 3
    assert take(cast, slice(0, 1))["b"][0].shape == (1,)


def test_tensors_of_different_length_are_refused():
    with pytest.raises(InputError, match=r"shapes \(3, 4\), \(2, 4\): their first dim"):
        empirical_ntk(Product(), (torch.randn(3, 4), torch.randn(2, 4)))


@pytest.mark.parametrize("inputs", [[], {}, "text", None, {"a": 3}])
def test_inputs_without_a_tensor_are_refused(inputs):
    with pytest.raises(InputError, match="hold no tensor"):
        empirical_ntk(MLP(), inputs)


def test_a_probe_without_samples_is_refused():
    with pytest.raises(InputError, match="the probe has 0 samples"):
        empirical_ntk(MLP(), torch.randn(0, 4))
