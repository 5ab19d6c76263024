"""Products with a kernel against the whole kernel of plain autograd."""

import pytest
import torch
from jacobian.batch_kernels import Contrastive, NormedNet, flat, flat_kernel
from jacobian.models import (
    MLP,
    Attend,
    Checkpointed,
    ComplexWeights,
    ImageNet,
    LastHidden,
    Padded,
    Routed,
    TiedPair,
    gap,
)
from torch import nn

import ntkwatch.jacobian.products as products_module
from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.batch_function import batch_problem, is_coupled
from ntkwatch.jacobian.products import KernelProducts

from oracles import dense_ntk

MODELS = {
    "MLP": (MLP, lambda: torch.randn(5, 4)),
    "attention": (Attend, lambda: torch.randn(5, 3, 8)),
    "LSTM": (lambda: LastHidden(nn.LSTM), lambda: torch.randn(5, 3, 4)),
    "images": (lambda: ImageNet().eval(), lambda: torch.randn(5, 3, 8, 8)),
    "padding": (Padded, lambda: torch.randint(0, 11, (5, 3))),
    "routed": (Routed, lambda: torch.randn(5, 4)),
    "tied": (TiedPair, lambda: torch.randn(5, 4)),
    "checkpointing": (lambda: Checkpointed(use_reentrant=False), lambda: torch.randn(5, 4)),
}


def _apply(
    model, inputs, vectors, *, outputs="full", batchnorm="running", budget=2**30, coupled=False, **k
):
    """K V as ntkwatch gives it, and how."""
    options = {"forward": None, "params": None, "dtype": torch.float64} | k
    with batch_problem(model, inputs, outputs=outputs, batchnorm=batchnorm, **options) as problem:
        products = KernelProducts(problem, budget=budget, coupled=coupled)
        assert products.size == len(vectors)
        return torch.stack([products.times(v) for v in vectors.T], dim=1), products.method


def _vectors(n, m=3):
    return torch.randn(n, m, dtype=torch.float64)


@pytest.mark.parametrize("budget", [2**30, 1], ids=["whole", "one by one"])
@pytest.mark.parametrize("case", MODELS)
def test_products_are_those_of_the_whole_kernel(case, budget):
    build, draw = MODELS[case]
    model, x = build(), draw()
    kernel = dense_ntk(model, x)
    v = _vectors(kernel.shape[0] * kernel.shape[2])
    found, method = _apply(model, x, v, budget=budget)
    assert gap(found, flat(kernel) @ v) < 1e-12
    assert method in ("jvp", "double-vjp")


def test_complex_weights_count_by_real_and_imaginary_part():
    """d|z| = Re(conj(z) dz) / |z|: the kernel of |x W| + b in closed form, output by output."""
    model, x, v = ComplexWeights(), torch.randn(5, 4, dtype=torch.float64), _vectors(15)
    z = x.to(torch.cdouble) @ model.weight.detach().to(torch.cdouble)
    unit = z / z.abs()
    kernel = torch.zeros(5, 5, 3, 3, dtype=torch.float64)
    for a in range(3):
        phases = (unit[:, None, a].conj() * unit[None, :, a]).real
        kernel[:, :, a, a] = (x @ x.T) * phases + 1
    assert gap(_apply(model, x, v)[0], flat(kernel) @ v) < 1e-12


def test_sparse_gradients_are_used_like_dense_ones():
    tokens, v = torch.randint(0, 7, (5, 2)), _vectors(10)
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2))
    expected = flat(dense_ntk(model, tokens)) @ v
    model[0].sparse = True
    for budget in (2**30, 1):
        assert gap(_apply(model, tokens, v, budget=budget)[0], expected) < 1e-12


