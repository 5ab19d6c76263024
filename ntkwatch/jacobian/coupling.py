"""Whether each sample's outputs depend on that sample alone, as a per-sample kernel demands.

Outputs of some of the samples, and of one alone, are compared with the same rows of the whole
batch; then gradients of one sample alone with those beside another, since a weight that is still
zero hides coupling from the outputs. Rounding differs between batch sizes, so a doubtful gap is
looked at again in float64 before a model is refused.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from ntkwatch.errors import RandomForwardError, SampleCouplingError
from ntkwatch.jacobian.backward import gradients as differentiate
from ntkwatch.jacobian.culprit import culprit_cure, culprit_name, find_culprit
from ntkwatch.jacobian.forward import first_line
from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs, cast_inputs, count_samples, dense, take
from ntkwatch.jacobian.memory import is_out_of_memory
from ntkwatch.jacobian.outputs import Reduction

__all__ = ["check_repeatable", "check_samples_independent"]

# Gaps, as shares of the outputs' size, that rounding explains. The second is for where float64 is
# not to be had. Models that compute partly in float32 whatever their dtype are why the first is
# not smaller.
_ROUNDING = 1e-5
_ROUNDING32 = 3e-4
# Gradients pass through more operations, and a gap may show in one small parameter only: gaps count
# as shares of the parameter's own gradient plus this share of the whole one.
_NEGLIGIBLE = 1e-2
_JOLT = 0.03

_CURE = (
    "Usual causes are batch statistics (BatchNorm with track_running_stats=False or kept in train "
    "mode, hand-written means over the batch), attention over the batch and contrastive heads"
)
_REPEATABLE = "Make it deterministic in evaluation mode"
_PART = "or pass forward= to watch a part of the model that treats samples one by one"

_Explain = Callable[[], SampleCouplingError]
_Check = Callable[..., _Explain | None]


def check_samples_independent(
    make: Callable[[torch.dtype], ModelFunction],
    inputs: Inputs,
    reduction: Reduction,
    names: Sequence[str],
    *,
    dtype: torch.dtype,
    buffers: Params,
) -> None:
    """Refuse a model that mixes samples or draws random numbers, naming the module that does.

    Args:
        make: The model as a function, in a given dtype.
        inputs: The probe, two samples or more.
        reduction: Output directions.
        names: Parameters that the kernel is taken over.
        dtype: That the kernel will be computed in.
        buffers: Buffers to use instead of the model's.

    Raises:
        RandomForwardError: If outputs depend on chance.
        SampleCouplingError: If they depend on other samples.
    """
    n = count_samples(inputs)
    # In reverse order every sample loses its neighbours; one that is not among the half is looked
    # at alone. On the CPU by name: the caller may have set another default device.
    half = torch.arange(max(1, n // 2) - 1, -1, -1, device="cpu")
    alone = torch.tensor([n // 2], device="cpu")
    checks: list[_Check] = [
        _check_repeatable,
        partial(_check_rows, rows=half),
        partial(_check_rows, rows=alone),
        partial(_check_gradients, reduction=reduction, names=names),
    ]
    _run(checks, make, inputs, buffers, dtype)


def check_repeatable(
    make: Callable[[torch.dtype], ModelFunction],
    inputs: Inputs,
    names: Sequence[str],
    *,
    dtype: torch.dtype,
    buffers: Params,
) -> None:
    """Refuse a model that draws random numbers, naming the module that does.

    Args:
        make: The model as a function, in a given dtype.
        inputs: The probe.
        names: Parameters that the kernel is taken over.
        dtype: That the kernel will be computed in.
        buffers: Buffers to use instead of the model's.

    Raises:
        RandomForwardError: If outputs depend on chance.
    """
    _run([_check_repeatable], make, inputs, buffers, dtype)


def _run(
    checks: Sequence[_Check],
    make: Callable[[torch.dtype], ModelFunction],
    inputs: Inputs,
    buffers: Params,
    dtype: torch.dtype,
) -> None:
    trial = _Trial(make(dtype), inputs, buffers)
    device, wide = trial.device, trial.function.widest
    allowed = _ROUNDING if wide == torch.float64 else _ROUNDING32
    for check in checks:
        if check(trial, allowed=allowed) is None:
            continue
        # Perhaps it is rounding: float64 tells.
        inputs64 = cast_inputs(inputs, device=device, dtype=wide)
        explain = check(_Trial(make(wide), inputs64, buffers), allowed=allowed)
        if explain is not None:
            raise explain()


class _Trial:
    """A model with its weights a little off, and its outputs on all samples, made once."""

    def __init__(self, function: ModelFunction, inputs: Inputs, buffers: Params) -> None:
        self.function, self.inputs, self.buffers = function, inputs, buffers
        self.device = next(iter(function.params.values())).device
        self.moved = _jolted(function)

    def call(self) -> Tensor:
        """Outputs on all samples, made anew."""
        return self.function(self.moved, self.inputs, self.buffers)

    @cached_property
    def whole(self) -> Tensor:
        """The same, kept."""
        with torch.no_grad():
            return self.call()


def _check_repeatable(trial: _Trial, *, allowed: float) -> _Explain | None:
    inputs, function, call = trial.inputs, trial.function, trial.call

    def explain() -> SampleCouplingError:
        n = count_samples(inputs)
        with function.remembering():
            found = find_culprit(function.model, call, call, slice(None), n, tolerance=allowed)
        return RandomForwardError(
            f"{type(function.model).__name__} draws random numbers, or keeps something from call "
            f"to call, in evaluation mode: two forward passes on the same {n} samples differ by "
            f"{gap:.1e} of their size, first in {culprit_name(found)}, so it has no Jacobian to "
            f"compare between steps. {culprit_cure(found, _REPEATABLE)}, {_PART}."
        )

    with torch.no_grad(), function.remembering():
        first = trial.whole
        gap = _gap(call(), first)
    return None if gap <= allowed else explain


def _check_rows(trial: _Trial, *, rows: Tensor, allowed: float) -> _Explain | None:
    """Compare outputs of some samples with the same rows of the whole batch."""
    function, n = trial.function, count_samples(trial.inputs)
    rows = rows.to(trial.device)
    part = take(trial.inputs, rows)
    calls = (trial.call, lambda: function(trial.moved, part, trial.buffers))

    def explain() -> SampleCouplingError:
        found = find_culprit(function.model, *calls, rows, n, tolerance=allowed)
        return SampleCouplingError(
            f"{type(function.model).__name__} mixes samples: on {len(rows)} of the {n} probe "
            f"samples {what} {culprit_name(found)}, so it has no per-sample Jacobian. "
            f"{culprit_cure(found, _CURE)}; {_PART}."
        )

    with torch.no_grad():
        expected = trial.whole[rows]
        try:
            gap = _gap(calls[1](), expected)
        except Exception as error:  # whatever it is, an engine would meet it too
            if is_out_of_memory(error):
                raise
            what = f"it fails ({type(error).__name__}: {first_line(error)}) in"
            return explain
    what = (
        f"its outputs differ by {gap:.1e} of their size from those on all of them (allowed: "
        f"{allowed:.0e}), first in"
    )
    return None if gap <= allowed else explain


def _check_gradients(
    trial: _Trial, *, reduction: Reduction, names: Sequence[str], allowed: float
) -> _Explain | None:
    function = trial.function

    def explain() -> SampleCouplingError:
        return SampleCouplingError(
            f"{type(function.model).__name__} mixes samples: with another sample beside it, the "
            f"gradient of a sample's outputs with respect to {name} differs by {gap:.1e} of its "
            f"size (allowed: {allowed:.0e}), so it has no per-sample Jacobian. {_CURE}, or an "
            f"outputs= function that does so; use a form that does not, {_PART}."
        )

    gap, name = _gradient_gap(trial, reduction, names)
    return None if gap <= allowed else explain


def _gradient_gap(trial: _Trial, reduction: Reduction, names: Sequence[str]) -> tuple[float, str]:
    """The largest change of a parameter's gradient when a second sample stands beside the first."""
    function, inputs = trial.function, trial.inputs
    n = count_samples(inputs)
    first, second = n // 2, 0
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(reduction.rows, generator=generator, device="cpu")

    def traced(samples: list[int]) -> tuple[Tensor, Params]:
        few = take(inputs, torch.tensor(samples, device=trial.device))
        outputs, leaves = function.trace(names, few, trial.buffers)
        outputs = reduction.flatten(outputs)[0]
        if reduction.directions is not None:
            outputs = reduction.cotangents(outputs) @ outputs
        return outputs @ weights.to(outputs), leaves

    def gradients(of: tuple[Tensor, Params], block: list[str]) -> list[Tensor]:
        output, leaves = of
        wanted = [leaves[name] for name in block]
        if not output.requires_grad:
            return [torch.zeros_like(leaf) for leaf in wanted]
        found = differentiate(function.model, output, wanted)
        return [
            torch.zeros_like(leaf) if gradient is None else dense(gradient)
            for leaf, gradient in zip(wanted, found, strict=True)
        ]

    one, both = traced([first]), traced([first, second])
    sized: list[Tensor] = []
    off: list[Tensor] = []
    in_order: list[str] = []
    for block in function.blocks(names):
        alone, beside = gradients(one, block), gradients(both, block)
        if not all(bool(gradient.isfinite().all()) for gradient in alone):
            return 0.0, names[0]  # the kernel will be refused for what it is
        sized += [gradient.norm() for gradient in alone]
        off += [(a - b).norm() for a, b in zip(alone, beside, strict=True)]
        in_order += block
    sizes, errors = torch.stack(sized), torch.stack(off)
    # Where a sample alone has no gradient at all, beside another it must have none either.
    scale = sizes + _NEGLIGIBLE * torch.maximum(sizes.norm(), errors.norm())
    gaps = torch.where(errors == 0, errors, errors / scale)
    worst = int(gaps.argmax())
    return float(gaps[worst]), in_order[worst]


def _jolted(function: ModelFunction) -> Params:
    """Weights a few percent off: outputs centred at the start, or behind a zero head, are not 0."""
    if not function.replaceable:
        return {}
    generator = torch.Generator().manual_seed(0)
    moved = {}
    for name, tensor in function.params.items():
        if tensor.is_floating_point() and tensor.numel():
            size = tensor.square().mean().sqrt()
            noise = torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)
            moved[name] = tensor + _JOLT * torch.where(size > 0, size, 1.0) * noise
    return moved


def _gap(outputs: Tensor, reference: Tensor) -> float:
    if reference.numel() == 0:
        return 0.0
    error, size = (outputs - reference).abs().max(), reference.abs().max()
    return float(torch.where(error == 0, error, error / size))
