"""Every engine against plain autograd on every case: a model that is hard in one way.

The oracle is ``cases/reference.py``: ``torch.autograd.grad`` on a deep copy in float64, each sample
in a forward pass of its own.
"""

import copy
from contextlib import nullcontext, suppress

import pytest
import torch
from jacobian.cases.every import CASES
from jacobian.cases.reference import part_of, reference, reference_of
from jacobian.models import Checkpointed, gap
from jacobian.snapshots import assert_same, state_of
from versions import at_least

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.engine import empirical_ntk

# The engines under test, and per engine the cases that it refuses with the reason. A case that an
# engine is said to refuse must be refused.
ENGINES = ["structured", "vmap", "loop"]
REFUSED = {
    "structured": {},
    "vmap": {name: each.vmap for name, each in CASES.items() if each.vmap is not None},
    "loop": {},
}

OLD_TORCH = not at_least("torch", "2.13")  # whose vmap may refuse more, checkpointing for one

# Looked at in every mode of use: as different from each other as they come.
DIVERSE = [
    "tokens through dense layers",
    "a convolution over the plane with and without bias",
    "an embedding whose tokens repeat within and between samples",
    "a head tied to the embedding",
    "multi head attention time first",
    "layer norm of tokens",
    "an adapter merged into the weight",
    "an lstm",
    "a graph network that adds messages by index",
    "the two best experts for each token",
    "einsum that splits into heads",
    "complex weights",
    "bert",
]
# Without those that an engine refuses, which the first test looks at.
POSSIBLE = [(name, engine) for name in DIVERSE for engine in ENGINES if name not in REFUSED[engine]]

# A layer's part of the kernel is looked at for itself, however small, unless it is this share of
# the whole: zero but for rounding, as behind the bias of attention's keys.
_NOTHING = 1e-16

# Torch tells once which of its ways it takes for an uneven padding and for a projected state.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning"),
]


def _agrees(kernel, expected, tolerance):
    assert gap(kernel.matrix, expected.matrix) < tolerance
    assert gap(sum(kernel.layers.values()), expected.trace) < tolerance
    assert set(kernel.layers) == set(expected.layers)
    rounding = _NOTHING * expected.trace.norm()
    for name, part in expected.layers.items():
        error = (kernel.layers[name] - part).norm()
        assert error <= tolerance * (part.norm() + rounding), name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_every_engine_gives_the_kernel_of_plain_autograd_and_leaves_no_trace(name, engine):
    """The model comes in training mode, as it does in a training."""
    case = CASES[name]
    model, inputs, settings = case.build()
    before, given = state_of(model.train()), copy.deepcopy(inputs)
    settings |= {"engine": engine, "dtype": torch.float64}
    if name in REFUSED[engine]:
        with pytest.raises(CoverageError, match=f"engine='{engine}' cannot differentiate"):
            empirical_ntk(model, inputs, **settings)
    else:
        with suppress(CoverageError) if engine == "vmap" and OLD_TORCH else nullcontext():
            kernel = empirical_ntk(model, inputs, **settings)
            _agrees(kernel, reference_of(case), case.tolerance)
            assert set(kernel.coverage) == reference_of(case).names
    assert_same(before, state_of(model))
    assert_same(given, inputs)


@pytest.mark.parametrize("engine", ENGINES)
def test_reentrant_checkpointing_hides_no_weight(engine):
    """Plain ``autograd.grad`` refuses it: the oracle is the model without checkpoints."""
    torch.manual_seed(0)
    model, x = Checkpointed(use_reentrant=True), torch.randn(5, 4)
    plain = Checkpointed(use_reentrant=False)
    plain.load_state_dict(model.state_dict())
    kernel = empirical_ntk(model, x, engine=engine, dtype=torch.float64)
    _agrees(kernel, reference(plain, x), 1e-12)


def test_only_cases_are_said_to_be_refused():
    assert list(REFUSED) == ENGINES
    assert set().union(*REFUSED.values()) <= set(CASES)


@pytest.mark.parametrize(("name", "engine"), POSSIBLE)
def test_a_cross_kernel_is_a_block_of_the_kernel_of_both(name, engine):
    model, inputs, settings = CASES[name].build()
    first, second = part_of(inputs, slice(0, 2)), part_of(inputs, slice(2, None))
    settings |= {"engine": engine, "dtype": torch.float64}
    kernel = empirical_ntk(model, first, other=second, **settings)
    whole = reference_of(CASES[name])
    assert gap(kernel.matrix, whole.matrix[:2, 2:]) < CASES[name].tolerance
    assert gap(sum(kernel.layers.values()), whole.trace[:2, 2:]) < CASES[name].tolerance


