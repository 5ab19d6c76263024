"""An anchor: what is kept of one step, so that later steps can be compared with it."""

from dataclasses import dataclass, field

from torch import Tensor

from ntkwatch.jacobian.functional import Params
from ntkwatch.jacobian.sketch import KernelSketch

__all__ = ["Anchor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """Weights, outputs and kernel at one step.

    Attributes:
        step: Optimizer steps taken then.
        params: Copies of all parameters, in the dtype that they are differentiated in.
        buffers: Copies of all buffers.
        outputs: Outputs on the probe as the linearization sees them (batch function), (N, C).
        kernel: Trace kernel (N, N), or None where it could not be computed.
        layers: Its parts by layer.
        full: Kernel between outputs, too, (N, N, C, C), where numbers are wanted that take it.
        sketch: Of the kernel, where one was taken in its place.
        clock: What ``DecayClock.reading`` gave then; None where it is not known.
    """

    step: int
    params: Params
    buffers: Params
    outputs: Tensor
    kernel: Tensor | None = None
    layers: Params = field(default_factory=dict)
    full: Tensor | None = None
    sketch: KernelSketch | None = None
    clock: dict[str, float] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that its tensors take."""
        groups = (self.params, self.buffers, self.layers)
        tensors = [tensor for group in groups for tensor in group.values()]
        kernels = [self.outputs, self.kernel, self.full]
        if self.sketch is not None:
            kernels += [self.sketch.gram, self.sketch.images, *self.sketch.layers.values()]
        return sum(tensor.nbytes for tensor in (*tensors, *kernels) if tensor is not None)
