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
    "moving_batchnorms",
    "norm_matched",
    "outputs_on",
    "probe_statistics",
    "statistics_in",
    "unread_buffers",
]

_BatchNorm = nn.modules.batchnorm._BatchNorm
_SAME_FUNCTION = 1e-3  # epsilon of 1e-5 under variances above 1e-2
_FEEDERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
    modules = [m for m in _by_name(model, names).values() if isinstance(m, _BatchNorm)]
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
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}

    def recorder(name: str) -> Any:
        def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            dims = [0, *range(2, x.ndim)]
            variance, mean = torch.var_mean(x, dim=dims, correction=0)
            found[name].append((mean, variance))

        return keep

    modules = _by_name(function.model, names)
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(batch_statistics(function.model, names))
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(recorder(name)).remove)
        function({}, inputs)
    statistics: Params = {}
    for name, pairs in found.items():
        if len(pairs) == 1:
            prefix = f"{name}." if name else ""
            statistics[f"{prefix}running_mean"], statistics[f"{prefix}running_var"] = pairs[0]
    return statistics


def outputs_on(
    statistics: str,
    function: ModelFunction,
    inputs: Inputs,
    names: Sequence[str],
    buffers: Params,
) -> tuple[Params, Tensor]:
    """Return the outputs on given statistics, and the buffers that give them.

    Args:
        statistics: As ``statistics_in`` gives them.
        function: The model as a function.
        inputs: The probe.
        names: BatchNorms that training runs on batch statistics.
        buffers: To use instead of the model's, those of the probe apart.

    Returns:
        Buffers to use instead of the model's, and outputs.

    Raises:
        InputError: If the probe is too small to have statistics.
    """
    try:
        if statistics == "probe":
            buffers = probe_statistics(function, inputs, names)
        on_batch = names if statistics == "batch" else ()
        with torch.no_grad(), batch_statistics(function.model, on_batch):
            return buffers, function({}, inputs, buffers)
    except ValueError as error:
        raise InputError(
            f"the BatchNorms of {type(function.model).__name__} find no statistics in "
            f"{count_samples(inputs)} samples ({first_line(error)}), so there is no function of "
            "the batch. Give two samples or more, or use batchnorm='running'."
        ) from error


def norm_matched(
    function: ModelFunction, inputs: Inputs, names: Sequence[str], reference: Params
) -> Params:
    """Return the present weights, those that feed a BatchNorm rescaled to their reference norm.

    The batch function does not see the norm of such a weight's output channels, but a
    linearization around the reference does: it would count growth of a norm as error.

    Args:
        function: The model as a function, holding the present parameters.
        inputs: The probe.
        names: Clean names of BatchNorms on batch statistics.
        reference: Parameters at the reference.

    Returns:
        All parameters. A weight whose rescaling would change the batch function by more than the
        norms' epsilon explains (because it is used elsewhere too, say) is as it was.
    """
    rescaled = {
        name: _rescaled(function.params[name], reference[name])
        for name in _feeding_weights(function, inputs, names)
    }
    with torch.no_grad(), batch_statistics(function.model, names):
        before = function({}, inputs)

        def same(changed: Params) -> bool:
            after = function(changed, inputs)
            return bool((after - before).norm() <= _SAME_FUNCTION * before.norm())

        if not same(rescaled):
            rescaled = {name: weight for name, weight in rescaled.items() if same({name: weight})}
        matched = {**function.params, **rescaled}
        return matched if same(rescaled) else dict(function.params)


def _rescaled(now: Tensor, reference: Tensor) -> Tensor:
    """A weight with the norms per output channel of another."""
    sizes_now = now.flatten(1).norm(dim=1)
    sizes_then = reference.to(now).flatten(1).norm(dim=1)
    factor = torch.where(sizes_now > 0, sizes_then / sizes_now, torch.ones_like(sizes_now))
    return now * factor.view(-1, *[1] * (now.ndim - 1))


def _feeding_weights(function: ModelFunction, inputs: Inputs, names: Sequence[str]) -> list[str]:
    """Weights of the linear and convolution modules whose output is just what a BatchNorm reads."""
    produced: dict[int, tuple[str, int]] = {}
    kept: list[Tensor] = []  # so that an id is not given to another tensor during the pass
    uses: dict[str, int] = {}
    feeding: list[str] = []

    def note_output(name: str) -> Any:
        def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
            produced[id(output)] = name, output._version
            kept.append(output)
            uses[name] = uses.get(name, 0) + 1

        return keep

    def note_input(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        name, version = produced.get(id(args[0]), ("", -1))
        if args[0]._version == version:  # else something was done to it in place
            feeding.append(name)

    model = function.model
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(batch_statistics(model, names))
        for name, module in model.named_modules():
            if isinstance(module, _FEEDERS):
                hook = module.register_forward_hook(note_output(clean_name(name)))
                stack.callback(hook.remove)
        for module in _by_name(model, names).values():
            stack.callback(module.register_forward_pre_hook(note_input).remove)
        function({}, inputs)
    weights = [f"{name}.weight" if name else "weight" for name in feeding if uses[name] == 1]
    return [name for name in weights if name in function.params]


def _by_name(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    wanted = set(names)
    return {
        clean_name(name): module
        for name, module in model.named_modules()
        if clean_name(name) in wanted
    }