@pytest.mark.parametrize(("name", "engine"), POSSIBLE)
def test_one_sample_alone_has_its_entry_of_the_kernel(name, engine):
    model, inputs, settings = CASES[name].build()
    settings |= {"engine": engine, "dtype": torch.float64}
    kernel = empirical_ntk(model, part_of(inputs, slice(1, 2)), **settings)
    whole = reference_of(CASES[name])
    assert gap(kernel.matrix, whole.matrix[1:2, 1:2]) < CASES[name].tolerance
    assert gap(sum(kernel.layers.values()), whole.trace[1:2, 1:2]) < CASES[name].tolerance


@pytest.mark.parametrize(("name", "engine"), POSSIBLE)
def test_many_samples_are_told_apart(name, engine):
    """The same few samples again and again: the kernel repeats itself."""
    model, inputs, settings = CASES[name].build()
    whole = reference_of(CASES[name]).trace
    again = torch.arange(70) % len(whole)
    settings |= {"engine": engine, "dtype": torch.float64, "outputs": "trace"}
    kernel = empirical_ntk(model, part_of(inputs, again), **settings)
    assert gap(kernel.matrix, whole[again][:, again]) < CASES[name].tolerance


def _in_single_precision():
    """All cases, those that are not among the diverse few as slow tests."""
    for name, engine in ((name, engine) for name in CASES for engine in ENGINES):
        marks = [] if name in DIVERSE else [pytest.mark.slow]
        if name not in REFUSED[engine]:
            yield pytest.param(name, engine, marks=marks)


@pytest.mark.parametrize(("name", "engine"), list(_in_single_precision()))
def test_single_precision_is_within_5e_minus_6(name, engine):
    """The oracle takes the weights that single precision has rounded, in float64."""
    model, inputs, settings = CASES[name].build()
    model = _single(model)
    inputs = part_of(inputs, slice(None), dtype=torch.float32)
    expected = reference(model, inputs, whole=CASES[name].whole is not None, **settings)
    kernel = empirical_ntk(model, inputs, engine=engine, **settings)
    assert kernel.spec.dtype == "float32"
    assert gap(kernel.matrix, expected.matrix) < 5e-6
    assert gap(sum(kernel.layers.values()), expected.trace) < 5e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_experts_multiplied_in_groups_have_the_kernel_of_experts_one_by_one(engine):
    """The way that transformers takes by default, which knows no float64."""
    model, inputs, settings = CASES["mixtral"].build()
    expected = reference(model.float(), inputs, **settings)
    model.set_experts_implementation("grouped_mm")
    kernel = empirical_ntk(model, inputs, engine=engine, **settings)
    assert gap(kernel.matrix, expected.matrix) < 5e-6


def _squares(outputs):
    """Two numbers per sample, in which all outputs meet."""
    flat = outputs.flatten(1)
    return torch.stack([flat.square().sum(1), flat.sin().sum(1)], dim=1)


MODES = ["trace", "sum", "random:3", "random:1:plain", _squares]


@pytest.mark.parametrize("outputs", MODES, ids=lambda mode: getattr(mode, "__name__", mode))
@pytest.mark.parametrize(("name", "engine"), POSSIBLE)
def test_outputs_are_reduced_before_or_after_alike(name, engine, outputs):
    """The oracle differentiates the reduced outputs."""
    model, inputs, settings = CASES[name].build()
    settings |= {"outputs": outputs}
    expected = reference(model, inputs, **settings)
    kernel = empirical_ntk(model, inputs, engine=engine, dtype=torch.float64, **settings)
    assert kernel.matrix.ndim == 2
    _agrees(kernel, expected, CASES[name].tolerance)


@pytest.mark.parametrize("budget", [1, "20 kB"])
@pytest.mark.parametrize(("name", "engine"), POSSIBLE)
def test_a_small_memory_budget_changes_nothing(name, engine, budget):
    model, inputs, settings = CASES[name].build()
    settings |= {"engine": engine, "dtype": torch.float64, "memory_budget": budget}
    kernel = empirical_ntk(model, inputs, **settings)
    _agrees(kernel, reference_of(CASES[name]), CASES[name].tolerance)


def _single(model):
    for parameter in model.parameters():
        if parameter.is_complex():
            parameter.data = parameter.data.to(torch.cfloat)
    return model.float()
