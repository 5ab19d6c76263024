"""Slow references for tests: obvious on sight, and sharing no code with ntkwatch.

Kernels come from plain ``torch.autograd.grad``, one output of one sample at a time; derivatives
along a direction from finite differences; kernel metrics from loops in 50-digit arithmetic;
``load_oracle`` hands out networks whose kernels another library computed (``data/README.md``).
Nothing here imports ntkwatch, ``torch.func`` or any kernel library. All work is done in float64 on
a copy: the model given is left as it was.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

DATA = Path(__file__).parent / "data"
ORACLES = ("mlp_relu", "mlp_tanh", "resnet_block_eval_bn", "tiny_gpt_tied")

Forward = Callable[[nn.Module, Any], Tensor]


# Kernels from plain autograd.


def dense_jacobian(
    model: nn.Module, inputs: Any, forward: Forward | None = None
) -> dict[str, Tensor]:
    """Return, per trainable parameter tensor, its (N, C, size) part of the Jacobian, in float64.

    One backward pass per sample and output over the whole batch, so samples that the model couples
    stay coupled. A tensor with two names is listed once, under the first.
    """
    model, inputs = copy.deepcopy(model).double(), to_double(inputs)
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    outputs = _outputs(model, inputs, forward)
    n, c = outputs.shape
    jacobian = {
        name: torch.zeros(n, c, _real_entries(p).numel(), dtype=torch.float64)
        for name, p in params.items()
    }
    used = set()
    for i in range(n):
        for a in range(c):
            gradients = torch.autograd.grad(
                outputs[i, a], list(params.values()), retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(params, gradients, strict=True):
                if gradient is not None:
                    jacobian[name][i, a] = _real_entries(gradient).flatten()
                    used.add(name)
    assert used, "no parameter was used: does forward= hold the model instead of taking it?"
    return jacobian


def dense_ntk(
    model: nn.Module,
    inputs: Any,
    forward: Forward | None = None,
    *,
    params: Iterable[str] | None = None,
) -> Tensor:
    """Return ``K[i, j, a, b] = <d f_a(x_i)/d theta, d f_b(x_j)/d theta>``, (N, N, C, C), float64.

    ``params`` names the parameter tensors to keep; default: all trainable ones, each tensor once.
    """
    blocks = dense_jacobian(model, inputs, forward)
    kept = blocks if params is None else {name: blocks[name] for name in params}
    return sum(torch.einsum("iap,jbp->ijab", block, block) for block in kept.values())


def finite_difference_jvp(
    model: nn.Module,
    inputs: Any,
    direction: Mapping[str, Tensor],
    forward: Forward | None = None,
    *,
    step: float = 1e-3,
) -> Tensor:
    """Return ``J v``, (N, C) in float64, by a five-point central difference of the outputs.

    ``step`` is the distance moved in parameter space, whatever the length of ``v``. The error is
    about ``step**4`` times the fifth derivative, plus rounding of about ``1e-16 / step``; a network
    with kinks (ReLU) needs a step that crosses none. Parameters that ``direction`` leaves out stay.
    """
    inputs = to_double(inputs)
    length = math.sqrt(math.fsum(v.double().square().sum().item() for v in direction.values()))
    unit = step / length if length else step

    def moved(steps: int) -> Tensor:
        twin = copy.deepcopy(model).double()
        params = dict(twin.named_parameters())
        with torch.no_grad():
            for name, v in direction.items():
                params[name].add_(steps * unit * v.double())
            return _outputs(twin, inputs, forward)

    near, far = moved(1) - moved(-1), moved(2) - moved(-2)
    return (8 * near - far) / (12 * unit)


def to_double(inputs: Any) -> Any:
    """Return nested inputs with every floating-point tensor in float64; integers stay integers."""
    if isinstance(inputs, Mapping):
        return {key: to_double(value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(to_double(value) for value in inputs)
    is_floating = isinstance(inputs, Tensor) and inputs.is_floating_point()
    return inputs.double() if is_floating else inputs


def _real_entries(tensor: Tensor) -> Tensor:
    """Dense, with a complex number as two real ones."""
    tensor = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _outputs(model: nn.Module, inputs: Any, forward: Forward | None) -> Tensor:
    if forward is not None:
        outputs = forward(model, inputs)
    elif isinstance(inputs, Mapping):
        outputs = model(**inputs)
    elif isinstance(inputs, (tuple, list)):
        outputs = model(*inputs)
    else:
        outputs = model(inputs)
    return outputs.reshape(len(outputs), -1)


# Kernel metrics from loops. 50 digits, so that 1 - cos is right even where floats would cancel.


def naive_relative_change(kernel: np.ndarray, reference: np.ndarray) -> float:
    """Return ``|K - R|_F / |R|_F``."""
    with mpmath.workdps(50):
        pairs = list(_entries(kernel, reference))
        moved = mpmath.fsum((k - r) ** 2 for k, r in pairs)
        return float(mpmath.sqrt(moved / mpmath.fsum(r * r for _, r in pairs)))


def naive_scale(kernel: np.ndarray, reference: np.ndarray) -> float:
    """Return ``<K, R> / <R, R>`` (not its logarithm)."""
    with mpmath.workdps(50):
        pairs = list(_entries(kernel, reference))
        return float(mpmath.fsum(k * r for k, r in pairs) / mpmath.fsum(r * r for _, r in pairs))


def naive_distance(kernel: np.ndarray, reference: np.ndarray) -> float:
    """Return ``1 - <K, R> / (|K| |R|)``."""
    with mpmath.workdps(50):
        return float(1 - _cosine(kernel, reference))


def naive_angle(kernel: np.ndarray, reference: np.ndarray) -> float:
    """Return ``arccos(<K, R> / (|K| |R|))`` in radians."""
    with mpmath.workdps(50):
        return float(mpmath.acos(min(mpmath.mpf(1), _cosine(kernel, reference))))


def _cosine(kernel: np.ndarray, reference: np.ndarray) -> mpmath.mpf:
    pairs = list(_entries(kernel, reference))
    inner = mpmath.fsum(k * r for k, r in pairs)
    squares = mpmath.fsum(k * k for k, _ in pairs) * mpmath.fsum(r * r for _, r in pairs)
    return inner / mpmath.sqrt(squares)


def _entries(kernel: np.ndarray, reference: np.ndarray) -> Iterable[tuple[mpmath.mpf, mpmath.mpf]]:
    kernel, reference = np.asarray(kernel), np.asarray(reference)
    assert kernel.shape == reference.shape
    for index in np.ndindex(kernel.shape):
        yield mpmath.mpf(float(kernel[index])), mpmath.mpf(float(reference[index]))


# Networks whose kernels another library computed.


class _MLP(nn.Module):
    """8-16-16-3 with biases, an activation after the first two layers."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)])
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class _ResNetBlock(nn.Module):
    """A strided residual block with batch norms, pooled, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.shortcut = nn.Conv2d(6, 8, 1, stride=2, bias=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn1(self.conv1(x)))
        h = torch.relu(self.bn2(self.conv2(h)) + self.shortcut(h))
        return self.fc(h.mean(dim=(2, 3)))


class _TinyGPT(nn.Module):
    """One causal pre-norm block over 7 tokens; the embedding is used again as the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.pos = nn.Parameter(torch.zeros(7, 8))
        self.ln1, self.ln2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.pos
        x = x + self.proj(self._attention(self.ln1(x)))
        x = x + self.down(functional.gelu(self.up(self.ln2(x))))
        return functional.linear(x[:, -1], self.embed.weight)

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(4)
        future = torch.ones(7, 7, dtype=torch.bool).triu(diagonal=1)
        weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(start_dim=2)


_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "mlp_relu": lambda: _MLP(torch.relu),
    "mlp_tanh": lambda: _MLP(torch.tanh),
    "resnet_block_eval_bn": _ResNetBlock,
    "tiny_gpt_tied": _TinyGPT,
}


def load_oracle(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return one of ``ORACLES`` as (model in eval mode, inputs, outputs, full kernel), float64."""
    with np.load(DATA / f"{name}.npz") as file:
        tensors = {key: torch.from_numpy(file[key]) for key in file.files}
    inputs, outputs, kernel = (tensors.pop(key) for key in ("inputs", "outputs", "ntk_full"))
    model = _BUILDERS[name]().double().eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    # Counters of training batches, which no output depends on, are all that a file may lack.
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model, inputs, outputs, kernel


def load_infinite_width() -> dict[str, np.ndarray]:
    """Return the arrays of ``infinite_width.npz``: inputs and infinite-width kernels on them."""
    with np.load(DATA / "infinite_width.npz") as file:
        return {key: file[key] for key in file.files}
