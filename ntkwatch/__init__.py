"""Watches the empirical neural tangent kernel of a model while it trains.

It says, with evidence, whether training is lazy (features frozen, the network is a kernel machine)
or feature-learning. Names are resolved when they are first used: importing this imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkwatch.errors import NtkwatchError
    from ntkwatch.integrations.huggingface import NTKTrainerCallback
    from ntkwatch.integrations.lightning import NTKMonitor
    from ntkwatch.jacobian.cost import plan
    from ntkwatch.jacobian.engine import empirical_ntk
    from ntkwatch.jacobian.infinite_width import infinite_width_gap
    from ntkwatch.jacobian.matrix_free import top_eigenvalues
    from ntkwatch.jacobian.plan import KernelPlan
    from ntkwatch.jacobian.sketch import sketch_kernel
    from ntkwatch.jacobian.sketched_drift import sketched_drift
    from ntkwatch.jacobian.spec import Kernel, KernelSpec
    from ntkwatch.jacobian.twin import LinearizedModel
    from ntkwatch.watch.after_training import counterfactual
    from ntkwatch.watch.before_training.forecast import Forecast, forecast
    from ntkwatch.watch.probe import ProbeBatch
    from ntkwatch.watch.record.history import History, read_history
    from ntkwatch.watch.record.records import Observation
    from ntkwatch.watch.tracker import KernelTracker
    from ntkwatch.watch.training import training_of
    from ntkwatch.watch.verdict.verdict import Verdict, judge

__version__ = "0.1.0"

__all__ = [
    "Forecast",
    "History",
    "Kernel",
    "KernelPlan",
    "KernelSpec",
    "KernelTracker",
    "LinearizedModel",
    "NTKMonitor",
    "NTKTrainerCallback",
    "NtkwatchError",
    "Observation",
    "ProbeBatch",
    "Verdict",
    "counterfactual",
    "empirical_ntk",
    "forecast",
    "infinite_width_gap",
    "judge",
    "plan",
    "read_history",
    "sketch_kernel",
    "sketched_drift",
    "top_eigenvalues",
    "training_of",
]

_HOMES = {
    "Forecast": "ntkwatch.watch.before_training.forecast",
    "History": "ntkwatch.watch.record.history",
    "Kernel": "ntkwatch.jacobian.spec",
    "KernelPlan": "ntkwatch.jacobian.plan",
    "KernelSpec": "ntkwatch.jacobian.spec",
    "KernelTracker": "ntkwatch.watch.tracker",
    "LinearizedModel": "ntkwatch.jacobian.twin",
    "NTKMonitor": "ntkwatch.integrations.lightning",
    "NTKTrainerCallback": "ntkwatch.integrations.huggingface",
    "NtkwatchError": "ntkwatch.errors",
    "Observation": "ntkwatch.watch.record.records",
    "ProbeBatch": "ntkwatch.watch.probe",
    "Verdict": "ntkwatch.watch.verdict.verdict",
    "counterfactual": "ntkwatch.watch.after_training",
    "empirical_ntk": "ntkwatch.jacobian.engine",
    "forecast": "ntkwatch.watch.before_training.forecast",
    "infinite_width_gap": "ntkwatch.jacobian.infinite_width",
    "judge": "ntkwatch.watch.verdict.verdict",
    "plan": "ntkwatch.jacobian.cost",
    "read_history": "ntkwatch.watch.record.history",
    "sketch_kernel": "ntkwatch.jacobian.sketch",
    "sketched_drift": "ntkwatch.jacobian.sketched_drift",
    "top_eigenvalues": "ntkwatch.jacobian.matrix_free",
    "training_of": "ntkwatch.watch.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