@pytest.mark.parametrize("outputs", ["trace", "sum", "random:2", lambda f: f[:, :2]])
def test_other_outputs_give_the_kernel_of_that_reduction(outputs):
    from ntkwatch.jacobian.engine import empirical_ntk

    model, x, v = MLP(), torch.randn(5, 4, dtype=torch.float64), _vectors(5)
    kernel = dense_ntk(model, x)
    expected = {
        "trace": kernel.diagonal(dim1=2, dim2=3).sum(dim=-1),
        "sum": kernel.sum(dim=(2, 3)),
        "random:2": empirical_ntk(
            model, x, outputs="random:2", engine="loop", dtype=torch.float64
        ).matrix,
    }.get(outputs, kernel[:, :, :2, :2].diagonal(dim1=2, dim2=3).sum(dim=-1))
    found, _ = _apply(model, x, v, outputs=outputs)
    assert gap(found, expected @ v) < 1e-12


def test_chosen_parameters_only():
    model, x, v = MLP(), torch.randn(5, 4), _vectors(15)
    kernel = flat(dense_ntk(model, x, params=["0.weight", "0.bias"]))
    assert gap(_apply(model, x, v, params="0")[0], kernel @ v) < 1e-12


def test_batch_statistics_are_differentiated():
    model, x, v = NormedNet().train(), torch.randn(8, 4), _vectors(24)
    found, _ = _apply(model, x, v, batchnorm="batch", coupled=True)
    assert gap(found, flat_kernel(model, x) @ v) < 1e-12
    # Held constant they give another kernel: that of the probe's statistics written into buffers.
    assert gap(_apply(model, x, v, batchnorm="probe")[0], found) > 0.05


@pytest.mark.parametrize("batchnorm", ["running", "probe", "batch"])
def test_products_are_those_of_the_kernel_of_the_same_problem(batchnorm):
    """One problem, two ways: what its rows make of it, and what its products do."""
    model, v = NormedNet().train(), _vectors(24)
    with torch.no_grad():
        model(torch.randn(50, 4) + 1)
    options = {"forward": None, "params": None, "dtype": torch.float64, "outputs": "full"}
    with batch_problem(model, torch.randn(8, 4), batchnorm=batchnorm, **options) as problem:
        products = KernelProducts(problem, budget=2**30, coupled=False)
        found = torch.stack([products.times(u) for u in v.T], dim=1)
        kernel = problem.kernel(engine="loop", budget=2**30)
        assert problem.spec.batchnorm == batchnorm
    assert gap(found, flat(kernel.matrix) @ v) < 1e-12


def test_batch_statistics_are_never_taken_in_parts():
    """A head of zeros hides the coupling from outputs; a batch in parts has other statistics."""
    model, x, v = NormedNet().train(), torch.randn(8, 4), _vectors(24)
    with torch.no_grad():
        model[3].weight.zero_()
    options = {"forward": None, "params": "3", "dtype": torch.float64, "outputs": "full"}
    with batch_problem(model, x, batchnorm="batch", **options) as problem:
        assert is_coupled(problem)
        products = KernelProducts(problem, budget=1, coupled=is_coupled(problem))
        found = torch.stack([products.times(u) for u in v.T], dim=1)
    expected = flat_kernel(model, x, params=["3.weight", "3.bias"]) @ v
    assert gap(found, expected) < 1e-12


def test_coupled_heads_are_one_function_of_the_batch():
    model, x, v = Contrastive(), torch.randn(6, 4), _vectors(36)
    found, _ = _apply(model, x, v, coupled=True)
    assert gap(found, flat_kernel(model, x) @ v) < 1e-12


