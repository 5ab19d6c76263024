"""The linearized twin; oracle: the Jacobian written out row by row with plain autograd.

From it follow outputs, gradients and whole trainings of the linear model, in plain matrices.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ntkwatch import LinearizedModel
from ntkwatch.errors import CoverageError, SelectionError
from ntkwatch.jacobian import linearize

f64 = {"dtype": torch.float64}


class TinyGPT(nn.Module):
    """Causal attention, LayerNorms, dropout, and an embedding that is tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8, **f64)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, **f64)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 7, bias=False, **f64)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.full((5, 5), -torch.inf, **f64).triu(1))

    def forward(self, tokens: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        hidden = self.blocks(self.embed(tokens), mask=self.mask, is_causal=True)
        return scale * self.head(hidden)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1, **f64)
        self.norm = nn.BatchNorm2d(3, **f64)
        self.head = nn.Linear(3, 2, **f64)
        with torch.no_grad():
            self.norm.running_mean += 0.3
            self.norm.running_var *= 1.7

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.norm(self.conv(x))).mean(dim=(2, 3)))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6, **f64), nn.Tanh(), nn.Linear(6, 3, **f64))


MODELS = {
    "MLP": (_mlp, lambda: torch.randn(5, 4, **f64)),
    "transformer": (TinyGPT, lambda: torch.randint(0, 7, (3, 5))),
    "CNN with BatchNorm": (Convolutional, lambda: torch.randn(4, 1, 5, 5, **f64)),
}


def _row_by_row(model: nn.Module, *inputs) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Outputs and Jacobian of plain autograd, one backward pass per output."""
    model = copy.deepcopy(model).eval()
    leaves = {name: p for name, p in model.named_parameters() if p.requires_grad}
    outputs = model(*inputs)
    rows = [
        torch.cat(
            [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for p, g in zip(
                    leaves.values(),
                    torch.autograd.grad(
                        one, list(leaves.values()), retain_graph=True, allow_unused=True
                    ),
                    strict=True,
                )
            ]
        )
        for one in outputs.flatten()
    ]
    return outputs.detach(), torch.stack(rows), leaves


def _shaken(twin: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for delta in twin.parameters():
            delta.copy_(torch.randn(delta.shape, generator=generator, **f64))
    return torch.cat([delta.detach().flatten() for delta in twin.parameters()])


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("method", ["jvp", "double-vjp"])
def test_outputs_and_gradients_are_those_of_the_jacobian_written_out(case, method, monkeypatch):
    build, draw = MODELS[case]
    torch.manual_seed(0)
    model, x = build().train(), draw()
    f, J, leaves = _row_by_row(model, x)
    twin = LinearizedModel(model)
    if method == "double-vjp":
        monkeypatch.setattr(
            linearize, "EXACT", {"double-vjp": linearize._double_vjp}
        )  # as where an operation has no forward mode
    assert [name for name, _ in twin.named_parameters()] == list(leaves)
    torch.testing.assert_close(twin(x), f, rtol=1e-12, atol=1e-12)
    delta = _shaken(twin)
    outputs = twin(x)
    assert twin._method == method
    torch.testing.assert_close(outputs.flatten(), f.flatten() + J @ delta, rtol=1e-11, atol=1e-11)
    u = torch.randn(outputs.shape, **f64)
    (u * outputs).sum().backward()
    pulled = torch.cat([p.grad.flatten() for p in twin.parameters()])
    torch.testing.assert_close(pulled, J.T @ u.flatten(), rtol=1e-11, atol=1e-11)


def test_training_it_is_training_the_linear_model():
    """The same loop, loss and optimizer on the twin and on f + J delta in plain matrices."""
    torch.manual_seed(0)
    model, x, y = _mlp(), torch.randn(6, 4, **f64), torch.arange(6) % 3
    f, J, _ = _row_by_row(model, x)
    delta = torch.zeros(J.shape[1], requires_grad=True, **f64)
    twin = LinearizedModel(model)
    runs = {
        "plain": (lambda: f + (J @ delta).view_as(f), [delta]),
        "twin": (lambda: twin(x), list(twin.parameters())),
    }
    ends = {}
    for name, (outputs, parameters) in runs.items():
        optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            functional.cross_entropy(outputs(), y).backward()
            optimizer.step()
        ends[name] = outputs().detach()
    torch.testing.assert_close(ends["twin"], ends["plain"], rtol=1e-9, atol=1e-9)
    assert functional.cross_entropy(ends["twin"], y) < 0.5 * functional.cross_entropy(f, y)


def test_the_model_is_copied_and_left_alone():
    model, x = Convolutional(), torch.randn(4, 1, 5, 5, **f64)
    model.train()
    before = copy.deepcopy(model.state_dict())
    twin = LinearizedModel(model)
    expected = twin(x)
    twin.train()
    expected.sum().backward()
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())
    with torch.no_grad():
        model.conv.weight.add_(1.0)
    torch.testing.assert_close(twin(x), expected)


def test_frozen_and_tied_parameters_are_no_new_degrees_of_freedom():
    model = TinyGPT()
    model.blocks.requires_grad_(False)
    twin = LinearizedModel(model)
    assert [name for name, _ in twin.named_parameters()] == ["embed.weight"]
    assert "linearized_at.weights.blocks.layers.0.linear1.weight" in dict(twin.named_buffers())


def test_its_state_goes_into_a_twin_of_the_same_model():
    torch.manual_seed(0)
    model, x = TinyGPT(), torch.randint(0, 7, (3, 5))
    twin, again = LinearizedModel(model), LinearizedModel(TinyGPT())
    _shaken(twin)
    again.load_state_dict(twin.state_dict())
    torch.testing.assert_close(again(x), twin(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(twin)(x), twin(x), rtol=0, atol=0)


def test_it_is_called_as_the_model_is():
    model, tokens = TinyGPT(), torch.randint(0, 7, (3, 5))
    twin = LinearizedModel(model)
    _shaken(twin)
    torch.testing.assert_close(twin(tokens, scale=2.0), 2 * twin(tokens))
    last = LinearizedModel(model, forward=lambda m, x: m(x)[:, -1])
    _shaken(last)
    torch.testing.assert_close(last(tokens), twin(tokens)[:, -1])


def test_without_gradients_it_gives_the_same_outputs_and_no_graph():
    model, x = TinyGPT(), torch.randint(0, 7, (3, 5))
    twin = LinearizedModel(model)
    _shaken(twin)
    with torch.no_grad():
        alone = twin(x)
    assert not alone.requires_grad
    torch.testing.assert_close(alone, twin(x).detach(), rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(twin(x), alone, rtol=0, atol=0)


def test_float32_models_make_float32_twins():
    torch.manual_seed(0)
    twin = LinearizedModel(_mlp().float())
    assert {p.dtype for p in twin.parameters()} == {torch.float32}
    assert twin(torch.randn(2, 4)).dtype == torch.float32


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(SelectionError, match="none of them requires a gradient"):
        LinearizedModel(_mlp().requires_grad_(False))


class _Once(torch.autograd.Function):
    """Has a derivative, but no second one and no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos()


def test_a_model_without_an_exact_linearization_is_refused():
    class Odd(nn.Linear):
        def forward(self, x):
            return _Once.apply(super().forward(x))

    twin = LinearizedModel(Odd(3, 2, **f64))
    with pytest.raises(CoverageError, match="no exact gradient to train a twin with"):
        twin(torch.randn(4, 3, **f64))
