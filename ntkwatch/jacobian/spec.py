"""What a kernel is and under which settings it was computed.

Settings travel with every kernel, so that unlike kernels are never compared.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ntkwatch.jacobian.plan import KernelPlan

__all__ = ["BatchNormMode", "EngineName", "Kernel", "KernelSpec"]

EngineName = Literal["auto", "structured", "vmap", "loop"]
BatchNormMode = Literal["running", "probe", "reference", "batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """The settings that make two kernels comparable.

    Attributes:
        outputs: Resolved reduction, such as "full" or "random:8".
        output_shape: Shape of one sample's outputs.
        params: Names of the parameters differentiated by.
        dtype: Of the Jacobian.
        batchnorm: Which statistics BatchNorm ran on, or "none" without any: "running" averages,
            those of the "probe" held constant, those of the "reference" step (with every other
            buffer), or those of the "batch" differentiated, which couples the samples.
        forward: How the model was called.
        trace: How outputs are reduced to one kernel: always by a sum.
        mode: Of dropout and the like: always evaluation.
    """

    outputs: str
    output_shape: tuple[int, ...]
    params: tuple[str, ...]
    dtype: str
    batchnorm: str
    forward: str
    trace: str = "sum over outputs"
    mode: str = "eval"

    @property
    def coupled(self) -> bool:
        """Whether a row is the gradient of the whole batch's function, not of one sample alone."""
        return self.batchnorm == "batch"

    @property
    def output_count(self) -> int:
        """Outputs per sample C."""
        return max(1, math.prod(self.output_shape))

    def to_plain(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return {
            "outputs": self.outputs,
            "output_shape": list(self.output_shape),
            "params": list(self.params),
            "dtype": self.dtype,
            "batchnorm": self.batchnorm,
            "forward": self.forward,
            "trace": self.trace,
            "mode": self.mode,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """An empirical NTK with where it comes from.

    Attributes:
        matrix: (N, M, C, C) for outputs "full", else (N, M), in float64 where the device has it.
        layers: Per module, its (N, M) part; they add up to the trace kernel (or to ``matrix``).
        coverage: Per parameter, how its part was computed: "structured", "generic" (structured,
            with an operation called sample by sample), "vmap" or "loop".
        spec: Settings.
        plan: What the structured engine did, parameter by parameter; printing it gives a table.
    """

    matrix: Tensor
    layers: dict[str, Tensor]
    coverage: dict[str, str]
    spec: KernelSpec = field(repr=False)
    plan: KernelPlan = field(default_factory=KernelPlan, repr=False)

    @property
    def trace(self) -> Tensor:
        """The (N, M) kernel summed over outputs; ``matrix`` itself unless that is full."""
        return torch.einsum("nmcc->nm", self.matrix) if self.matrix.ndim == 4 else self.matrix
