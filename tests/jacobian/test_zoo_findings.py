"""What models of the zoo have shown to go wrong, each in a model as small as the mistake.

Oracles are plain autograd on a copy that takes all samples in one pass, and finite differences.
"""

import copy
from dataclasses import replace

import pytest
import torch
from jacobian.models import gap
from torch import nn
from torch.nn import functional

from ntkwatch.errors import CoverageError
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.matrix_free import top_eigenvalues
from ntkwatch.jacobian.structured.rules import forms

from oracles import dense_ntk, finite_difference_jvp

ENGINES = pytest.mark.parametrize("engine", ["auto", "structured", "vmap", "loop"])
DOUBLE = {"dtype": torch.float64}
NORMS = {
    "batch norm": lambda: nn.BatchNorm2d(4, **DOUBLE),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True, **DOUBLE),
}


class _Patches(nn.Module):
    """An image, normalised, becomes tokens: the cotangent comes back with odd strides."""

    def __init__(self, norm):
        super().__init__()
        self.up, self.norm = nn.Conv2d(2, 4, 1, **DOUBLE), norm
        self.order, self.head = nn.LayerNorm(4, **DOUBLE), nn.Linear(4, 2, **DOUBLE)

    def forward(self, x):
        tokens = self.norm(self.up(x)).flatten(2).transpose(1, 2)
        return self.head(self.order(tokens) * tokens).tanh().mean(1)


def _patches(norm):
    model = _Patches(NORMS[norm]()).eval()
    if norm == "batch norm":
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    return model, torch.randn(4, 2, 3, 3, **DOUBLE)


@ENGINES
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_of_one_sample_with_odd_strides_is_differentiated_rightly(norm, engine):
    model, x = _patches(norm)
    assert gap(empirical_ntk(model, x, engine=engine).matrix, dense_ntk(model, x)) < 1e-12


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("norm", NORMS)
def test_such_a_sample_alone_agrees_with_finite_differences(norm, engine):
    """Along ``v = J' u`` the outputs change by ``J v = K u``."""
    model, x = _patches(norm)
    u = torch.tensor([1.0, -2.0], **DOUBLE)
    names, params = zip(*model.named_parameters(), strict=True)
    v = torch.autograd.grad(model(x[[0, 0]])[0] @ u, params)
    change = finite_difference_jvp(model, x[:1], dict(zip(names, v, strict=True)))
    kernel = empirical_ntk(model, x[:1], engine=engine).matrix[0, 0]
    assert gap(kernel @ u, change[0]) < 1e-8


@pytest.mark.parametrize("norm", NORMS)
def test_eigenvalues_from_chunks_of_one_sample_are_those_of_the_kernel(norm):
    model, x = _patches(norm)
    flat = dense_ntk(model, x).permute(0, 2, 1, 3).reshape(8, 8)
    expected = torch.linalg.eigvalsh(flat).flip(0)[:2]
    found = top_eigenvalues(model, x, k=2, memory_budget=1)
    assert gap(found.values, expected) < 1e-9


class _KeepsATable(nn.Module):
    """In evaluation mode a table made of a parameter is made once and kept, as LeViT keeps its."""

    def __init__(self, kind):
        super().__init__()
        self.biases, self.head = nn.Parameter(torch.randn(4, **DOUBLE)), nn.Linear(4, 2, **DOUBLE)
        self.kind, self.kept = kind, {}

    def train(self, mode=True):
        super().train(mode)
        self.kept = {}
        self.__dict__.pop("table", None)
        return self

    def forward(self, x):
        if self.kind == "attribute" and not hasattr(self, "table"):
            self.table = self.biases.exp()
        if self.kind == "dictionary" and "table" not in self.kept:
            self.kept["table"] = self.biases.exp()
        table = self.table if self.kind == "attribute" else self.kept["table"]
        return self.head((x + table).tanh())


