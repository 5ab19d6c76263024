"""Watches the empirical neural tangent kernel of a model while it trains.

It says, with evidence, whether training is lazy (features frozen, the network is a kernel machine)
or feature-learning. Names are resolved when they are first used: importing this imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkwatch.errors import NtkwatchError
    from ntkwatch.integrations.lightning import NTKMonitor
    from ntkwatch.jacobian.engine import empirical_ntk
    from ntkwatch.jacobian.spec import Kernel, KernelSpec
    from ntkwatch.watch.forecast import Forecast, forecast
    from ntkwatch.watch.history import History, read_history
    from ntkwatch.watch.probe import ProbeBatch
    from ntkwatch.watch.records import Observation
    from ntkwatch.watch.tracker import KernelTracker
    from ntkwatch.watch.training import Training, training_of
    from ntkwatch.watch.verdict import Verdict, judge

__version__ = "0.1.0"

__all__ = [
    "Forecast",
    "History",
    "Kernel",
    "KernelSpec",
    "KernelTracker",
    "NTKMonitor",
    "NtkwatchError",
    "Observation",
    "ProbeBatch",
    "Training",
    "Verdict",
    "empirical_ntk",
    "forecast",
    "judge",
    "read_history",
    "training_of",
]

_HOMES = {
    "Forecast": "ntkwatch.watch.forecast",
    "History": "ntkwatch.watch.history",
    "Kernel": "ntkwatch.jacobian.spec",
    "KernelSpec": "ntkwatch.jacobian.spec",
    "KernelTracker": "ntkwatch.watch.tracker",
    "NTKMonitor": "ntkwatch.integrations.lightning",
    "NtkwatchError": "ntkwatch.errors",
    "Observation": "ntkwatch.watch.records",
    "ProbeBatch": "ntkwatch.watch.probe",
    "Training": "ntkwatch.watch.training",
    "Verdict": "ntkwatch.watch.verdict",
    "empirical_ntk": "ntkwatch.jacobian.engine",
    "forecast": "ntkwatch.watch.forecast",
    "judge": "ntkwatch.watch.verdict",
    "read_history": "ntkwatch.watch.history",
    "training_of": "ntkwatch.watch.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
