"""Weights that feed a BatchNorm, brought back to the norm they had: the batch function is the same.

Nothing here changes a model.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ntkwatch.jacobian.batchnorm import batch_statistics, modules_named
from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.parameters import clean_name

__all__ = ["feeding_weights", "norm_matched", "with_norms_of"]

_SAME_FUNCTION = 1e-3  # epsilon of 1e-5 under variances above 1e-2
_FEEDERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def norm_matched(
    function: ModelFunction,
    inputs: Inputs,
    names: Sequence[str],
    reference: Params,
    *,
    feeding: Sequence[str] | None = None,
    outputs: Tensor | None = None,
) -> Params:
    """Return the present weights, those that feed a BatchNorm rescaled to their reference norm.

    The batch function does not see the norm of such a weight's output channels, but a
    linearization around the reference does: it would count growth of a norm as error.

    Args:
        function: The model as a function, holding the present parameters.
        inputs: The probe.
        names: Clean names of BatchNorms on batch statistics.
        reference: Parameters at the reference.
        feeding: What ``feeding_weights`` found at an earlier look, to spare another.
        outputs: Of the batch function at the present weights, where they are known.

    Returns:
        All parameters. A weight whose rescaling would change the batch function by more than the
        norms' epsilon explains (because it is used elsewhere too, say) is as it was.
    """
    found = feeding_weights(function, inputs, names) if feeding is None else feeding
    rescaled = with_norms_of(reference, function.params, found)
    with torch.no_grad(), batch_statistics(function.model, names):
        before = function({}, inputs) if outputs is None else outputs

        def same(changed: Params) -> bool:
            after = function(changed, inputs)
            return bool((after - before).norm() <= _SAME_FUNCTION * before.norm())

        if same(rescaled):
            return {**function.params, **rescaled}
        rescaled = {name: weight for name, weight in rescaled.items() if same({name: weight})}
        return {**function.params, **rescaled} if same(rescaled) else dict(function.params)


def with_norms_of(reference: Params, params: Params, names: Sequence[str]) -> Params:
    """Return some weights, rescaled to the norms per output channel of a reference.

    Args:
        reference: Parameters at the reference.
        params: The present ones.
        names: Which weights.

    Returns:
        These weights by name.
    """
    return {name: _rescaled(params[name], reference[name]) for name in names}


def _rescaled(now: Tensor, reference: Tensor) -> Tensor:
    """A weight with the norms per output channel of another."""
    sizes_now = now.flatten(1).norm(dim=1)
    sizes_then = reference.to(now).flatten(1).norm(dim=1)
    factor = torch.where(sizes_now > 0, sizes_then / sizes_now, torch.ones_like(sizes_now))
    return now * factor.view(-1, *[1] * (now.ndim - 1))


def feeding_weights(function: ModelFunction, inputs: Inputs, names: Sequence[str]) -> list[str]:
    """Return the weights of modules whose output is just what a BatchNorm reads.

    Args:
        function: The model as a function.
        inputs: The probe.
        names: Clean names of BatchNorms on batch statistics.

    Returns:
        Clean names of weights of linear and convolution modules.
    """
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
        for module in modules_named(model, names).values():
            stack.callback(module.register_forward_pre_hook(note_input).remove)
        function({}, inputs)
    weights = [f"{name}.weight" if name else "weight" for name in feeding if uses[name] == 1]
    return [name for name in weights if name in function.params]
