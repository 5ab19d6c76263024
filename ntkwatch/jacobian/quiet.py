"""Torch's own switches during a measurement: eager, in full precision, with gradients.

Whatever the caller has set is put back afterwards. Models are not known here.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.utils import parametrize
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
        # Also where a forward pass asks for it: the noise of half precision would pass for drift.
        _replace(stack, torch.autocast, "__enter__", lambda autocast: autocast)
        _replace(stack, torch.autocast, "__exit__", lambda *_: None)
        stack.enter_context(_full_precision())
        stack.enter_context(_without_checkpointing())
        # Within parametrize.cached() a weight computed once would hide later substitutes.
        _replace(stack, parametrize, "_cache_enabled", 0)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        # The fused encoder layer has no derivative with respect to its weights.
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@contextmanager
def _full_precision() -> Iterator[None]:
    """TF32 or bfloat16 inside float32 products, noise of 1e-3, would pass for drift."""
    with ExitStack() as stack:
        cudnn: Any = torch.backends.cudnn
        onednn: Any = torch.backends.mkldnn
        # Each of torch's older switches raises once the caller has used the newer ones.
        if cudnn.is_available():
            try:
                stack.enter_context(
                    cudnn.flags(
                        enabled=True, benchmark=False, deterministic=False, allow_tf32=False
                    )
                )
            except RuntimeError:
                _set_ieee(stack, cudnn.conv, cudnn.rnn)
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:
            _set_ieee(stack, torch.backends.cuda.matmul, onednn.matmul, onednn.conv, onednn.rnn)
        else:
            if before != "highest":  # setting it anew would overrule a backend's "as its parent"
                stack.callback(torch.set_float32_matmul_precision, before)
                torch.set_float32_matmul_precision("highest")
        yield


def _set_ieee(stack: ExitStack, *operations: Any) -> None:
    for operation in operations:
        stack.callback(setattr, operation, "fp32_precision", operation.fp32_precision)
        operation.fp32_precision = "ieee"


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
