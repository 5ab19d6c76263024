"""Sketches: a kernel's action on a few fixed random vectors, for what is too large or coupled.

The kernel is that of the whole batch as one function, so differentiated batch statistics and
contrastive heads are legitimate. The price is that every number is an estimate; the error bars are
those of ``kernel.sketched``. A sketch is never taken for a per-sample kernel: it says what it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ntkwatch.errors import InputError, KernelMismatchError
from ntkwatch.jacobian.batch_function import batch_problem, is_coupled
from ntkwatch.jacobian.blocks import contract
from ntkwatch.jacobian.engine import check_choice
from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.functional import real_entries
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.memory import parse_bytes
from ntkwatch.jacobian.outputs import OutputsSpec
from ntkwatch.jacobian.parameters import layer_of
from ntkwatch.jacobian.products import KernelProducts
from ntkwatch.jacobian.spec import BatchNormMode, KernelSpec
from ntkwatch.kernel.gram import check_finite, widest_float
from ntkwatch.kernel.sketched import MIN_COLUMNS, gaussian_columns

__all__ = ["KernelSketch", "SketchForm", "check_comparable", "draw_sketch", "sketch_kernel"]

SketchForm = Literal["one-sided", "two-sided"]

_SEED = (
    0x4E544B  # fixed: kernels of one run, and of two runs, must be seen through the same columns
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSketch:
    """What is known of a kernel ``K`` through m random columns ``V``.

    Attributes:
        form: "one-sided" or "two-sided".
        images: ``K V``, (N·C, m) or (N, m); None if two-sided.
        gram: ``V' K V``, (m, m).
        layers: Per module, its part of ``gram``; empty if one-sided.
        size: Rows of ``K``: N·C or N.
        seed: Of ``V``.
        coupled: Whether samples depend on each other, so that no per-sample kernel exists.
        method: How ``J v`` was computed; None if two-sided, which needs none.
        spec: Settings of the kernel.
    """

    form: SketchForm
    images: Tensor | None
    gram: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)
    size: int
    seed: int
    coupled: bool
    method: str | None
    spec: KernelSpec = field(repr=False)

    @property
    def columns(self) -> int:
        """Random columns m."""
        return len(self.gram)

    def first(self, columns: int) -> "KernelSketch":
        """Return the sketch that fewer columns would have given."""
        few = slice(0, columns)
        return KernelSketch(
            form=self.form,
            images=None if self.images is None else self.images[:, few],
            gram=self.gram[few, few],
            layers={layer: part[few, few] for layer, part in self.layers.items()},
            size=self.size,
            seed=self.seed,
            coupled=self.coupled,
            method=self.method,
            spec=self.spec,
        )


def sketch_kernel(
    model: nn.Module,
    inputs: Inputs,
    *,
    forward: ForwardFn | None = None,
    outputs: OutputsSpec = "full",
    params: str | Sequence[str] | None = None,
    batchnorm: BatchNormMode = "batch",
    columns: int = 32,
    form: SketchForm = "one-sided",
    dtype: torch.dtype | None = None,
    memory_budget: str | int = "1GiB",
    seed: int = _SEED,
) -> KernelSketch:
    """Return ``K V`` or ``V' K V`` for the kernel of a batch function and m Gaussian columns.

    One-sided takes m backward and m forward-mode passes over the batch, whatever the number of
    outputs. Two-sided takes m backward passes and gives every layer its part; with the same m its
    error is larger.

    Args:
        model: Any module; measured in evaluation mode and left as found.
        inputs: The batch: a tensor, or a tuple or mapping of tensors, samples first.
        forward: ``(model, inputs) -> tensor (N, ...)``; guessed by default.
        outputs: As in ``empirical_ntk``: "full" means the flat kernel (N·C, N·C), others the kernel
            (N, N) summed over output directions, at one pass of each kind per direction. "auto"
            means "full".
        params: Names or patterns of trainable parameters; default all.
        batchnorm: For each BatchNorm that trains on batch statistics: those of the "batch",
            differentiated (the function that training sees), those of the "probe", held constant
            in the derivative, or "running" ones.
        columns: Random vectors m, 4 or more.
        form: "one-sided" or "two-sided".
        dtype: Of the Jacobian; default that of the parameters, at least float32.
        memory_budget: Bytes for gradients of several columns (two-sided), and for what passes keep
            where samples are independent; dependent ones are always taken whole.
        seed: Of the columns; only sketches of one seed can be compared.

    Returns:
        The sketch.

    Raises:
        InputError: If inputs or settings cannot be used.
        RandomForwardError: If the model draws random numbers in evaluation mode.
        CoverageError: If the model cannot be linearized (one-sided only).
        NonFiniteError: If weights, outputs or the sketch hold NaN or infinity.
    """
    check_choice("form", form, ("one-sided", "two-sided"))
    if columns < MIN_COLUMNS:
        raise InputError(
            f"columns={columns} gives a sketch without a usable error bar. Take {MIN_COLUMNS} or "
            "more; 16 to 64 are usual."
        )
    budget = parse_bytes(memory_budget)
    with batch_problem(
        model,
        inputs,
        forward=forward,
        outputs=outputs,
        params=params,
        batchnorm=batchnorm,
        dtype=dtype,
    ) as problem:
        coupled = is_coupled(problem)
        products = KernelProducts(problem, budget=budget, coupled=coupled)
        return draw_sketch(
            products, columns=columns, form=form, coupled=coupled, budget=budget, seed=seed
        )


def draw_sketch(
    products: KernelProducts,
    *,
    columns: int,
    form: SketchForm,
    coupled: bool,
    budget: int,
    seed: int = _SEED,
    known: KernelSketch | None = None,
) -> KernelSketch:
    """Return a sketch of a kernel whose problem is ready; call it inside ``batch_problem``.

    Args:
        products: Products with the kernel.
        columns: Random vectors m.
        form: "one-sided" or "two-sided".
        coupled: Whether samples depend on each other.
        budget: Bytes for gradients of several columns.
        seed: Of the columns.
        known: A sketch of the same kernel with fewer columns; if one-sided, it is extended.

    Returns:
        The sketch.
    """
    images: Tensor | None = None
    layers: dict[str, Tensor] = {}
    method = None
    if form == "one-sided":
        done = [] if known is None or known.images is None else [known.images]
        start = sum(part.shape[1] for part in done)
        new = gaussian_columns(products.size, range(start, columns), seed=seed)
        done += [products.times(column)[:, None] for column in new.mT]
        images, method = torch.cat(done, dim=1), products.method
        vectors = gaussian_columns(products.size, range(columns), seed=seed).to(images)
        gram = vectors.mT @ images
    else:
        vectors = gaussian_columns(products.size, range(columns), seed=seed)
        gram, layers = _gram_by_layer(products, vectors, budget)
    check_finite(gram, "sketch of the kernel")
    return KernelSketch(
        form=form,
        images=images,
        gram=gram,
        layers=layers,
        size=products.size,
        seed=seed,
        coupled=coupled,
        method=method,
        spec=products.problem.spec,
    )


def check_comparable(sketch: KernelSketch, reference: KernelSketch) -> None:
    """Refuse two sketches of unlike kernels, or through unlike columns.

    Args:
        sketch: Now.
        reference: To compare it with.

    Raises:
        KernelMismatchError: If form, seed, size or settings differ.
    """
    now, then = _settings(sketch), _settings(reference)
    unlike = [key for key, value in now.items() if value != then[key]]
    if unlike:
        raise KernelMismatchError(
            f"the two sketches differ in {', '.join(unlike)} "
            f"({', '.join(f'{now[key]!r:.60} and {then[key]!r:.60}' for key in unlike)}), so they "
            "cannot be compared. Draw both with the same settings on the same inputs."
        )


def _settings(sketch: KernelSketch) -> dict[str, object]:
    drawn = {"form": sketch.form, "seed": sketch.seed, "size": sketch.size}
    return {**sketch.spec.to_plain(), **drawn}


class _ColumnRows:
    """Gradients ``J' v`` as rows, a column of ``V`` in the place of a sample."""

    def __init__(self, products: KernelProducts, vectors: Tensor) -> None:
        self.products, self.vectors = products, vectors
        self.count, self.rows = vectors.shape[1], products.directions

    def row_blocks(self, names: Sequence[str], samples: range, budget: int) -> dict[str, Tensor]:
        """Return gradients of shape (m, R, P) per name; ``budget`` has bounded ``samples``."""
        blocks: dict[str, list[Tensor]] = {name: [] for name in names}
        for column in samples:
            vector = self.vectors[:, column]
            for direction in range(self.rows):
                cotangent = self.products.cotangent(vector, direction)
                for name, gradient in self.products.pull(cotangent, names).items():
                    blocks[name].append(real_entries(gradient).flatten())
        shape = (len(samples), self.rows, -1)
        return {name: torch.stack(rows).view(shape) for name, rows in blocks.items()}


def _gram_by_layer(
    products: KernelProducts, vectors: Tensor, budget: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """``V' K V`` as the Gram matrix of the gradients ``J' v``, whole and by layer."""
    problem = products.problem
    params = problem.function.params
    return contract(
        _ColumnRows(products, vectors.to(products.device, widest_float(products.device))),
        None,
        {name: real_entries(params[name]).numel() for name in problem.names},
        {name: layer_of(name) for name in problem.names},
        full=False,
        itemsize=problem.function.dtype.itemsize,
        device=products.device,
        budget=budget,
    )
