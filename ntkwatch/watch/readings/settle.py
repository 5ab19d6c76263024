"""What a run's observations must have in common, settled at the reference and checked afterwards.

Nothing is measured here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ntkwatch.errors import InputError, KernelMismatchError, SelectionError
from ntkwatch.jacobian.batchnorm import moving_batchnorms
from ntkwatch.jacobian.engine import check_batchnorm, check_choice
from ntkwatch.jacobian.forward import GIVEN, ForwardFn
from ntkwatch.jacobian.functional import Params, jacobian_dtype
from ntkwatch.jacobian.memory import parse_bytes
from ntkwatch.jacobian.outputs import OutputsSpec, check_outputs_named
from ntkwatch.jacobian.parameters import clean_name, parameters_of, select_parameters
from ntkwatch.jacobian.spec import BatchNormMode, Kernel, KernelSpec
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.counts import whole_in
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.readings.measure import Metrics, Settings, WatchEngine

__all__ = [
    "Wanted",
    "check_same_model",
    "check_same_settings",
    "check_settings",
    "kept_state",
    "settle",
]

# Settings in which two kernels must agree to be compared.
_COMPARABLE = ("outputs", "output_shape", "batchnorm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a user asked for, before there is a model to settle it on.

    Attributes:
        params: Names or patterns of parameters, or None.
        outputs: Setting of outputs.
        forward: How to call the model, or None.
        engine: Engine, or "sketch".
        batchnorm: Statistics of moving BatchNorms.
        budget: Bytes.
        dtype: Of the Jacobian, or None.
        metrics: Which numbers, by their cost.
        top_k: Eigenvalues.
        helpers: Computes kernels together with other processes, or None.
    """

    params: str | Sequence[str] | None
    outputs: OutputsSpec
    forward: ForwardFn | None
    engine: WatchEngine
    batchnorm: BatchNormMode
    budget: int
    dtype: torch.dtype | None
    metrics: Metrics
    top_k: int
    helpers: Callable[..., Kernel] | None = None


def check_settings(
    *,
    forward: object,
    outputs: object,
    engine: str,
    batchnorm: BatchNormMode,
    memory_budget: str | int,
    top_k: int,
    metrics: str,
    params: object = None,
) -> None:
    """Refuse settings that no model could be observed with.

    Args:
        forward: How to call the model, or None.
        outputs: Which outputs enter the kernel.
        engine: Engine, or "sketch".
        batchnorm: Statistics of moving BatchNorms.
        memory_budget: Bytes, or such as "1GiB".
        top_k: Eigenvalues.
        metrics: Which numbers.
        params: Names or patterns of parameters, or None.

    Raises:
        InputError: If one of them is not known or out of range.
    """
    check_choice("engine", engine, ("auto", "structured", "vmap", "loop", "sketch"))
    exact: Any = "auto" if engine == "sketch" else engine
    check_batchnorm(batchnorm, exact, ("running", "probe", "reference", "batch"))
    check_choice("metrics", metrics, get_args(Metrics))
    check_outputs_named(outputs)
    parse_bytes(memory_budget)
    if (whole_in(top_k) or 0) < 1:
        raise InputError(f"top_k={top_k!r} asks for no eigenvalue; give a whole number from 1 on.")
    if not (params is None or isinstance(params, Iterable)):
        raise InputError(
            f"params={params!r} names no parameters. Give a name or pattern such as 'encoder.*', a "
            "list of them, or None for all trainable ones."
        )
    if not (forward is None or callable(forward)):
        raise InputError(
            f"forward={forward!r} cannot be called, so the model's outputs are not known. Give a "
            'function (model, inputs) -> tensor (N, ...), or its path, "package.module:name".'
        )


