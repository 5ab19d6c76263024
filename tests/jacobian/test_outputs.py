"""Reductions over outputs against the full kernel of plain autograd."""

import warnings

import pytest
import torch
from jacobian.models import MLP, Squeezed, TokenLogits, gap
from torch import nn

from ntkwatch.errors import InputError, OutputError
from ntkwatch.jacobian import outputs as module
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.outputs import random_directions

from oracles import dense_ntk

f64 = {"dtype": torch.float64}


def _quadratic_form(full: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """``sum_v v' K v`` of a full kernel."""
    return torch.einsum("ka,ijab,kb->ij", directions.double(), full, directions.double())


def _centring(shape: tuple[int, ...]) -> torch.Tensor:
    """Takes the mean over the last axis away."""
    classes = shape[-1]
    one = torch.eye(classes, **f64) - 1 / classes
    copies = torch.Size(shape[:-1]).numel()
    return torch.block_diag(*[one] * copies)


@pytest.fixture(params=["classes", "tokens"])
def problem(request):
    """A model, inputs, its outputs' shape, and its full kernel with flattened outputs."""
    if request.param == "classes":
        model, inputs, shape = MLP(5), torch.randn(4, 4), (5,)
    else:
        model, inputs, shape = TokenLogits(3), torch.randint(0, 11, (4, 2)), (2, 3)
    return model, inputs, shape, dense_ntk(model, inputs)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("budget", ["1GiB", 1000])
def test_every_reduction_is_a_sum_over_its_directions(problem, engine, budget):
    model, inputs, shape, full = problem
    count = full.shape[-1]
    expected = {
        "trace": torch.einsum("ijaa->ij", full),
        "sum": full.sum(dim=(2, 3)),
        "random:2": _quadratic_form(full, random_directions(2, shape)),
        "random:2:plain": _quadratic_form(full, random_directions(2, shape, plain=True)),
        "random:9": _quadratic_form(full, random_directions(9, shape)),
    }
    for outputs, matrix in expected.items():
        kernel = empirical_ntk(
            model, inputs, outputs=outputs, engine=engine, memory_budget=budget, dtype=torch.float64
        )
        assert kernel.matrix.shape == (4, 4)
        assert gap(kernel.matrix, matrix) < 1e-13
        assert gap(sum(kernel.layers.values()), matrix) < 1e-13
        assert kernel.spec.outputs == outputs
        assert kernel.spec.output_shape == shape
        assert kernel.spec.output_count == count
        assert kernel.trace is kernel.matrix


def test_the_full_kernel_flattens_tokens_and_classes(problem):
    model, inputs, _, full = problem
    kernel = empirical_ntk(model, inputs, dtype=torch.float64)
    assert gap(kernel.matrix, full) < 1e-13
    assert gap(kernel.trace, torch.einsum("ijaa->ij", full)) < 1e-13


def test_outputs_without_an_axis_count_as_one():
    model, inputs = Squeezed(), torch.randn(4, 4)
    full = dense_ntk(model, inputs)
    kernel = empirical_ntk(model, inputs, dtype=torch.float64)
    assert kernel.matrix.shape == (4, 4, 1, 1)
    assert gap(kernel.matrix, full) < 1e-13
    assert kernel.spec.output_shape == ()
    assert kernel.spec.output_count == 1


def test_a_function_of_the_outputs_has_the_trace_kernel_of_a_model_that_ends_in_it():
    model, inputs = MLP(5), torch.randn(4, 4)
    for function in (lambda y: y[:, :2] ** 2, lambda y: y.square().sum(dim=1), torch.tanh):
        ends_so = dense_ntk(model, inputs, lambda m, x, f=function: f(m(x)).reshape(4, -1))
        kernel = empirical_ntk(model, inputs, outputs=function, dtype=torch.float64)
        assert gap(kernel.matrix, torch.einsum("ijaa->ij", ends_so)) < 1e-13
        assert kernel.spec.outputs.startswith("callable:")


# Directions. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 2, 3), (1000,)])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_directions_are_equally_long_at_right_angles_and_orthogonal_to_ones(shape, k):
    """|v|^2 = D / k with D = C - C / V, where V classes are on the last axis."""
    v = random_directions(k, shape)
    count = torch.Size(shape).numel()
    scale = (count - count // shape[-1]) / k
    torch.testing.assert_close(v @ v.T, scale * torch.eye(k, **f64), rtol=0, atol=1e-12 * count)
    by_class = v.reshape(k, *shape).sum(dim=-1)
    assert by_class.abs().max() < 1e-12 * count


def test_plain_directions_are_equally_long_at_right_angles():
    v = random_directions(3, (5,), plain=True)
    torch.testing.assert_close(v @ v.T, 5 / 3 * torch.eye(3, **f64))
    assert v.sum(dim=1).abs().min() > 1e-3


@pytest.mark.parametrize(("k", "shape"), [(4, (5,)), (4, (2, 3)), (99, (100,)), (1, (2,))])
def test_as_many_directions_as_dimensions_are_exact(k, shape):
    """Then sum_v v v' is the projection that takes the all-ones part away."""
    v = random_directions(k, shape)
    torch.testing.assert_close(v.T @ v, _centring(shape), rtol=0, atol=1e-11)


def test_as_many_plain_directions_as_outputs_are_exact():
    v = random_directions(6, (2, 3), plain=True)
    torch.testing.assert_close(v.T @ v, torch.eye(6, **f64))


@pytest.mark.parametrize(("k", "shape"), [(1, (4,)), (2, (2, 3)), (7, (4,))])
@pytest.mark.parametrize("plain", [False, True])
def test_few_directions_are_right_on_average_over_seeds(monkeypatch, k, shape, plain):
    """E[sum_v v v'] is the projection (the identity for plain ones), within 4 standard errors."""
    seeds = 3000
    draws = []
    for seed in range(seeds):
        monkeypatch.setattr(module, "_SEED", seed)
        v = random_directions(k, shape, plain=plain)
        draws.append(v.T @ v)
    draws = torch.stack(draws)
    expected = torch.eye(draws.shape[-1], **f64) if plain else _centring(shape)
    error = (draws.mean(dim=0) - expected).abs()
    assert bool((error <= 4.5 * draws.std(dim=0) / seeds**0.5 + 1e-12).all())


def test_directions_are_the_same_in_every_call_and_whatever_was_drawn_before():
    first = random_directions(3, (7,))
    torch.manual_seed(5)
    torch.rand(3)
    assert torch.equal(random_directions(3, (7,)), first)


def test_drawing_directions_leaves_the_random_stream_alone():
    before = torch.get_rng_state()
    random_directions(3, (7,))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(), (1,), (6, 1)])
