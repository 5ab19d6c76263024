"""``top_eigenvalues``: of a kernel too large to hold, from its products with vectors alone."""

from collections.abc import Sequence

import torch
from torch import nn

from ntkwatch.errors import InputError
from ntkwatch.jacobian.batch_function import batch_problem, is_coupled
from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.memory import parse_bytes
from ntkwatch.jacobian.outputs import OutputsSpec
from ntkwatch.jacobian.products import KernelProducts
from ntkwatch.jacobian.spec import BatchNormMode
from ntkwatch.kernel.lanczos import TopEigenvalues, lanczos

__all__ = ["top_eigenvalues"]

# Residuals that products reach with some room: rounding of a deep model is some hundred units.
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def top_eigenvalues(
    model: nn.Module,
    inputs: Inputs,
    k: int = 8,
    *,
    forward: ForwardFn | None = None,
    outputs: OutputsSpec = "full",
    params: str | Sequence[str] | None = None,
    batchnorm: BatchNormMode = "running",
    dtype: torch.dtype | None = None,
    memory_budget: str | int = "1GiB",
    tolerance: float | None = None,
    max_products: int | None = None,
) -> TopEigenvalues:
    """Return the k largest eigenvalues of the empirical NTK without forming it.

    Each product ``K v = J (J' v)`` is one backward and one forward-mode pass over the inputs (for
    outputs other than "full" and "sum", one of each per output direction).

    Args:
        model: Any module that ``empirical_ntk`` takes; measured in evaluation mode, left as found.
        inputs: A tensor, or a tuple or mapping of tensors, samples first.
        k: How many eigenvalues.
        forward: ``(model, inputs) -> tensor (N, ...)``; guessed by default.
        outputs: As in ``empirical_ntk``: "full" means the flat kernel (N·C, N·C), others the kernel
            (N, N) summed over output directions; "auto" means "full".
        params: Names or patterns of trainable parameters; default all.
        batchnorm: As in ``empirical_ntk``, or "batch": the batch's own statistics, differentiated.
            That is the kernel of the batch function, whose samples may depend on each other in any
            way; otherwise a model that couples samples is refused.
        dtype: Of the products; default that of the parameters, at least float32.
        memory_budget: Bytes for what passes keep; samples are taken in chunks that fit.
        tolerance: Residual that will do, as a share of the largest eigenvalue; default 1e-10 in
            float64, 1e-5 in float32.
        max_products: Products after which to stop; default 100 k.

    Returns:
        Eigenvalues, descending and not divided by N, with vectors (row ``i * C + a`` for output
        ``a`` of sample ``i``) and residuals.

    Raises:
        InputError: If inputs or settings cannot be used.
        SampleCouplingError: If samples depend on each other, unless batchnorm is "batch".
        CoverageError: If the model cannot be linearized.
    """
    budget = parse_bytes(memory_budget)
    if tolerance is not None and not tolerance > 0:
        raise InputError(f"tolerance={tolerance} can never be met. Give a share such as 1e-8.")
    with batch_problem(
        model,
        inputs,
        forward=forward,
        outputs=outputs,
        params=params,
        batchnorm=batchnorm,
        dtype=dtype,
    ) as problem:
        whole = batchnorm == "batch" and is_coupled(problem)
        if not whole:
            problem.check_samples_independent()
        products = KernelProducts(problem, budget=budget, coupled=whole)
        within = _TOLERANCES.get(problem.function.dtype, 1e-5) if tolerance is None else tolerance
        return lanczos(
            products.times,
            products.size,
            k,
            tolerance=within,
            max_products=max_products,
            device=products.device,
        )
