"""A measurement by one process alone: nothing in it may wait for other processes.

In data-parallel training only one process measures. A BatchNorm that gathers statistics from all
of them would wait for the others for ever.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn

__all__ = ["apart"]

_BatchNorm = nn.modules.batchnorm._BatchNorm


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Let every synchronised BatchNorm of a model work on its own batch alone.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    synchronised = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    before = [(module, module.__dict__.get("forward")) for module in synchronised]
    try:
        for module in synchronised:
            module.__dict__["forward"] = partial(_BatchNorm.forward, module)
        yield
    finally:
        for module, forward in before:
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward
