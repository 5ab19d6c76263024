"""Kernels against another library's (neural-tangents) and against plain autograd in float64."""

import pytest
import torch
from jacobian.models import (
    MLP,
    Attend,
    Checkpointed,
    ImageNet,
    InPlaceInput,
    LastHidden,
    Padded,
    Routed,
    Squeezed,
    TiedPair,
    gap,
)
from torch import nn

from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.kernel.gram import trace_kernel

from oracles import ORACLES, dense_jacobian, dense_ntk, load_oracle

# From all rows at once down to one sample, one parameter and one direction at a time.
BUDGETS = [("mlp_relu", budget) for budget in ("1GiB", "100KiB", "20 kB", 3000, 1)]
BUDGETS += [(name, budget) for name in ORACLES[1:] for budget in ("1GiB", "500 kB")]


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "budget"), BUDGETS)
def test_both_engines_give_the_kernel_of_the_other_library(name, engine, budget):
    model, inputs, _, expected = load_oracle(name)
    kernel = empirical_ntk(model, inputs, engine=engine, memory_budget=budget)
    assert gap(kernel.matrix, expected) < 1e-14
    assert set(kernel.coverage.values()) == {engine}
    assert set(kernel.coverage) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("name", ORACLES)
def test_float32_is_within_5e_minus_6_of_float64(name):
    model, inputs, _, expected = load_oracle(name)
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    kernel = empirical_ntk(model.float(), inputs)
    assert kernel.spec.dtype == "float32"
    assert kernel.matrix.dtype == torch.float64
    assert gap(kernel.matrix, expected) < 5e-6


def test_float64_of_a_float32_model_is_exact():
    """The oracle works in float64 from the same float32 weights."""
    model, x = MLP(), torch.randn(6, 4)
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    assert kernel.spec.dtype == "float64"
    assert gap(kernel.matrix, dense_ntk(model, x)) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_computed_in_float32(dtype):
    """The oracle works in float64 from the same rounded weights."""
    model, x = MLP().to(dtype), torch.randn(6, 4).to(dtype)
    kernel = empirical_ntk(model, x)
    assert kernel.spec.dtype == "float32"
    assert gap(kernel.matrix, dense_ntk(model, x)) < 5e-6


ODD = {
    "convolutions, norms, in-place activations": (ImageNet, lambda: torch.randn(6, 3, 8, 8)),
    "channels last": (
        ImageNet,
        lambda: torch.randn(6, 3, 8, 8).contiguous(memory_format=torch.channels_last),
    ),
    "squeeze": (Squeezed, lambda: torch.randn(6, 4)),
    "input changed in place": (InPlaceInput, lambda: torch.randn(6, 4)),
    "tied": (TiedPair, lambda: torch.randn(6, 4)),
    "routed": (Routed, lambda: torch.randn(6, 4)),
    "padding token": (Padded, lambda: torch.randint(0, 3, (6, 5))),
    "fused attention": (Attend, lambda: torch.randn(6, 5, 8)),
    "checkpointing": (lambda: Checkpointed(use_reentrant=False), lambda: torch.randn(6, 4)),
    "two layers of bidirectional LSTM": (
        lambda: LastHidden(nn.LSTM, bidirectional=True, num_layers=2),
        lambda: torch.randn(6, 5, 4),
    ),
    "GRU": (lambda: LastHidden(nn.GRU), lambda: torch.randn(6, 5, 4)),
    "bag of embeddings": (
        lambda: nn.Sequential(nn.EmbeddingBag(11, 4, mode="mean"), nn.Tanh(), nn.Linear(4, 2)),
        lambda: torch.randint(0, 11, (6, 5)),
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        lambda: torch.randn(6, 4),
    ),
    "spectral norm": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
        lambda: torch.randn(6, 4),
    ),
    "multi-head attention": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda: torch.randn(4, 3, 8),
    ),
    "two inputs": (lambda: nn.Bilinear(4, 4, 3), lambda: (torch.randn(6, 4), torch.randn(6, 4))),
    "a list of weights": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU(3)),
        lambda: torch.randn(6, 4),
    ),
    "transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose1d(3, 2, 3, groups=1), nn.Flatten()),
        lambda: torch.randn(5, 3, 2),
    ),
}


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("case", ODD)
def test_odd_models_have_the_kernel_of_plain_autograd(case, engine):
    build, draw = ODD[case]
    model, inputs = build().eval(), draw()
    kernel = empirical_ntk(model, inputs, engine=engine, dtype=torch.float64)
    expected = dense_ntk(model, inputs)
    if kernel.matrix.ndim == 4:
        assert gap(kernel.matrix, expected) < 1e-13
    assert gap(sum(kernel.layers.values()), trace_kernel(expected)) < 1e-13