def settle(
    model: nn.Module, wanted: Wanted, probe: ProbeBatch, resumed: Mapping[str, Any] | None
) -> Settings:
    """Return the settings of all observations of a run.

    Args:
        model: The model at the reference, or where a run goes on.
        wanted: What the user asked for.
        probe: What the model is measured on.
        resumed: Settings that an interrupted run had, which go on: what trains may change between
            a stop and a resume.

    Returns:
        The settings.
    """
    called = None
    if resumed is None:
        names, moving = list(select_parameters(model, wanted.params)), moving_batchnorms(model)
    else:
        names = list(resumed["params"])
        moving = list(resumed.get("batchnorms", moving_batchnorms(model)))
        if wanted.forward is None and resumed.get("forward") != GIVEN:
            called = resumed.get("forward")
    return Settings(
        names=tuple(names),
        moving=tuple(moving),
        batchnorm=wanted.batchnorm,
        forward=wanted.forward,
        called=called,
        outputs=_for_targets(wanted.outputs, probe.targets),
        engine=wanted.engine,
        budget=wanted.budget,
        dtype=jacobian_dtype(parameters_of(model), wanted.dtype),
        metrics=wanted.metrics,
        top_k=wanted.top_k,
        helpers=wanted.helpers,
        keeps_full=wanted.metrics == "full",
    )


def _for_targets(outputs: OutputsSpec, targets: Tensor | None) -> OutputsSpec:
    """Plain random directions where targets are values: what all outputs share means much there."""
    regression = targets is not None and targets.is_floating_point()
    if not regression or not isinstance(outputs, str) or outputs.endswith(":plain"):
        return outputs
    return f"{outputs}:plain" if outputs == "auto" or outputs.startswith("random:") else outputs


def check_same_model(model: nn.Module, anchor: Anchor) -> None:
    """Refuse a model whose parameters are not those of the reference.

    Args:
        model: The model now.
        anchor: The reference.

    Raises:
        SelectionError: If parameters came, went or changed their shape.
    """
    now = {name: tuple(p.shape) for name, p in parameters_of(model).items()}
    then = {name: tuple(p.shape) for name, p in anchor.params.items()}
    if now == then:
        return
    changes = {
        "are gone": [name for name in then if name not in now],
        "are new": [name for name in now if name not in then],
        "have another shape": [n for n, shape in now.items() if n in then and then[n] != shape],
    }
    said = ", ".join(
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in changes.items()
        if names
    )
    raise SelectionError(
        f"the parameters of {type(model).__name__} are no longer those of the reference: {said}. "
        "Kernels and weights can then not be compared. Watch a model of another form as a run of "
        "its own: not resumed from the earlier one's checkpoint, or by a new KernelTracker."
    )


def check_same_settings(spec: KernelSpec, earlier: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was observed with other settings.

    Args:
        spec: Of the kernel now.
        earlier: Of the run's reference, as its history has it.

    Raises:
        KernelMismatchError: If kernels of the two cannot be compared.
    """
    now = spec.to_plain()
    differ = [key for key in _COMPARABLE if key in earlier and earlier[key] != now[key]]
    if differ:
        said = ", ".join(f"{key}={earlier[key]!r} then and {now[key]!r} now" for key in differ)
        raise KernelMismatchError(
            f"the run to go on from was observed with {said}, so its kernels cannot be compared "
            "with those of this model. Use the settings of that run, or start a new one."
        )


def kept_state(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[Params, Params]:
    """Return a checkpoint's tensors by clean name: all of them, and the parameters among them.

    Args:
        model: The model that they belong to.
        state: As ``model.state_dict()`` names them; entries that the model does not have are
            ignored, and buffers that are missing are as in the model.

    Returns:
        All tensors, and the model's parameters among them.

    Raises:
        InputError: If a parameter is missing or has another shape: mixing a checkpoint's weights
            with the present ones would measure a model that never was.
    """
    tensors = {clean_name(name): tensor for name, tensor in state.items()}
    own = parameters_of(model)
    missing = [name for name in own if name not in tensors]
    if missing:
        raise InputError(
            f"state= has no value for {len(missing)} of the {len(own)} parameters of "
            f"{type(model).__name__} ({', '.join(missing[:3])}); it has names like "
            f"{', '.join(list(tensors)[:3]) or 'none'}. Its other weights alone would be a model "
            "that never was. Give all of them under the names of model.state_dict()."
        )
    unlike = [name for name, p in own.items() if tensors[name].shape != p.shape]
    if unlike:
        name = unlike[0]
        raise InputError(
            f"state= has {name} of shape {tuple(tensors[name].shape)} and the model has it of "
            f"shape {tuple(own[name].shape)}, so it is not a state of this model. Build the model "
            "as it was when the checkpoint was written."
        )
    return tensors, {name: torch.as_tensor(tensors[name]) for name in own}
