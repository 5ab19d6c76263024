"""What a model that is sharded over processes is refused, and what is left out for it.

No forward pass is run here; the processes meet once, to compare their inputs.
"""

import logging
import zlib
from collections.abc import Sequence

import torch
from torch import nn

from ntkwatch.errors import CoverageError, InputError
from ntkwatch.jacobian.inputs import Inputs, leaves
from ntkwatch.jacobian.shards import is_shard, same_everywhere, sharding_modules

__all__ = ["check_one_dtype", "check_sharding"]

_log = logging.getLogger(__name__)


def check_sharding(
    model: nn.Module, inputs: Sequence[Inputs], *, engine: str, batchnorm: str, dtype: torch.dtype
) -> None:
    """Refuse a sharded model where it cannot be measured, or not as asked; say what is left out.

    Args:
        model: Any model; one that is held whole passes.
        inputs: All samples.
        engine: Setting of ``empirical_ntk``.
        batchnorm: The same.
        dtype: Of the Jacobian.

    Raises:
        CoverageError: If its kind of sharding, or the engine asked for, will not do.
        InputError: If something would have to be cast, or inputs differ between processes.
    """
    sharded = [name for name, p in model.named_parameters() if is_shard(p)]
    old = [m for m in model.modules() if type(m).__name__ == "FullyShardedDataParallel"]
    name = type(model).__name__
    if old or (sharded and not sharding_modules(model)):
        raise CoverageError(
            f"the parameters of {name} are spread over processes by "
            f"{'FSDP1' if old else 'tensor parallelism'}, and only the whole of a parameter has a "
            "kernel. Shard the model by torch.distributed.fsdp.fully_shard, or compute kernels of "
            "saved checkpoints in one process."
        )
    if not sharding_modules(model):
        return
    if engine == "sketch":
        raise CoverageError(
            f"engine='sketch' differentiates along directions of all parameters, and those of "
            f"{name} are sharded over processes. Use engine='structured' or 'auto'."
        )
    if engine in ("vmap", "loop") or batchnorm == "batch":
        asked = f"engine={engine!r}" if batchnorm != "batch" else "batchnorm='batch'"
        raise CoverageError(
            f"{asked} holds gradients of all parameters at once, and those of {name} are sharded "
            "over processes because they are too many for one. Use engine='structured' or 'auto'."
        )
    check_one_dtype(model, dtype)
    others = {t.dtype for part in inputs for t in leaves(part) if t.is_floating_point()} - {dtype}
    if others:
        raise InputError(
            f"the inputs are {', '.join(sorted(map(str, others)))} and the parameters of {name} "
            f"{dtype}; sharded parameters are used as they are, so nothing is cast. Give inputs "
            "of the parameters' dtype."
        )
    if not same_everywhere(_checksum(inputs), dict(model.named_parameters())):
        raise InputError(
            f"the processes that share the parameters of {name} were given different inputs, and "
            "all of them must make the same passes. Give each the same probe: broadcast that of "
            "the first, or draw it by the same seed."
        )
    _log.info(
        "the parameters of %s are sharded: whether samples are independent is looked at with the "
        "present weights (elsewhere with weights a few percent off), and doubtful gaps are not "
        "looked at again in float64",
        name,
    )


def _checksum(inputs: Sequence[Inputs]) -> int:
    found = 0
    for tensor in (t for part in inputs for t in leaves(part)):
        found = zlib.crc32(repr((tuple(tensor.shape), tensor.dtype)).encode(), found)
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found = zlib.crc32(raw.numpy().tobytes(), found)
    return found


def check_one_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Refuse a sharded model that would have to be cast.

    Args:
        model: The model.
        dtype: Of the Jacobian.

    Raises:
        InputError: If a parameter is of another dtype.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            raise InputError(
                f"the Jacobian is wanted in {dtype} and {name} of {type(model).__name__} is "
                f"{parameter.dtype}; sharded parameters are used as they are, so nothing is cast. "
                "Leave dtype= out and train in float32 or float64, or compute the kernel of a "
                "saved checkpoint in one process."
            )
