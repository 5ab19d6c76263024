"""Plain autograd through a model's own code, which may have a backward pass that cannot run."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ntkwatch.errors import CoverageError, NtkwatchError
from ntkwatch.jacobian.forward import first_line
from ntkwatch.jacobian.memory import is_out_of_memory

__all__ = ["gradients"]


def gradients(
    model: nn.Module, outputs: Tensor, wanted: Sequence[Tensor], cotangent: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Return ``torch.autograd.grad``, None where nothing is used; the graph is kept.

    Args:
        model: Whose outputs they are, for the message.
        outputs: What is differentiated.
        wanted: By what.
        cotangent: Of the outputs; None for a scalar.

    Returns:
        One gradient per tensor wanted.

    Raises:
        CoverageError: If the model's operations have no backward pass that runs.
        Exception: Where memory runs out, as torch or Python says it.
    """
    try:
        return torch.autograd.grad(
            outputs, list(wanted), cotangent, retain_graph=True, allow_unused=True
        )
    except Exception as error:  # a backward pass of the model's own may raise anything
        if isinstance(error, NtkwatchError) or is_out_of_memory(error):
            raise
        raise CoverageError(
            f"autograd cannot differentiate {type(model).__name__} in evaluation mode "
            f"({type(error).__name__}: {first_line(error)}), so it has no Jacobian by any engine. "
            "Usual causes are a cache that the forward pass writes to (in transformers: pass "
            "use_cache=False) and a backward pass that insists on training mode; pass forward= to "
            "do without."
        ) from error
