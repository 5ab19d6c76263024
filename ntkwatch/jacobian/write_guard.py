"""Stops a forward pass before it writes to a parameter, so that no copies need be kept."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["WriteGuard", "WritesToParameter"]


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
        for value, argument in zip(args, func._schema.arguments, strict=False):
            self._check(value, argument)
        for argument in func._schema.arguments:
            self._check(kwargs.get(argument.name), argument)
        return func(*args, **kwargs)

    def _check(self, value: Any, argument: Any) -> None:
        if argument.alias_info is None or not argument.alias_info.is_write:
            return
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, torch.Tensor) and (
                tensor.untyped_storage()._cdata in self._guarded
            ):
                raise WritesToParameter