def test_logits_of_one_class_have_no_direction(shape):
    with pytest.raises(InputError, match="have one class, and no direction of it is orthogonal"):
        random_directions(3, shape)
    assert random_directions(1, shape, plain=True).shape[0] == 1


# The automatic choice. ----------------------------------------------------------------------------


def test_auto_keeps_up_to_ten_outputs_without_a_word():
    kernel = empirical_ntk(MLP(10), torch.randn(3, 4), outputs="auto")
    assert kernel.spec.outputs == "full"
    assert kernel.matrix.shape == (3, 3, 10, 10)


def test_auto_takes_eight_directions_of_more_and_says_so_once():
    model, x = MLP(11), torch.randn(3, 4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            kernel = empirical_ntk(model, x, outputs="auto")
    assert [str(w.message)[:37] for w in said] == ["the model has 11 outputs per sample; "]
    assert [w.filename for w in said] == [__file__]
    assert kernel.spec.outputs == "random:8"
    expected = _quadratic_form(dense_ntk(model, x), random_directions(8, (11,)))
    assert gap(kernel.matrix, expected) < 5e-6


def test_auto_takes_plain_directions_where_there_are_no_classes():
    with pytest.warns(UserWarning, match="12 outputs per sample"):
        kernel = empirical_ntk(
            nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (12, 1))),
            torch.randn(3, 4),
            outputs="auto",
        )
    assert kernel.spec.outputs == "random:8:plain"


# Refusals. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", ["traces", "random", "random:0", "random:-1", "random:2:x", ""])
def test_unknown_reductions_are_refused_with_the_known_ones(outputs):
    with pytest.raises(InputError, match=rf'outputs={outputs!r} is not known.*"trace", "sum"'):
        empirical_ntk(MLP(), torch.randn(3, 4), outputs=outputs)


@pytest.mark.parametrize("function", [torch.sum, lambda y: y.T])
def test_a_function_that_mixes_up_the_samples_axis_is_refused(function):
    with pytest.raises(InputError, match=r"outputs= returned shape .* for 4 samples"):
        empirical_ntk(MLP(), torch.randn(4, 4), outputs=function)


def test_a_function_that_holds_the_targets_of_the_probe_is_refused_and_told_where_they_go():
    """Samples are taken in any order and number, so it would read another sample's target."""
    model, inputs, targets = MLP(5), torch.randn(4, 4), torch.tensor([[0], [1], [2], [3]])
    for function in (lambda y: y.gather(1, targets), lambda y: y.gather(1, targets[: len(y)])):
        with pytest.raises(InputError, match=r"same 4 samples in reverse.*pass forward="):
            empirical_ntk(model, inputs, outputs=function)
    kernel = empirical_ntk(
        model,
        {"x": inputs, "wanted": targets},
        forward=lambda m, given: m(given["x"]).gather(1, given["wanted"]),
        dtype=torch.float64,
    )
    full = dense_ntk(model, inputs)
    places = torch.arange(4)
    own = full[places[:, None], places, targets, targets.T]
    assert gap(kernel.matrix[..., 0, 0], own) < 1e-13


def test_a_function_without_a_derivative_is_refused():
    with pytest.raises(OutputError, match=r"outputs= returned torch.int64.*Return scores"):
        empirical_ntk(MLP(), torch.randn(4, 4), outputs=lambda y: y.argmax(dim=1))
