"""Whether each sample's outputs depend on that sample alone, as a per-sample kernel demands.

A forward pass on some of the samples is compared with the same rows of the whole batch. Rounding
differs between batch sizes, so a doubtful gap is looked at again in float64 before a model is
refused.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ntkwatch.errors import RandomForwardError, SampleCouplingError
from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs, cast_inputs, count_samples, take

__all__ = ["check_samples_independent"]

# Largest gap, as a share of the outputs' size, that rounding explains. Models that compute partly
# in float32 whatever their dtype are why the second is not smaller.
_DOUBTFUL = 3e-4
_COUPLED = 1e-5

_CURES = {
    nn.modules.batchnorm._BatchNorm: (
        "it uses batch statistics in evaluation mode: set track_running_stats=True and let "
        "model.eval() reach it, or use GroupNorm or LayerNorm"
    ),
    nn.modules.dropout._DropoutNd: (
        "it drops at random in evaluation mode: let model.eval() reach it"
    ),
}
_ANY_CURE = (
    "usual causes are batch statistics (BatchNorm with track_running_stats=False or kept in train "
    "mode, hand-written means over the batch), attention over the batch and contrastive heads"
)


def check_samples_independent(
    make: Callable[[torch.dtype], ModelFunction],
    inputs: Inputs,
    *,
    dtype: torch.dtype,
    buffers: Params | None = None,
) -> None:
    """Refuse a model that mixes samples or draws random numbers, naming the module that does.

    Args:
        make: The model as a function, in a given dtype.
        inputs: The probe.
        dtype: That the kernel will be computed in.
        buffers: Buffers to use instead of the model's.

    Raises:
        RandomForwardError: If outputs depend on chance.
        SampleCouplingError: If they depend on other samples.
    """
    function = make(dtype)
    n = count_samples(inputs)
    with torch.no_grad():
        whole = function({}, inputs, buffers)
        again = _gap(function({}, inputs, buffers), whole)
        if not again <= _DOUBTFUL:
            raise RandomForwardError(_random_message(function, inputs, buffers, again))
        some = _companions(n)
        try:
            gap = _gap(function({}, take(inputs, some), buffers), whole[some])
        except (ValueError, RuntimeError) as error:
            raise SampleCouplingError(
                f"{type(function.model).__name__} cannot be called on {len(some)} of the {n} "
                f"probe samples alone ({type(error).__name__}: {error}), so it has no per-sample "
                f"Jacobian; {_ANY_CURE}."
            ) from error
        if gap <= _DOUBTFUL:
            return
        wide = make(torch.float64) if whole.device.type != "mps" else function
        inputs64 = cast_inputs(inputs, device=whole.device, dtype=wide.dtype)
        exact = wide({}, inputs64, buffers)
        gap = _gap(wide({}, take(inputs64, some), buffers), exact[some])
        if not gap <= _COUPLED:
            raise SampleCouplingError(_coupled_message(wide, inputs64, buffers, some, gap))


def _companions(n: int) -> Tensor:
    """Half of the samples in reverse order: every one of them loses its neighbours."""
    return torch.arange(max(1, n // 2) - 1, -1, -1)


def _gap(outputs: Tensor, reference: Tensor) -> float:
    size = (
        reference.double().abs().max().clamp(min=1e-300)
        if reference.device.type != "mps"
        else (reference.abs().max().clamp(min=1e-30))
    )
    return float((outputs - reference).abs().max() / size)


def _random_message(
    function: ModelFunction, inputs: Inputs, buffers: Params | None, gap: float
) -> str:
    name, module = _first_difference(function, inputs, inputs, buffers, slice(None))
    return (
        f"{type(function.model).__name__} draws random numbers in evaluation mode: two forward "
        f"passes on the same {count_samples(inputs)} samples differ by {gap:.1e} of their size, "
        f"first in {_describe(name, module)}, so it has no Jacobian to compare between steps. "
        f"{_cure(module)}."
    )


def _coupled_message(
    function: ModelFunction, inputs: Inputs, buffers: Params | None, some: Tensor, gap: float
) -> str:
    name, module = _first_difference(function, inputs, take(inputs, some), buffers, some)
    return (
        f"{type(function.model).__name__} mixes samples: on {len(some)} of the "
        f"{count_samples(inputs)} probe samples its outputs differ by {gap:.1e} of their size from "
        f"those on all of them (allowed: {_COUPLED:.0e}), first in {_describe(name, module)}, so "
        f"it has no per-sample Jacobian. {_cure(module)}; or pass forward= to watch a part of the "
        "model that treats samples one by one."
    )


def _first_difference(
    function: ModelFunction,
    inputs: Inputs,
    other: Inputs,
    buffers: Params | None,
    rows: Tensor | slice,
) -> tuple[str, nn.Module | None]:
    """The first module without children whose outputs on the same samples differ."""
    leaves = {m: name for name, m in function.model.named_modules() if not any(m.children())}
    whole = _recorded(function, inputs, buffers, list(leaves))
    part = _recorded(function, other, buffers, list(leaves))
    for (module, a), (_, b) in zip(whole, part, strict=False):
        n = count_samples(inputs)
        if a.ndim == 0 or a.shape[0] != n or not a.is_floating_point():
            continue
        expected = a[rows]
        if expected.shape != b.shape or not _gap(b, expected) <= _COUPLED:
            return leaves[module], module
    return "", None


def _recorded(
    function: ModelFunction, inputs: Inputs, buffers: Params | None, modules: list[nn.Module]
) -> list[tuple[nn.Module, Tensor]]:
    seen: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, _args: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.append((module, output.detach().clone()))

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        function({}, inputs, buffers)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _describe(name: str, module: nn.Module | None) -> str:
    if module is None:
        return "code outside its submodules"
    return f"{name or 'the model itself'} ({type(module).__name__})"


def _cure(module: nn.Module | None) -> str:
    for kind, cure in _CURES.items():
        if isinstance(module, kind):
            return cure[0].upper() + cure[1:]
    return _ANY_CURE[0].upper() + _ANY_CURE[1:]