def test_layers_are_the_kernels_of_their_modules_and_add_up():
    model, x = TiedPair(), torch.randn(6, 4)
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    # Tied ones go by their first name.
    owned = {"first": ["first.weight", "first.bias"], "left": ["left.weight", "left.bias"]}
    owned["right"] = ["right.bias"]
    assert list(kernel.layers) == list(owned)
    for layer, names in owned.items():
        expected = trace_kernel(dense_ntk(model, x, params=names))
        assert gap(kernel.layers[layer], expected) < 1e-14
    assert gap(sum(kernel.layers.values()), kernel.trace) < 1e-14


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("budget", ["1GiB", 500, 1])
@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_a_cross_kernel_is_the_block_of_the_joint_one(engine, budget, outputs):
    model, x = MLP(), torch.randn(9, 4)
    joint = dense_ntk(model, x)[:5, 5:]
    kernel = empirical_ntk(
        model,
        x[:5],
        other=x[5:],
        engine=engine,
        memory_budget=budget,
        outputs=outputs,
        dtype=torch.float64,
    )
    expected = joint if outputs == "full" else trace_kernel(joint)
    assert gap(kernel.matrix, expected) < 1e-14
    assert gap(sum(kernel.layers.values()), trace_kernel(joint)) < 1e-14


@pytest.mark.parametrize("model", [MLP(), Squeezed(outputs=3)])
def test_one_sample_against_others_and_others_against_one(model):
    x = torch.randn(4, 4)
    joint = dense_ntk(model, x)
    alone, rest = x[3:], x[:3]
    cross = empirical_ntk(model, rest, other=alone, dtype=torch.float64)
    assert gap(cross.matrix, joint[:3, 3:]) < 1e-14
    if isinstance(model, MLP):
        cross = empirical_ntk(model, alone, other=rest, dtype=torch.float64)
        assert gap(cross.matrix, joint[3:, :3]) < 1e-14


def test_one_sample_has_a_kernel_of_one_entry_per_pair_of_outputs():
    model, x = MLP(), torch.randn(1, 4)
    assert gap(empirical_ntk(model, x, dtype=torch.float64).matrix, dense_ntk(model, x)) < 1e-14


def test_complex_weights_count_by_real_and_imaginary_part():
    """The oracle is the same function of two real weights."""

    class Real(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.re = nn.Parameter(model.weight.detach().real.clone())
            self.im = nn.Parameter(model.weight.detach().imag.clone())
            self.bias = nn.Parameter(model.bias.detach().clone())

        def forward(self, x):
            return torch.sqrt((x @ self.re) ** 2 + (x @ self.im) ** 2) + self.bias

    from jacobian.models import ComplexWeights

    model, x = ComplexWeights(), torch.randn(5, 4)
    expected = dense_ntk(Real(model), x)
    for engine in ("vmap", "loop"):
        kernel = empirical_ntk(model, x, engine=engine, dtype=torch.float64, memory_budget=400)
        assert gap(kernel.matrix, expected) < 1e-12


def test_reentrant_checkpointing_hides_no_weight():
    """Torch's autograd refuses to give its gradients; the same weights without it do not."""
    model, x = Checkpointed(use_reentrant=True), torch.randn(6, 4)
    plain = Checkpointed(use_reentrant=False)
    plain.load_state_dict(model.state_dict())
    kernel = empirical_ntk(model, x, dtype=torch.float64)
    assert gap(kernel.matrix, dense_ntk(plain, x)) < 1e-14


def test_the_jacobian_itself_is_behind_the_kernel():
    """A kernel that agreed by chance for one model would not for J J' of random rows."""
    model, x = ImageNet().eval(), torch.randn(4, 3, 8, 8)
    J = torch.cat([block.flatten(0, 1) for block in dense_jacobian(model, x).values()], dim=1)
    flat = empirical_ntk(model, x, dtype=torch.float64).matrix.permute(0, 2, 1, 3).reshape(12, 12)
    assert gap(flat, J @ J.T) < 1e-14
