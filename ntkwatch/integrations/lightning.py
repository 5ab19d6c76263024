"""``NTKMonitor``: the Lightning callback that decides when, hands over, and logs.

It works under ``lightning.pytorch`` and ``pytorch_lightning``, and holds no maths.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ntkwatch.integrations.arguments import (
    check_held_out_named,
    check_range,
    check_watching,
    resolved,
    tracker_settings,
)
from ntkwatch.integrations.callback_base import CallbackBase
from ntkwatch.integrations.processes.crew import Crew, Hook, News
from ntkwatch.integrations.run.outlet import Outlet, OutletSettings
from ntkwatch.integrations.run.watched_run import WatchedRun
from ntkwatch.integrations.trainer_facts import (
    averages_weights,
    can_watch,
    crew_of,
    loss_of,
    may_stop_early,
    number_of,
    place_of,
    time_left,
    total_steps,
    training_facts,
)
from ntkwatch.integrations.trainer_probe import held_out_of_run, probe_of_run
from ntkwatch.jacobian.spec import BatchNormMode
from ntkwatch.watch.record.history import History
from ntkwatch.watch.schedule import Schedule
from ntkwatch.watch.tracker import Metrics
from ntkwatch.watch.training import LossFunction, loss_named
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["NTKMonitor"]


class NTKMonitor(CallbackBase):
    """Watches the empirical NTK of the model in training.

    Add it to the Trainer's callbacks; nothing else is needed. It draws a fixed probe batch, takes
    a reference before the first update, observes densely at first and sparser later, logs scalars
    under ``<name>/`` to every logger and pictures to TensorBoard, writes the run's files to
    ``<log_dir>/<name>/``, and ends with a verdict. The training is left as it would be without it.

    ====================================  ==========================================================
    tag under ``<name>/``                 meaning (see docs/metrics.md)
    ====================================  ==========================================================
    relative_kernel_change                ``|K - K_0| / |K_0|``
    kernel_scale                          natural logarithm of the scale along ``K_0``
    kernel_angle, layer_angle_median      radians between ``K`` and ``K_0``; median over layers
    linearization_error                   ``|f - f_lin| / |f - f_0|`` on the probe
    linearization_error_decayed           past what weight decay alone did; absent without decay
    top_eigenvalue_1, effective_rank      of the trace kernel
    relative_displacement                 ``|theta - theta_0| / |theta_0|``
    target_alignment                      centred kernel-target alignment
    strength                              0 static, 1 lazy, 2 transitional, 3 feature-learning
    edge_of_stability                     learning rate over the largest stable one; metrics="full"
    overhead_share                        share of wall time spent watching, everything counted
    ====================================  ==========================================================

    Args:
        every_n_train_steps: Observe every so many optimizer steps, whatever it costs. None: densely
            at first, then sparser, never above ``max_overhead``.
        probe: "auto" (validation dataset, else training dataset, else the first batches), "val",
            "train", a batch, a ``ProbeBatch``, a saved ``probe.safetensors``, or the dotted path
            of one of these or of a function that returns one.
        probe_size: Probe points to draw; a verdict needs at least 32.
        resample_probe: Whether to draw a fresh probe at every observation: the reference and the
            present kernel are then both computed on it, so that no number hinges on one probe.
        held_out: Samples with targets that the model is not trained on: "val" (up to 2000 of the
            validation dataset), or given as a probe is. With ``metrics="full"`` and a ``probe``
            that is a ``ProbeBatch`` of the whole training set, the report then says whether the
            features were needed; see ``KernelTracker`` for what that takes.
        forward: ``(model, inputs) -> tensor (N, ...)`` or its dotted path; guessed by default.
        outputs: Which outputs enter the kernel: "full", "trace", "sum", "random:8", a function or
            its dotted path; "auto" takes all up to 10 and 8 random directions beyond.
        params: Names or patterns of parameters for the kernel; default all trainable ones.
        engine: "auto", "structured", "vmap", "loop" or "sketch"; see ``KernelTracker``.
        batchnorm: Statistics of BatchNorms in kernels: of the "probe", "running" averages, those of
            the "reference" step, or those of the "batch", differentiated (slow).
        top_k: Eigenvalues to record.
        metrics: "minimal", "standard" or "full", by cost: see docs/metrics.md.
        loss_function: What the training loss is of the outputs, for stable learning rates: a loss
            of torch, its dotted path, or a name such as "square-mean" or "cross-entropy-mean".
            "auto" takes the one ``MSELoss`` or ``CrossEntropyLoss`` that the module holds.
        max_overhead: Largest share of wall time to spend, in (0, 1], everything counted. Where it
            does not pay for a kernel each time, most observations are brief: without one.
        memory_budget: Bytes that a kernel may take beyond a forward and a backward pass.
        dirpath: Folder for the run's files; default ``<log_dir>/<name>``.
        save_kernels: Whether to write each kernel to a file.
        on_error: "warn": training always finishes; "raise": for tests.
        on_verdict: Called with the verdict when its strength changes; or its dotted path.
        custom_scalars: Whether to write TensorBoard's Custom Scalars page.
        name: Prefix of tags and name of the folder; two monitors need two names.

    Attributes:
        history: What was observed so far.
        verdict: The verdict as of the last observation, or None.

    Raises:
        InputError: If an argument is out of range.

    Example::

        trainer = Trainer(callbacks=[NTKMonitor()])
    """

    def __init__(
        self,
        *,
        every_n_train_steps: int | None = None,
        probe: Any = "auto",
        probe_size: int = 64,
        resample_probe: bool = False,
        held_out: Any = None,
        forward: Callable[..., Any] | str | None = None,
        outputs: Callable[..., Any] | str = "auto",
        params: str | Sequence[str] | None = None,
        engine: Literal["auto", "structured", "vmap", "loop", "sketch"] = "auto",
        batchnorm: BatchNormMode = "probe",
        top_k: int = 8,
        metrics: Metrics = "standard",
        loss_function: LossFunction = "auto",
        max_overhead: float = 0.02,
        memory_budget: str | int = "1GiB",
        dirpath: str | Path | None = None,
        save_kernels: bool = True,
        on_error: Literal["warn", "raise"] = "warn",
        on_verdict: Callable[..., Any] | str | None = None,
        custom_scalars: bool = True,
        name: str = "ntk",
    ) -> None:
        super().__init__()
        check_watching(
            probe=probe,
            probe_size=probe_size,
            resample_probe=resample_probe,
            max_overhead=max_overhead,
            on_error=on_error,
            on_verdict=resolved(on_verdict),
            name=name,
        )
        if every_n_train_steps is not None:
            check_range("every_n_train_steps", every_n_train_steps, 1, whole=True)
            every_n_train_steps = int(every_n_train_steps)
        self.every_n_train_steps = every_n_train_steps
        if held_out is not None:
            check_held_out_named(held_out, metrics)
        self.held_out = held_out
        self.probe, self.probe_size, self.resample_probe = probe, int(probe_size), resample_probe
        self.max_overhead, self.on_error, self.dirpath = max_overhead, on_error, dirpath
        self.on_verdict = resolved(on_verdict)
        self.loss_function = resolved(loss_function)
        if self.loss_function != "auto":
            loss_named(self.loss_function)
        self.name = name
        self._outlet_settings = OutletSettings(
            name=name, save_kernels=save_kernels, custom_scalars=custom_scalars
        )
        self._tracker_settings = tracker_settings(
            forward=forward,
            outputs=outputs,
            params=params,
            engine=engine,
            batchnorm=batchnorm,
            memory_budget=memory_budget,
            top_k=top_k,
            metrics=metrics,
        )
        self._resume_state: dict[str, Any] | None = None
        self._folder: Path | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._run: WatchedRun | None = None
        self._crew = Crew()

    @property
    def history(self) -> History:
        """What was observed so far."""
        return History() if self._run is None else self._run.history

    @property
    def verdict(self) -> Verdict | None:
        """The verdict as of the last observation, or None."""
        return None if self._run is None else self._run.verdict

    @property
    def state_key(self) -> str:
        """Keeps the states of two monitors of different names apart in a checkpoint."""
        return self._generate_state_key(name=self.name)

    # Hooks, in the order in which they are called. ------------------------------------------------

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Check the strategy and find the folder."""
        if stage != "fit":
            return
        self._run = self._folder = self._resume_state = None
        # log_dir is broadcast: every rank has to ask for it, or training hangs.
        log_dir = Path(trainer.log_dir or trainer.default_root_dir)
        if not can_watch(trainer, self.on_error):
            return
        if trainer.fast_dev_run:  # which leaves nothing behind
            self._scratch = tempfile.TemporaryDirectory(prefix="ntkwatch-")
            self._folder = Path(self._scratch.name) / self.name
        else:
            self._folder = log_dir / self.name if self.dirpath is None else Path(self.dirpath)

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Draw the probe, or go on where an interrupted run stopped."""
        if self._folder is None:
            return
        raises = self.on_error == "raise"
        crew = crew_of(trainer, self._tracker_settings, raises=raises)
        if crew is None:
            return
        self._crew = crew
        with self._meeting("train start", trainer, pl_module):
            if trainer.is_global_zero:
                self._begin(trainer, pl_module, self._folder)

    def _begin(self, trainer: Any, pl_module: nn.Module, folder: Path) -> None:
        # Made only now: until here Lightning may replace the metrics that callbacks look at.
        settings = dict(self._tracker_settings)
        outlet = Outlet(trainer.loggers, trainer.callback_metrics, self._outlet_settings)
        self._run = WatchedRun(
            folder,
            outlet,
            schedule=Schedule(self.every_n_train_steps),
            max_overhead=self.max_overhead if self.every_n_train_steps is None else None,
            tracker_settings=settings,
            probe_size=self.probe_size,
            on_error=self.on_error,
            on_verdict=self.on_verdict,
            keeps_files=self._scratch is None,
            crew=self._crew,
        )
        state, self._resume_state = self._resume_state, None
        size = self.probe_size
        with self._run.harmless(trainer.global_step):
            if self.held_out is not None:
                settings["held_out"] = held_out_of_run(trainer, pl_module, self.held_out)
            self._run.begin(
                pl_module,
                step=trainer.global_step,
                total_steps=total_steps(trainer),
                interrupted=state,
                draw=lambda seed: probe_of_run(trainer, pl_module, self.probe, size, seed=seed),
                resample=self.resample_probe,
                may_stop_early=may_stop_early(trainer),
                time_left=lambda: time_left(trainer),
                training=lambda: training_facts(trainer, pl_module, self.loss_function),
            )

    def on_train_batch_start(
        self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int
    ) -> None:
        """Take the reference at the first batch, before the first update."""
        if self._crew.is_alone and self._run is not None and self._run.has_reference:
            return  # as at nearly every step
        with self._meeting("batch start", trainer, pl_module):
            if self._run is None or self._run.stood_down or self._run.has_reference:
                return
            with self._run.harmless(trainer.global_step):
                self._run.take_reference(pl_module, batch, **place_of(trainer))

    def on_before_optimizer_step(
        self, trainer: Any, pl_module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Count what weight decay does in this step, if it is taken."""
        if self._run is None or self._run.stood_down or self._run.follows(optimizer):
            return
        with self._run.harmless(trainer.global_step):
            number = number_of(optimizer, trainer)
            self._run.before_step(optimizer, number, lambda: trainer.global_step)

    def on_train_batch_end(
        self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Observe if the schedule says so and the budget allows it."""
        step = trainer.global_step
        with self._meeting("batch end", trainer, pl_module):
            if self._run is None or self._run.stood_down:
                return
            with self._run.harmless(step):
                # Lightning makes a copy of the loss itself, where it does the optimization.
                ours = bool(pl_module.automatic_optimization)
                self._run.note_loss(loss_of(trainer, outputs), ours=ours)
                if self._run.is_due(step):
                    self._run.observe_if_due(pl_module, **place_of(trainer))

    def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Make do with the rows of one epoch, where a probe is gathered: they would come again."""
        with self._meeting("epoch end", trainer, pl_module):
            if self._run is None or self._run.stood_down:
                return
            with self._run.harmless(trainer.global_step):
                self._run.take_gathered_reference(pl_module)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Observe the last step, write the verdict and the report, and say where they are."""
        with self._meeting("train end", trainer, pl_module):
            if self._run is None:
                return
            if not (self._run.stood_down or averages_weights(trainer)):
                with self._run.harmless(trainer.global_step):
                    self._run.observe_last(pl_module, **place_of(trainer, ended=True))
            with self._run.harmless(trainer.global_step):
                self._run.finish()

    def _news(self) -> News:
        """What the other processes are told at the end of a meeting."""
        if self._run is None:
            return News(over=True)
        return News(
            over=self._run.stood_down,
            has_reference=self._run.has_reference,
            next_step=self._run.next_step,
            found=dict(self._run.found),
        )

    def _meeting(
        self, hook: Hook, trainer: Any, pl_module: nn.Module
    ) -> AbstractContextManager[None]:
        if self._crew.is_alone:  # at every step: as little as can be
            return nullcontext()
        return self._shared_meeting(hook, trainer, pl_module)

    @contextmanager
    def _shared_meeting(self, hook: Hook, trainer: Any, pl_module: nn.Module) -> Iterator[None]:
        """Meet the other processes; each of them then finds what the first one saw."""
        before = self._crew.found
        with self._crew.meeting(hook, pl_module, trainer.global_step, self._news):
            yield
        if self._crew.found is not before and not trainer.is_global_zero:
            told = {tag: torch.tensor(value) for tag, value in self._crew.found.items()}
            trainer.callback_metrics.update(told)

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Write what is known so far: a crashed run is when people look."""
        if self._run is not None:
            with self._run.harmless(trainer.global_step):
                self._run.finish()
        self._let_go()

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Let go of what was only needed while training."""
        if stage == "fit":
            self._let_go()

    def _let_go(self) -> None:
        self._crew.leave()
        if self._run is not None:
            self._run.let_go()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to find its history: plain values only."""
        return {"version": 1, **({} if self._run is None else self._run.state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where the interrupted run left its files."""
        self._resume_state = state_dict
