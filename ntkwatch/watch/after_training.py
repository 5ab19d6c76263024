"""After training: were the features needed? Two states of a model, its training set, others.

What a run watched with ``held_out=`` says at each observation, for a training that nobody watched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.memory import parse_bytes
from ntkwatch.jacobian.spec import EngineName
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.processes.apart import apart
from ntkwatch.watch.readings.counterfactual import held_out_numbers
from ntkwatch.watch.readings.held_out import HeldOut, check_held_out
from ntkwatch.watch.readings.measure import measure
from ntkwatch.watch.readings.settle import Wanted, kept_state, settle
from ntkwatch.watch.readings.validity import course_of
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.training import Training
from ntkwatch.watch.verdict.bands import Bands
from ntkwatch.watch.verdict.use import Answer, judge_need
from ntkwatch.watch.verdict.wording import held_out_lines

__all__ = ["Counterfactual", "counterfactual"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterfactual:
    """A network on held-out samples, beside regression with its kernels.

    Attributes:
        features_needed: Whether the network beats the kernel at the start.
        why: The comparison in words.
        numbers: The fields of an ``Observation`` that hold them, by name: ``acc_net``,
            ``acc_kernel_ref`` and ``acc_kernel_final`` for classes, ``score_...`` (``R^2``) for
            values, and ``representer_gap``.
        facts: Its ``held_out``: numbers of samples, ridge and standard errors.
        left_out: Per number that is not defined, the reason.
        lines: The numbers as a report prints them.
    """

    features_needed: Answer
    why: str
    numbers: Mapping[str, float]
    facts: Mapping[str, float]
    left_out: Mapping[str, str]
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Answer, comparison and what is missing."""
        lines = [f"features needed: {self.features_needed}", *self.lines, self.why]
        lines += [f"not measured: {key} ({reason})" for key, reason in self.left_out.items()]
        return "\n  ".join(lines)


def counterfactual(
    start: nn.Module | Mapping[str, Tensor],
    end: nn.Module,
    train: tuple[Tensor, Tensor] | ProbeBatch,
    held_out: tuple[Tensor, Tensor] | ProbeBatch,
    *,
    training: Training | None = None,
    forward: ForwardFn | None = None,
    params: str | Sequence[str] | None = None,
    engine: EngineName = "auto",
    memory_budget: str | int = "1GiB",
    dtype: torch.dtype | None = None,
    bands: Bands | None = None,
) -> Counterfactual:
    """Return whether features were needed: what the kernel at the start would have told.

    ``f_0(X*) + K_0(X*, X) (K_0 + eps I)^-1 (y - f_0(X))`` on held-out samples ``X*`` is what the
    network could have learned from the training set ``X`` without moving its features. The network
    at the end and ``K_T(X*, X) (K_T + eps I)^-1 y`` stand beside it.

    Args:
        start: The model before training, or its ``state_dict()``.
        end: The trained model; left as found.
        train: Inputs and targets of the **whole** training set, as the model was trained on them;
            at most 4000 samples times outputs.
        held_out: Inputs and targets that it was not trained on; any number.
        training: From ``training_of``, for the representer gap, which weight decay and Adam make
            meaningless; without it the gap is left out.
        forward: ``(model, inputs) -> tensor (N, ...)``; guessed by default.
        params: Names or patterns of the parameters that were trained; default all trainable ones.
        engine: As in ``empirical_ntk``.
        memory_budget: Bytes that a kernel may take beyond a forward and a backward pass.
        dtype: Of the Jacobian; default that of the parameters, at least float32.
        bands: Thresholds of the answer.

    Returns:
        The comparison; printing it gives a few lines.

    Raises:
        InputError: If the two sets cannot be compared, or overlap.

    Source:
        The comparison: Vyas et al. 2022, arXiv:2206.10012, and Long 2021, arXiv:2105.10585. The
        gap and the bands are this project's own.
    """
    probe, others = _batch(train, whole=True), _batch(held_out)
    check_held_out(probe, others)
    wanted = Wanted(
        params=params,
        outputs="full",
        forward=forward,
        engine=engine,
        batchnorm="probe",
        budget=parse_bytes(memory_budget),
        dtype=dtype,
        metrics="full",
        top_k=1,
    )
    settings = settle(end, wanted, probe, None)
    state = start.state_dict() if isinstance(start, nn.Module) else start
    tensors, _ = kept_state(end, state)
    with undisturbed(end), apart(end):
        first = measure(end, probe.inputs, settings, first=True, state=tensors)
        now = measure(end, probe.inputs, settings, first=False)
    steps = training if training is not None else Training()
    course = course_of(end, steps, probe, settings, held_out=HeldOut(others))
    left_out: dict[str, str] = {}
    values = held_out_numbers(now, first.as_anchor(0, keeps_full=True), course, left_out)
    facts = values.pop("held_out", {})
    last = Observation(
        anchor_step=0,
        step=1,
        probe_size=len(probe),
        output_count=now.outputs.shape[1],
        held_out=facts,
        left_out=left_out,
        seconds=0.0,
        **values,
    )
    needed, why = judge_need(last, bands if bands is not None else Bands())
    return Counterfactual(
        features_needed=needed,
        why=why,
        numbers=values,
        facts=facts,
        left_out=left_out,
        lines=tuple(held_out_lines(last)),
    )


def _batch(data: tuple[Tensor, Tensor] | ProbeBatch, *, whole: bool = False) -> ProbeBatch:
    if not isinstance(data, ProbeBatch):
        data = ProbeBatch(*data)
    return ProbeBatch(data.inputs, data.targets, origin=data.origin, whole_training_set=whole)