@ENGINES
@pytest.mark.parametrize("kind", ["attribute", "dictionary"])
def test_what_a_call_keeps_for_the_next_hides_no_parameter(kind, engine):
    model, x = _KeepsATable(kind), torch.randn(5, 4, **DOUBLE)
    for _ in range(2):  # as at two steps of a training
        kernel = empirical_ntk(model, x, engine=engine)
        fresh = copy.deepcopy(model).train()
        assert gap(kernel.matrix, dense_ntk(fresh, x)) < 1e-12
        assert kernel.layers["(root)"].norm() > 0
        assert not model.kept
        assert not hasattr(model, "table")
        with torch.no_grad():
            model.biases.add_(1.0)


class _Records(nn.Module):
    """Hooks are added at the first call, as transformers adds those that record hidden states."""

    def __init__(self):
        super().__init__()
        self.up, self.head = nn.Linear(4, 4, **DOUBLE), nn.Linear(4, 2, **DOUBLE)
        self.seen = []

    def forward(self, x):
        if not hasattr(self, "recording"):
            self.up.register_forward_hook(lambda *args: self.seen.append(args[-1]))
            self.recording = True
        self.seen.clear()
        self.up(x)
        return self.head(torch.stack(self.seen).sum(0).tanh())


@ENGINES
def test_what_a_call_adds_and_its_mark_that_it_did_are_forgotten_together(engine):
    model, x = _Records(), torch.randn(5, 4, **DOUBLE)
    kernel = empirical_ntk(model, x, engine=engine)
    assert gap(kernel.matrix, dense_ntk(model, x)) < 1e-12


class _OnlyInTraining(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, cotangent):
        raise AssertionError("put the model into training mode")


class _WritesItsState(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x):
        state = self.up(x).exp()
        state += 1  # exp needs its result for the backward pass
        return state


@pytest.mark.parametrize("count", [1, 3])
def test_a_backward_pass_that_cannot_run_is_refused_with_what_it_says(count):
    plain = nn.Linear(4, 2)

    def forward(model, x):
        return _OnlyInTraining.apply(model(x))

    words = r"cannot differentiate Linear .*put the model into training mode.*pass forward="
    with pytest.raises(CoverageError, match=words):
        empirical_ntk(plain, torch.randn(count, 4), forward=forward)
    with pytest.raises(CoverageError, match=r"modified by an inplace operation.*use_cache=False"):
        empirical_ntk(_WritesItsState(), torch.randn(count, 4))


class _AttendsInSingle(nn.Module):
    """The bias of the keys has no gradient but rounding: softmax does not see it."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(4, 4, **DOUBLE), nn.Linear(4, 4, **DOUBLE)
        self.head = nn.Linear(4, 2, **DOUBLE)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).mT
        return self.head(functional.softmax(scores.float(), dim=-1).double() @ x)[:, 0]


def test_rounding_to_single_precision_is_no_disagreement():
    torch.manual_seed(0)
    model, x = _AttendsInSingle(), torch.randn(4, 6, 4, **DOUBLE)
    kernel = empirical_ntk(model, x, engine="structured")
    assert gap(kernel.matrix, dense_ntk(model, x)) < 2e-6
    assert set(kernel.coverage.values()) == {"structured"}


def test_a_wrong_rule_is_seen_beside_such_rounding(monkeypatch):
    """Half a percent too much, in the weight that the rounding reaches."""
    torch.manual_seed(0)
    model, x = _AttendsInSingle(), torch.randn(4, 6, 4, **DOUBLE)
    node = "AddmmBackward0"
    right = forms._RULES[node]

    def wrong(use):
        form = right(use)
        if isinstance(form, forms.Rows):
            return form
        return replace(form, cot=lambda part: 1.005 * form.cot(part))

    monkeypatch.setitem(forms._RULES, node, wrong)
    with pytest.raises(CoverageError, match="differs from plain autograd"):
        empirical_ntk(model, x, engine="structured")
