"""The weights and inputs of a problem as a file of arrays, for libraries without torch."""

from pathlib import Path

import numpy as np
from models import Problem
from torch import nn

__all__ = ["write_weights"]


def write_weights(given: Problem, path: Path) -> None:
    """Write parameters as ``p.NAME``, buffers as ``b.NAME``, and how many heads attention has."""
    arrays = {f"p.{name}": value.detach() for name, value in given.model.named_parameters()}
    arrays |= {f"b.{name}": value for name, value in given.model.named_buffers()}
    arrays |= {"b.heads": np.asarray(_heads(given.model)), "inputs": given.inputs}
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})


def _heads(model: nn.Module) -> int:
    return next((int(m.heads) for m in model.modules() if hasattr(m, "heads")), 0)
