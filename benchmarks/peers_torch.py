"""The process that computes kernels with a torch library, for ``peers.py``.

Each way prepares a kernel and returns what computes it. All get the same model in evaluation mode
and the whole batch as one, and follow their library's documentation:

- ``contraction`` and ``products`` are the two functions of PyTorch's tutorial "Neural Tangent
  Kernels", written from its description. As there, they compute both sides even where these are
  the same samples; ``one-sided`` does not;
- ``gram`` and ``jacobian`` are nngeometry's two roads to a kernel;
- ``autogram`` is TorchJD's engine of Gramians;
- ``operators`` multiplies the identity by curvlinops' operators of J' and J.

What goes through vmap or forward mode runs with the plain form of attention: the fused one has
no such rules on a processor and is refused or slower.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from models import Problem
from problems import problem
from torch import Tensor
from torch.func import functional_call, jacrev, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset
from worker import Make, serve

_COLUMNS = 16  # of the identity at a time: more take memory, and no less time

Kernel = Callable[[], Tensor]


def ntkwatch(given: Problem, outputs: str) -> Kernel:
    """Return the call that users make, with all its checks."""
    from ntkwatch import empirical_ntk

    return lambda: empirical_ntk(given.model, given.inputs, outputs=outputs).matrix


def contraction(given: Problem, outputs: str, *, sides: int = 2) -> Kernel:
    """All rows of the Jacobian, then one einsum for each parameter."""
    params = {name: p.detach() for name, p in given.model.named_parameters()}
    rows = vmap(jacrev(_of_one(given)), (None, 0))
    formula = "naf,mbf->nmab" if outputs == "full" else "naf,maf->nm"

    def kernel() -> Tensor:
        left = rows(params, given.inputs)
        right = rows(params, given.inputs) if sides == 2 else left
        return sum(
            torch.einsum(formula, left[name].flatten(2), right[name].flatten(2)) for name in params
        )

    return kernel


def one_sided(given: Problem, outputs: str) -> Kernel:
    return contraction(given, outputs, sides=1)


def products(given: Problem, outputs: str) -> Kernel:
    """For each pair of samples, J(x2) J(x1)' times the identity."""
    params = {name: p.detach() for name, p in given.model.named_parameters()}
    one = _of_one(given)

    def pair(x1: Tensor, x2: Tensor) -> Tensor:
        value, pull = vjp(lambda theta: one(theta, x1), params)

        def column(direction: Tensor) -> Tensor:
            return jvp(lambda theta: one(theta, x2), (params,), pull(direction))[1]

        return vmap(column)(torch.eye(len(value), dtype=value.dtype))

    pairs = vmap(vmap(pair, (None, 0)), (0, None))
    return lambda: _summed(pairs(given.inputs, given.inputs), outputs)


def _of_one(given: Problem) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """Return the model as a function of its parameters and of one sample."""
    return lambda theta, sample: functional_call(given.model, theta, (sample[None],))[0]


def gram(given: Problem, outputs: str) -> Kernel:
    from nngeometry import GramMatrix

    examples = _loader(given)
    return lambda: _summed(
        GramMatrix(given.model, examples).to_torch().permute(1, 3, 0, 2), outputs
    )


def jacobian(given: Problem, outputs: str) -> Kernel:
    from nngeometry import Jacobian

    examples = _loader(given)
    formula = "anp,bmp->nmab" if outputs == "full" else "anp,amp->nm"

    def kernel() -> Tensor:
        rows = Jacobian(given.model, examples).to_torch()
        return torch.einsum(formula, rows, rows)

    return kernel


def _loader(given: Problem) -> DataLoader:
    return DataLoader(TensorDataset(given.inputs), batch_size=len(given.inputs))


def autogram(given: Problem, outputs: str) -> Kernel:
    from torchjd.autogram import Engine

    try:
        engine = Engine(given.model, batch_dim=0)
    except ValueError:  # BatchNorm, for which its documentation advises this
        engine = Engine(given.model, batch_dim=None)

    def kernel() -> Tensor:
        values = given.model(given.inputs)
        n, c = values.shape
        return _summed(engine.compute_gramian(values).view(n, c, n, c).transpose(1, 2), outputs)

    return kernel


def operators(given: Problem, outputs: str) -> Kernel:
    from curvlinops import JacobianLinearOperator

    with torch.no_grad():
        values = given.model(given.inputs)
    n, c = values.shape
    data = [(given.inputs, torch.zeros_like(values))]
    left = JacobianLinearOperator(given.model, list(given.model.parameters()), data)
    right = left.adjoint()

    def kernel() -> Tensor:
        columns = [left @ (right @ block) for block in torch.eye(n * c).split(_COLUMNS, dim=1)]
        return _summed(torch.cat(columns, dim=1).view(n, c, n, c).transpose(1, 2), outputs)

    return kernel


def _summed(kernel: Tensor, outputs: str) -> Tensor:
    """Return a full kernel, or the sum over its outputs where only that is wanted."""
    return kernel if outputs == "full" else kernel.diagonal(dim1=2, dim2=3).sum(dim=-1)


_WAYS: dict[str, Callable[[Problem, str], Kernel]] = {
    "ntkwatch": ntkwatch,
    "contraction": contraction,
    "one-sided": one_sided,
    "products": products,
    "gram": gram,
    "jacobian": jacobian,
    "autogram": autogram,
    "operators": operators,
}
_LIBRARIES = {"ntkwatch": "ntkwatch", "gram": "nngeometry", "jacobian": "nngeometry"}
_LIBRARIES |= {"autogram": "torchjd", "operators": "curvlinops"}
_TRANSFORMED = ("contraction", "one-sided", "products", "operators")


def load(request: dict[str, Any]) -> Make:
    warnings.simplefilter("ignore")
    torch.set_num_threads(request["threads"])
    way, outputs = request["way"], request["outputs"]
    if way in _LIBRARIES:
        __import__(_LIBRARIES[way])
    _prepared(way, problem("mlp", quick=True), outputs)()()  # what libraries import when first used
    return _prepared(way, problem(request["problem"], request["quick"]), outputs)


def _prepared(way: str, given: Problem, outputs: str) -> Make:
    plain = way in _TRANSFORMED
    attention = partial(sdpa_kernel, SDPBackend.MATH) if plain else nullcontext

    def make() -> Callable[[], np.ndarray]:
        with attention():
            kernel = _WAYS[way](given, outputs)

        def run() -> np.ndarray:
            with attention():
                return kernel().detach().numpy()

        return run

    return make


if __name__ == "__main__":
    serve(load)
