"""The same measurements in any training loop: a tracker with memory, and nothing of a framework.

It keeps the reference kernel, parameters and outputs, and compares the model with them each time
it is shown it. When to look, and where numbers are written, is the caller's business.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Literal

import torch
from torch import Tensor, nn

import ntkwatch
from ntkwatch.errors import InputError, SelectionError
from ntkwatch.jacobian.batchnorm import moving_batchnorms
from ntkwatch.jacobian.engine import check_choice
from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.functional import jacobian_dtype
from ntkwatch.jacobian.memory import parse_bytes
from ntkwatch.jacobian.outputs import OutputsSpec
from ntkwatch.jacobian.parameters import (
    check_finite_parameters,
    clean_name,
    parameters_of,
    select_parameters,
)
from ntkwatch.jacobian.spec import BatchNormMode, EngineName, Kernel
from ntkwatch.jacobian.undisturbed import undisturbed
from ntkwatch.kernel.bootstrap import bootstrap_weights
from ntkwatch.watch.anchors import Anchor
from ntkwatch.watch.compare import compare
from ntkwatch.watch.history import History
from ntkwatch.watch.measure import Measurement, Settings, measure, noise_floor
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.records import Observation, Reading, RunInfo
from ntkwatch.watch.standing import standing_numbers

__all__ = ["KernelTracker", "Metrics"]

Metrics = Literal["minimal", "standard"]

_log = logging.getLogger(__name__)

_DRAWS = 200  # bootstrap replicates: the ends of a 95 % interval then scatter by a tenth of it
_WARMUP_STEPS = 20  # ordinary AdamW reorganises a network in its first few steps


class KernelTracker:
    """Watches the empirical NTK of a model on a probe batch.

    The first ``observe`` sets the reference; observing its step again replaces it. All numbers
    are taken in evaluation mode, and the model is left as found.

    Args:
        probe: Inputs, and targets where there are any, that kernels are compared on.
        forward: ``(model, inputs) -> tensor (N, ...)``; guessed by default.
        outputs: Which outputs enter the kernel, as in ``empirical_ntk``; "auto" takes all up to 10
            and 8 random directions beyond (orthogonal to the all-ones vector for class targets).
        params: Names or patterns of parameters for the kernel; default all trainable ones.
        engine: As in ``empirical_ntk``.
        batchnorm: Statistics of BatchNorms that train on batch statistics: those of the "probe"
            (default), or "running" averages, whose motion then counts as drift.
        memory_budget: Bytes for Jacobian rows.
        dtype: Of the Jacobian; default that of the parameters, at least float32.
        top_k: Eigenvalues to record.
        metrics: "minimal" (drift, linearization error, displacement) or "standard" (also
            intervals, spectrum and alignment).
        warmup_steps: The reading since warm-up starts at the first observation at or after this
            step.
        reference: Where the reference comes from, in words, for the record.

    Attributes:
        history: What was observed so far.
        loss_start: Training loss at the reference weights; the first loss given unless set.
    """

    def __init__(
        self,
        probe: ProbeBatch,
        *,
        forward: ForwardFn | None = None,
        outputs: OutputsSpec = "auto",
        params: str | Sequence[str] | None = None,
        engine: EngineName = "auto",
        batchnorm: BatchNormMode = "probe",
        memory_budget: str | int = "1GiB",
        dtype: torch.dtype | None = None,
        top_k: int = 8,
        metrics: Metrics = "standard",
        warmup_steps: int = _WARMUP_STEPS,
        reference: str = "the first observation",
    ) -> None:
        check_choice("engine", engine, ("auto", "vmap", "loop"))
        check_choice("batchnorm", batchnorm, ("running", "probe"))
        check_choice("metrics", metrics, ("minimal", "standard"))
        if top_k < 1:
            raise InputError(f"top_k={top_k} asks for no eigenvalue; give 1 or more.")
        self.probe = probe
        self.warmup_steps = warmup_steps
        self.history = History()
        self._forward, self._params, self._dtype = forward, params, dtype
        self._outputs, self._engine, self._batchnorm = outputs, engine, batchnorm
        self._budget = parse_bytes(memory_budget)
        self._top_k, self._metrics = top_k, metrics
        self._reference_words = reference
        self._settings: Settings | None = None
        self._start: Anchor | None = None
        self._warmup: Anchor | None = None
        self._floors: dict[str, float] = {}
        self.loss_start: float | None = None
        self._kernel: Kernel | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def reference(self) -> Anchor | None:
        """Weights, outputs and kernel at the reference step, or None before it."""
        return self._start

    @property
    def warmup(self) -> Anchor | None:
        """The same at the end of the warm-up, or None before it."""
        return self._warmup

    @property
    def kernel(self) -> Kernel | None:
        """The kernel of the last observation, or None."""
        return self._kernel

    def observe(
        self,
        model: nn.Module,
        step: int,
        *,
        loss: float | None = None,
        epoch: int | None = None,
        logged_step: int | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> Observation:
        """Measure a model and return what was seen.

        Args:
            model: The model, in the modes in which it trains.
            step: Optimizer steps taken so far.
            loss: Training loss, if known; the first one given counts as that of the start.
            epoch: Epochs completed, if known.
            logged_step: The x axis of the run's loggers, if that is another one.
            state: Weights and buffers to measure instead of the model's present ones, by name: a
                checkpoint's, say.

        Returns:
            The observation, which is also added to ``history``.

        Raises:
            NonFiniteError: If weights or outputs are NaN or infinite.
        """
        began = time.perf_counter()
        loss = None if loss is None or not math.isfinite(loss) else float(loss)
        self.loss_start = loss if self.loss_start is None else self.loss_start
        is_reference = self._start is None or step == self._start.step
        if is_reference or self._settings is None:
            self._settings = self._settle(model)
        settings = self._known_settings(model)
        kept = None if state is None else {clean_name(name): t for name, t in state.items()}
        check_finite_parameters(kept or parameters_of(model))
        with undisturbed(model):
            now = measure(model, self.probe.inputs, settings, first=is_reference, state=kept)
            if is_reference:
                self._take_reference(model, now, step, settings)
            assert self._start is not None
            weights = self._weights()
            reading = compare(now, self._start, moving=settings.moving, weights=weights)
            since_warmup = self._read_since_warmup(now, step, settings, weights)
        self._kernel = now.kernel
        spectral, left_out = standing_numbers(
            now.kernel, self.probe, top_k=self._top_k, minimal=self._metrics == "minimal"
        )
        observation = Observation(
            **{f.name: getattr(reading, f.name) for f in fields(Reading) if f.name != "left_out"},
            left_out={**reading.left_out, **left_out},
            step=step,
            logged_step=logged_step,
            epoch=epoch,
            loss=loss,
            loss_start=self.loss_start,
            probe_size=len(self.probe),
            output_count=now.problem.spec.output_count,
            noise_floor=self._floors,
            since_warmup=since_warmup,
            batchnorm=now.problem.spec.batchnorm,
            notes=self._notes(now),
            seconds=time.perf_counter() - began,
            **spectral,
        )
        self.history.add(observation)
        return observation

    def resume(self, history: History, start: Anchor, warmup: Anchor | None = None) -> None:
        """Go on from an earlier run instead of taking a new reference.

        Args:
            history: What was observed until then.
            start: Its reference.
            warmup: Its anchor at the end of the warm-up, if that was reached.

        Raises:
            InputError: If the earlier run had another probe.
        """
        then, now = history.run.probe.get("fingerprint"), self.probe.fingerprint()
        if then != now:
            raise InputError(
                f"the run to go on from was observed on probe {then} and this tracker has {now}, "
                "so kernels cannot be compared. Give it the probe saved beside the history."
            )
        self.history = history
        self._start, self._warmup = start, warmup
        self._resumed = history.run.spec
        last = history[-1] if len(history) else None
        if last is not None:
            self._floors, self.loss_start = dict(last.noise_floor), last.loss_start

    # Settling what stays the same. ----------------------------------------------------------------

    def _settle(self, model: nn.Module) -> Settings:
        selected = list(select_parameters(model, self._params))
        moving = moving_batchnorms(model)
        if self._resumed is not None:  # what trains may change between a stop and a resume
            selected = list(self._resumed["params"])
            moving = list(self._resumed.get("batchnorms", moving))
        outputs = self._outputs
        regression = self.probe.targets is not None and self.probe.targets.is_floating_point()
        if isinstance(outputs, str) and outputs.startswith("random:") and regression:
            outputs = f"{outputs.removesuffix(':plain')}:plain"
        return Settings(
            names=tuple(selected),
            moving=tuple(moving),
            batchnorm=self._batchnorm,
            forward=self._forward,
            outputs="auto:plain" if outputs == "auto" and regression else outputs,
            engine=self._engine,
            budget=self._budget,
            dtype=jacobian_dtype(parameters_of(model), self._dtype),
        )

    def _known_settings(self, model: nn.Module) -> Settings:
        assert self._settings is not None
        present = parameters_of(model)
        missing = [name for name in self._settings.names if name not in present]
        if missing:
            raise SelectionError(
                f"{len(missing)} of the parameters watched since the reference are no longer in "
                f"{type(model).__name__} ({', '.join(missing[:3])}), so its kernel cannot be "
                "compared. Use a new KernelTracker for a model of another form."
            )
        return self._settings

    def _take_reference(
        self, model: nn.Module, now: Measurement, step: int, settings: Settings
    ) -> None:
        self._start = now.as_anchor(step)
        self._warmup = None
        self._floors = noise_floor(now, settings)
        spec = now.problem.spec
        self.history.run = RunInfo(
            spec={
                **spec.to_plain(),
                "batchnorms": list(settings.moving),
                "engine": "none" if now.kernel is None else _engines(now.kernel),
            },
            probe=self.probe.describe(),
            model={
                "class": type(model).__name__,
                "parameters": sum(p.numel() for p in parameters_of(model).values()),
                "watched": sum(parameters_of(model)[name].numel() for name in spec.params),
            },
            reference=self._reference_words,
            versions={"ntkwatch": ntkwatch.__version__, "torch": torch.__version__},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _read_since_warmup(
        self, now: Measurement, step: int, settings: Settings, weights: Tensor | None
    ) -> Reading | None:
        assert self._start is not None
        if self._warmup is None or self._warmup.step == step:
            due = step - self._start.step >= self.warmup_steps
            self._warmup = now.as_anchor(step) if due else None
            return None
        return compare(now, self._warmup, moving=settings.moving, weights=weights)

    # What stands for itself. ----------------------------------------------------------------------

    def _weights(self) -> Tensor | None:
        if self._metrics == "minimal":
            return None
        labels = self.probe.targets if self.probe.has_classes else None
        return bootstrap_weights(len(self.probe), _DRAWS, strata=labels)

    def _notes(self, now: Measurement) -> tuple[str, ...]:
        notes = []
        if now.problem.reduction.name.startswith("random"):
            notes.append(
                f"the kernel and the linearization error see {now.problem.reduction.rows} fixed "
                f"random directions of the {now.problem.spec.output_count} outputs"
            )
        assert self._settings is not None
        if self._settings.moving and self._settings.batchnorm == "running":
            notes.append("moving batch statistics count as drift of this kernel")
        return tuple(notes)


def _engines(kernel: Kernel) -> str:
    return ", ".join(sorted(set(kernel.coverage.values())))
