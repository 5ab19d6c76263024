"""Torch's own switches during a measurement: eager, in full precision, with gradients.

Whatever the caller has set is put back afterwards. Models are not known here.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils import checkpoint

__all__ = ["quiet_torch"]


@contextmanager
def quiet_torch(devices: Sequence[torch.device]) -> Iterator[None]:
    """Run eagerly, in full precision and with gradients, whatever the caller's own settings are.

    Args:
        devices: Where the model is.

    Yields:
        Nothing.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        # Tracing a compiled forward under torch.func would switch compilation off for good.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {device.type for device in devices} | {"cpu"}:
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_full_precision())
        stack.enter_context(_without_checkpointing())
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        # The fused encoder layer has no derivative with respect to its weights.
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@contextmanager
def _full_precision() -> Iterator[None]:
    """TF32 or bfloat16 inside float32 products, noise of 1e-3, would pass for drift."""
    with ExitStack() as stack:
        if torch.backends.cudnn.is_available():
            stack.enter_context(
                torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=False, allow_tf32=False
                )
            )
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:  # the caller used the newer switches, one per backend
            for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        else:
            if before != "highest":  # setting it anew would overrule a backend's "as its parent"
                stack.callback(torch.set_float32_matmul_precision, before)
                torch.set_float32_matmul_precision("highest")
        yield


@contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Activation checkpointing computes the forward pass again in the backward pass.

    By then the model holds its own weights again instead of those it was called with, which would
    give a wrong derivative without a word; the reentrant kind hides weights from autograd
    altogether. Both become plain calls.
    """
    with ExitStack() as stack:
        _replace(stack, checkpoint, "_checkpoint_hook", lambda _frame: nullcontext())
        _replace(
            stack,
            checkpoint.CheckpointFunction,
            "apply",
            staticmethod(lambda function, _preserve, *args: function(*args)),
        )
        yield


def _replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    if name in vars(owner):
        stack.callback(setattr, owner, name, vars(owner)[name])
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)
