"""The base class of a callback that both Lightnings take, however it is given to them.

``lightning.pytorch`` and ``pytorch_lightning`` have a ``Callback`` each, and the two are unrelated.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning import Callback as CallbackBase
else:

    def _callback_bases() -> tuple[type, ...]:
        """Return every Lightning callback class that is installed."""
        bases: list[type] = []
        for name in ("lightning.pytorch", "pytorch_lightning"):
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
            if module.Callback not in bases:
                bases.append(module.Callback)
        return tuple(bases)

    CallbackBase = type("CallbackBase", _callback_bases(), {"__module__": __name__})

__all__ = ["CallbackBase"]
