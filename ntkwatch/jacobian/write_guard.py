"""Stops a forward pass before it writes to a parameter, so that no copies need be kept."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["WriteGuard", "WritesToParameter"]

# Written to in training, though the older batch norms of torch do not declare it.
_UNDECLARED = ("running_mean", "running_var")


class WritesToParameter(BaseException):
    """An operation was about to change a guarded tensor."""


class WriteGuard(TorchDispatchMode):
    """While active, raises in place of any operation that would write to some tensors.

    Args:
        tensors: The tensors; views of them are guarded too.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._guarded = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation unless it writes to what is guarded."""
        kwargs = kwargs or {}
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
