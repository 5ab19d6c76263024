"""Contraction block by block against the whole Jacobian times its transpose, and memory sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jacobian.models import MLP, ComplexWeights
from torch import nn

from ntkwatch.errors import InputError
from ntkwatch.jacobian.blocks import contract
from ntkwatch.jacobian.engine import empirical_ntk
from ntkwatch.jacobian.functional import ModelFunction
from ntkwatch.jacobian.memory import parse_bytes, saved_bytes
from ntkwatch.jacobian.outputs import resolve_outputs
from ntkwatch.jacobian.problem import prepare
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.jacobian.vmapped import VmapRows

CPU = torch.device("cpu")


class Rows:
    """Jacobian rows drawn at random, which remembers how much was asked for at once."""

    def __init__(self, count, rows, sizes, seed):
        generator = torch.Generator().manual_seed(seed)
        self.count, self.rows = count, rows
        self.whole = {
            name: torch.randn(count, rows, size, generator=generator, dtype=torch.float64)
            for name, size in sizes.items()
        }
        self.largest = 0

    def row_blocks(self, names, samples, budget):
        blocks = {name: self.whole[name][samples.start : samples.stop] for name in names}
        if len(samples) > 1:
            self.largest = max(self.largest, sum(b.nbytes for b in blocks.values()))
        return blocks

    def flat(self):
        return {name: block.flatten(0, 1) for name, block in self.whole.items()}


@settings(deadline=None, max_examples=150)
@given(
    n=st.integers(1, 6),
    m=st.none() | st.integers(1, 5),
    rows=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    full=st.booleans(),
    budget=st.integers(1, 12_000),
    seed=st.integers(0, 1000),
)
def test_blocks_add_up_to_the_whole_product_within_the_budget(
    n, m, rows, sizes, full, budget, seed
):
    names = {f"p{i}": size for i, size in enumerate(sizes)}
    layers = {name: f"layer{i % 2}" for i, name in enumerate(names)}
    left = Rows(n, rows, names, seed)
    right = None if m is None else Rows(m, rows, names, seed + 1)
    matrix, parts = contract(
        left, right, names, layers, full=full, itemsize=8, device=CPU, budget=budget
    )
    other = (left if right is None else right).flat()
    expected = {name: block @ other[name].mT for name, block in left.flat().items()}
    shape = (n, rows, n if m is None else m, rows)
    traces = {name: torch.einsum("irjr->ij", e.view(shape)) for name, e in expected.items()}
    whole = sum((expected if full else traces).values())
    torch.testing.assert_close(matrix, whole, rtol=1e-12, atol=1e-12)
    for layer in set(layers.values()):
        part = sum(traces[name] for name in names if layers[name] == layer)
        torch.testing.assert_close(parts[layer], part, rtol=1e-12, atol=1e-12)
    assert left.largest <= budget // 2
    assert right is None or right.largest <= budget // 2


def test_float32_rows_are_multiplied_in_float32_and_added_up_in_float64():
    """Of this many equal products plain float32 loses a digit more; the oracle is a product."""
    size = 400_000
    rows = Rows(1, 1, {"p": 1}, 0)
    rows.whole["p"] = torch.full((1, 1, size), 0.1)
    matrix, _ = contract(
        rows, None, {"p": size}, {"p": "l"}, full=False, itemsize=4, device=CPU, budget=10**9
    )
    assert matrix.dtype == torch.float64
    exact = size * float(torch.tensor(0.1).double() ** 2)
    assert matrix.item() == pytest.approx(exact, rel=3e-5)


def test_the_kernel_of_one_batch_is_exactly_symmetric():
    kernel = empirical_ntk(MLP(), torch.randn(5, 4), outputs="trace", memory_budget=300)
    assert torch.equal(kernel.matrix, kernel.matrix.mT)
    assert all(torch.equal(part, part.mT) for part in kernel.layers.values())


@pytest.mark.parametrize("budget", [1, 5_000, 50_000, 2**30])
def test_rows_of_any_chunk_are_the_same(budget):
    model, x = MLP(), torch.randn(6, 4)
    function = ModelFunction(model, dtype=torch.float64)
    inputs = x.double()
    reduction = resolve_outputs("full", function({}, inputs))
    names = list(function.params)
    rows = VmapRows(function, inputs, reduction).row_blocks(names, range(1, 6), budget)
    leaves = function.leaf_params(names)
    for i in range(1, 6):
        for a in range(3):
            expected = torch.autograd.grad(function(leaves, inputs)[i, a], list(leaves.values()))
            for name, gradient in zip(names, expected, strict=True):
                torch.testing.assert_close(rows[name][i - 1, a], gradient.flatten())


def test_one_direction_at_a_time_never_makes_all_of_them():
    """10,000 outputs as one matrix of unit vectors would take 800 MB."""
    reduction = resolve_outputs("trace", torch.zeros(1, 10_000))
    part = reduction.cotangents(torch.zeros(1), range(9_998, 10_000))
    assert part.shape == (2, 10_000)
    assert part.nonzero().tolist() == [[0, 9_998], [1, 9_999]]


def test_a_complex_weight_takes_two_numbers_per_entry():
    """4 x 3 complex and 3 real weights, 3 outputs of 5 samples, 8 bytes each."""
    model = ComplexWeights()
    with undisturbed(model):
        problem = prepare(
            model,
            torch.randn(5, 4),
            forward=None,
            outputs="full",
            names=["weight", "bias"],
            dtype=torch.float64,
            batchnorms=[],
        )
    assert problem.row_bytes == 5 * 3 * (2 * 12 + 3) * 8


# Sizes. -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("1.5 GB", 1_500_000_000),
        (" 2 tib ", 2 * 2**40),
        ("7", 7),
        (1000, 1000),
        ("10b", 10),
        ("1KB", 1000),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "1 XiB", "-1", "1e9", "MiB"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(InputError, match=r'is not a size.*"512MiB"'):
        parse_bytes(text)


@pytest.mark.parametrize("text", [0, "0 GiB", "0.2"])
def test_no_memory_at_all_is_refused(text):
    with pytest.raises(InputError, match="leaves no memory to compute in"):
        parse_bytes(text)


def test_what_a_backward_pass_keeps_is_counted_once_per_storage():
    """For (x W^T)^2 it keeps x (for W), two views of one product, and the result."""
    layer, x = nn.Linear(4, 3, bias=False), torch.randn(2, 4)

    def run():
        product = layer(x)
        return product * product.view_as(product)

    result = 2 * 3 * 4
    assert saved_bytes(run) == x.nbytes + result + result