class _NoForwardMode(torch.autograd.Function):
    """x^2; has a second derivative and no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class _Once(_NoForwardMode):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class _With(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 5), nn.Linear(5, 3), function

    def forward(self, x):
        return self.last(self.function.apply(self.first(x)))


@pytest.mark.parametrize(
    ("function", "method", "error"),
    [(_NoForwardMode, "double-vjp", 1e-12), (_Once, "finite-difference", 1e-7)],
)
@pytest.mark.parametrize("budget", [2**30, 1], ids=["whole", "one by one"])
def test_models_without_forward_mode_take_another_way(function, method, error, budget):
    model, x, v = _With(function), torch.randn(5, 4), _vectors(15)
    found, by = _apply(model, x, v, budget=budget)
    assert by == method
    assert gap(found, flat(dense_ntk(model, x)) @ v) < error


def test_a_forward_mode_that_goes_wrong_later_is_noticed_and_replaced(monkeypatch):
    """Right when it was checked, wrong afterwards: the free check of each product sees it."""
    real = products_module.unchecked_product

    def wrong(method, *args):
        result = real(method, *args)
        return result * 1.001 if method == "jvp" else result

    monkeypatch.setattr(products_module, "unchecked_product", wrong)
    model, x, v = MLP(), torch.randn(5, 4), _vectors(15)
    found, _ = _apply(model, x, v)
    assert gap(found, flat(dense_ntk(model, x)) @ v) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_that_the_kernel_hardly_sees_raise_no_alarm(monkeypatch, dtype):
    """Inputs with singular values from 1 to 1e-7: rounding of J g is large beside J g itself."""
    checked = []
    real = products_module.jacobian_vector_product

    def counted(*args, **options):
        checked.append(1)
        return real(*args, **options)

    monkeypatch.setattr(products_module, "jacobian_vector_product", counted)
    left, right = (torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64))[0] for n in (9, 4))
    x = left @ torch.diag(torch.tensor([1, 1e-2, 1e-5, 1e-7], dtype=torch.float64)) @ right.T
    model = nn.Sequential(nn.Linear(4, 50, bias=False), nn.Linear(50, 1))
    _apply(model, x, left, params="0", dtype=dtype)
    assert len(checked) == 1


class _Straight(torch.autograd.Function):
    """Its gradient pretends that it did not round, and cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


def test_a_model_that_cannot_be_linearized_is_refused():
    with pytest.raises(CoverageError, match="could not be linearized"):
        _apply(_With(_Straight), torch.randn(5, 4), _vectors(15))


def test_float32_products_are_right_to_float32():
    model, x, v = MLP(), torch.randn(5, 4), _vectors(15)
    found, _ = _apply(model, x, v, dtype=torch.float32)
    assert found.dtype == torch.float64
    assert 0 < gap(found, flat(dense_ntk(model, x)) @ v) < 1e-6


def test_a_frozen_or_unused_parameter_adds_nothing():
    class WithMore(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = MLP(), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    model, x, v = WithMore(), torch.randn(5, 4), _vectors(15)
    model.used[0].bias.requires_grad_(False)
    expected = flat(dense_ntk(model, x)) @ v
    assert gap(_apply(model, x, v)[0], expected) < 1e-12


def test_the_graph_of_a_whole_batch_is_made_once():
    calls = []

    def forward(model, x):
        calls.append(len(x))
        return model(x)

    model, x, v = MLP(), torch.randn(5, 4), torch.randn(15, dtype=torch.float64)
    options = {"forward": forward, "params": None, "dtype": None, "outputs": "full"}
    with batch_problem(model, x, batchnorm="running", **options) as problem:
        products = KernelProducts(problem, budget=2**30, coupled=False)
        products.times(v)
        calls.clear()
        products.times(v)
    assert calls == [5]  # that of forward mode


def test_chunks_bound_what_one_pass_keeps():
    model, x = nn.Sequential(nn.Linear(4, 500), nn.Tanh(), nn.Linear(500, 3)), torch.randn(40, 4)
    options = {"forward": None, "params": None, "dtype": None, "outputs": "full"}
    with batch_problem(model, x, batchnorm="running", **options) as problem:

        def chunks(budget, coupled=False):
            products = KernelProducts(problem, budget=budget, coupled=coupled)
            sizes = []
            inner = products._function_on

            def noted(function, inputs):
                sizes.append(len(inputs))
                return inner(function, inputs)

            products._function_on = noted
            products.times(torch.randn(120))
            return max(sizes)

        assert chunks(2**30) == 40
        assert 1 < chunks(120_000) < 40
        assert chunks(1) == 1
        assert chunks(1, coupled=True) == 40
