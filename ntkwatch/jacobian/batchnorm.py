"""BatchNorm and its moving statistics: which function of the weights is being looked at.

Training runs a BatchNorm on the statistics of its batch; evaluation runs it on running averages,
which start at (0, 1) and move by themselves. A kernel in evaluation mode would call that motion
drift. So kernels are taken with the statistics of the probe, held constant in the derivative
(samples stay independent), and the linearization error is taken of the batch function itself, with
the statistics differentiated. A BatchNorm that training keeps in evaluation mode (a frozen
backbone) keeps its running statistics.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.errors import InputError
from ntkwatch.jacobian.forward import first_line
from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs, count_samples
from ntkwatch.jacobian.parameters import clean_name
from ntkwatch.jacobian.spec import BatchNormMode

__all__ = [
    "batch_statistics",
    "modules_named",
    "moving_batchnorms",
    "on_probe",
    "outputs_on",
    "probe_statistics",
    "statistics_in",
    "unread_buffers",
]

_BatchNorm = nn.modules.batchnorm._BatchNorm


def moving_batchnorms(model: nn.Module) -> list[str]:
    """Return the BatchNorms that training runs on batch statistics, by clean name.

    Args:
        model: In the modes in which it trains. If the whole model is in evaluation mode, that says
            nothing about training, and every BatchNorm with running statistics counts.

    Returns:
        Clean module names.
    """
    return [
        clean_name(name)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and (module.training or not model.training)
    ]


def unread_buffers(model: nn.Module, names: Sequence[str]) -> set[str]:
    """Return buffers of BatchNorms that no forward pass in evaluation mode reads.

    Args:
        model: The model.
        names: BatchNorms that run on batch statistics all the same.

    Returns:
        Clean names: counters of batches, and the running statistics of the named ones.
    """
    counted = {
        clean_name(f"{name}.num_batches_tracked".removeprefix("."))
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
    }
    kinds = ("running_mean", "running_var")
    return counted | {f"{name}.{kind}".removeprefix(".") for name in names for kind in kinds}


def statistics_in(model: nn.Module, wanted: BatchNormMode, names: Sequence[str]) -> str:
    """Return which statistics a kernel stands on: what was wanted, where that makes a difference.

    Args:
        model: The model.
        wanted: Setting of ``batchnorm``.
        names: BatchNorms that training runs on batch statistics.

    Returns:
        "running", "probe", "reference" or "batch"; "none" for a model that it means nothing to.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    # Without running statistics a BatchNorm sees the batch in every mode.
    on_batch = bool(names) or any(norm.running_mean is None for norm in norms)
    makes_a_difference = {
        "running": False,
        "probe": bool(names),
        "batch": on_batch,
        "reference": next(model.buffers(), None) is not None,
    }
    if makes_a_difference[wanted]:
        return wanted
    return "running" if norms else "none"


@contextmanager
def batch_statistics(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Run the named BatchNorms on the statistics of their batch, without touching their buffers.

    Args:
        model: The model.
        names: Clean names of BatchNorm modules.

    Yields:
        Nothing.
    """
    modules = [m for m in modules_named(model, names).values() if isinstance(m, _BatchNorm)]
    before = [(module, module.training, module.track_running_stats) for module in modules]
    try:
        for module in modules:
            # In this combination F.batch_norm is given no running statistics to update.
            module.training, module.track_running_stats = True, False
        yield
    finally:
        for module, training, tracked in before:
            module.training, module.track_running_stats = training, tracked


def probe_statistics(function: ModelFunction, inputs: Inputs, names: Sequence[str]) -> Params:
    """Return running statistics with which evaluation mode gives the batch function's outputs.

    Args:
        function: The model as a function.
        inputs: The probe.
        names: Clean names of the BatchNorms concerned.

    Returns:
        Mean and biased variance of each one's inputs over the probe, by buffer name. A BatchNorm
        that is called several times has no single such pair and is left out.
    """
    return _statistics_and_outputs(function, inputs, names)[0]


def _statistics_and_outputs(
    function: ModelFunction, inputs: Inputs, names: Sequence[str]
) -> tuple[Params, Tensor]:
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}

    def recorder(name: str) -> Any:
        def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            dims = [0, *range(2, x.ndim)]
            variance, mean = torch.var_mean(x, dim=dims, correction=0)
            found[name].append((mean, variance))

        return keep

    modules = modules_named(function.model, names)
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(batch_statistics(function.model, names))
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(recorder(name)).remove)
        outputs = function({}, inputs)
    statistics: Params = {}
    for name, pairs in found.items():
        if len(pairs) == 1:
            prefix = f"{name}." if name else ""
            statistics[f"{prefix}running_mean"], statistics[f"{prefix}running_var"] = pairs[0]
    return statistics, outputs


def on_probe(
    function: ModelFunction, inputs: Inputs, names: Sequence[str]
) -> tuple[Params, Tensor, Tensor]:
    """Return the statistics of the probe, and the outputs on them.

    Args:
        function: The model as a function.
        inputs: The probe.
        names: BatchNorms that training runs on batch statistics.

    Returns:
        Buffers to use instead of the model's; the outputs that these give; those of the batch
        function, which are the same up to rounding unless a BatchNorm is called several times.
    """
    with _enough_samples(function, inputs):
        statistics, outputs = _statistics_and_outputs(function, inputs, names)
        if len(statistics) == 2 * len(names):
            return statistics, outputs, outputs
        with torch.no_grad():
            return statistics, function({}, inputs, statistics), outputs


def outputs_on(
    statistics: str,
    function: ModelFunction,
    inputs: Inputs,
    names: Sequence[str],
    buffers: Params,
) -> Tensor:
    """Return the outputs on statistics other than the probe's.

    Args:
        statistics: As ``statistics_in`` gives them.
        function: The model as a function.
        inputs: The probe.
        names: BatchNorms that training runs on batch statistics.
        buffers: To use instead of the model's.

    Returns:
        Outputs.
    """
    on_batch = names if statistics == "batch" else ()
    fixed = batch_statistics(function.model, on_batch)
    with _enough_samples(function, inputs), torch.no_grad(), fixed:
        return function({}, inputs, buffers)


@contextmanager
def _enough_samples(function: ModelFunction, inputs: Inputs) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(
            f"the BatchNorms of {type(function.model).__name__} find no statistics in "
            f"{count_samples(inputs)} samples ({first_line(error)}), so there is no function of "
            "the batch. Give two samples or more, or use batchnorm='running'."
        ) from error


def modules_named(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules of a model with these clean names.

    Args:
        model: The model.
        names: Clean names.

    Returns:
        Modules by clean name.
    """
    wanted = set(names)
    return {
        clean_name(name): module
        for name, module in model.named_modules()
        if clean_name(name) in wanted
    }
