"""Stops a forward pass before it writes to a parameter, so that no copies need be kept.

Also before it waits for other processes, which measure nothing and would not answer.
"""

import inspect
import signal
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode

from ntkwatch.errors import ProcessError

__all__ = ["WriteGuard", "WritesToParameter"]

# Written to in training, though the older batch norms of torch do not declare it.
_UNDECLARED = ("running_mean", "running_var")
_EXCHANGES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")  # namespaces of operations


class WritesToParameter(BaseException):
    """An operation was about to change a guarded tensor."""


class WriteGuard(TorchDispatchMode):
    """While active, raises in place of any operation that would write to some tensors.

    Args:
        tensors: The tensors; views of them are guarded too.
        apart: Whether this process measures by itself: an operation that exchanges something with
            others then raises a ``ProcessError``.
    """

    def __init__(self, tensors: Iterable[Tensor], *, apart: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._is_apart = apart and _has_others()
        self._guarded = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation unless it writes to what is guarded."""
        kwargs = kwargs or {}
        if self._is_apart and func.namespace in _EXCHANGES and not _in_signal_handler():
            raise ProcessError(
                f"the forward pass exchanges something with other processes ({func}), and those do "
                "not measure: it would wait for ever, or meddle with what the training exchanges. "
                "Pass forward= without that, or leave it out in evaluation mode."
            )
        arguments = func._schema.arguments
        values = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
        training = bool(values.get("training", values.get("train", False)))
        for argument in arguments:
            declared = argument.alias_info is not None and argument.alias_info.is_write
            if declared or (training and argument.name in _UNDECLARED):
                self._check(values.get(argument.name))
        return func(*args, **kwargs)

    def _check(self, value: Any) -> None:
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, torch.Tensor) and (
                tensor.untyped_storage()._cdata in self._guarded
            ):
                raise WritesToParameter


def _in_signal_handler() -> bool:
    """Whether a handler came in between, such as Lightning's: what it exchanges is its own."""
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()}
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code in handlers:
            return True
        frame = frame.f_back
    return False


def _code_of(handler: Any) -> Any:
    while isinstance(handler, partial):
        handler = handler.func
    if not callable(handler):
        return None
    function = getattr(handler, "__func__", handler)
    if not hasattr(function, "__code__"):
        function = type(handler).__call__
    return getattr(function, "__code__", None)


def _has_others() -> bool:
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size() > 1
