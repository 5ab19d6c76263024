"""``NTKTrainerCallback``: watches a training under Hugging Face's ``Trainer``.

It decides when, and hands over; what is done then is the same as under Lightning.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ntkwatch.errors import MissingExtraError
from ntkwatch.integrations.arguments import (
    check_range,
    check_watching,
    resolved,
    tracker_settings,
)
from ntkwatch.integrations.huggingface_facts import (
    BoardLogger,
    StepLoss,
    calling_trainer,
    check_whole,
    ends_with_other_weights,
    in_training_modes,
    may_stop_early,
    place_of,
    training_facts,
    whole_model,
)
from ntkwatch.integrations.huggingface_probe import PassingBatches, probe_of_trainer
from ntkwatch.integrations.run.outlet import Outlet, OutletSettings
from ntkwatch.integrations.run.watched_run import WatchedRun
from ntkwatch.jacobian.spec import BatchNormMode
from ntkwatch.watch.record.history import History
from ntkwatch.watch.schedule import Schedule
from ntkwatch.watch.tracker import Metrics
from ntkwatch.watch.verdict.verdict import Verdict

if TYPE_CHECKING:

    class TrainerCallback: ...
else:
    try:
        from transformers import TrainerCallback
    except ImportError:  # said when one is made: the name alone must not stop `import *`
        TrainerCallback = object

__all__ = ["NTKTrainerCallback"]


class NTKTrainerCallback(TrainerCallback):
    """Watches the empirical NTK of the model that a Hugging Face ``Trainer`` trains.

    Add it to the Trainer's callbacks; nothing else is needed. It draws a fixed probe batch, takes
    a reference before the first update, observes densely at first and sparser later, writes the
    run's files to ``<output_dir>/<name>/`` and, where the Trainer reports to TensorBoard, the tags
    of docs/metrics.md to its writer, and ends with a verdict. The training is left as it would be
    without it. A run that is resumed from a checkpoint is watched on from there.

    Args:
        every_n_steps: Observe every so many optimizer steps, whatever it costs. None: densely at
            first, then sparser, never above ``max_overhead``.
        probe: "auto" (evaluation dataset, else training dataset, else the first batches), "val",
            "train", a batch, a ``ProbeBatch``, a saved ``probe.safetensors``, or the dotted path of
            one of these or of a function that returns one. Items are put together by the
            Trainer's collator.
        probe_size: Probe points to draw; a verdict needs at least 32.
        resample_probe: Whether to draw a fresh probe at every observation.
        forward: ``(model, inputs) -> tensor (N, ...)`` or its dotted path; by default ``logits``.
        outputs: Which outputs enter the kernel: "full", "trace", "sum", "random:8", a function or
            its dotted path; "auto" takes all up to 10 and 8 random directions beyond.
        params: Names or patterns of parameters for the kernel; default all trainable ones.
        engine: "auto", "structured", "vmap", "loop" or "sketch"; see ``KernelTracker``.
        batchnorm: Statistics of BatchNorms in kernels; see ``KernelTracker``.
        top_k: Eigenvalues to record.
        metrics: "minimal", "standard" or "full", by cost: see docs/metrics.md.
        max_overhead: Largest share of wall time to spend, in (0, 1], everything counted. Where it
            does not pay for a kernel each time, most observations are brief: without one.
        memory_budget: Bytes that a kernel may take beyond a forward and a backward pass.
        dirpath: Folder for the run's files; default ``<output_dir>/<name>``.
        save_kernels: Whether to write each kernel to a file.
        on_error: "warn": training always finishes; "raise": for tests.
        on_verdict: Called with the verdict when its strength changes; or its dotted path.
        custom_scalars: Whether to write TensorBoard's Custom Scalars page.
        name: Prefix of tags and name of the folder; two callbacks need two names.

    Attributes:
        history: What was observed so far.
        verdict: The verdict as of the last observation, or None.

    Raises:
        InputError: If an argument is out of range.
        MissingExtraError: If transformers is not installed.

    Example::

        trainer = Trainer(..., callbacks=[NTKTrainerCallback()])
    """

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        probe: Any = "auto",
        probe_size: int = 64,
        resample_probe: bool = False,
        forward: Callable[..., Any] | str | None = None,
        outputs: Callable[..., Any] | str = "auto",
        params: str | Sequence[str] | None = None,
        engine: Literal["auto", "structured", "vmap", "loop", "sketch"] = "auto",
        batchnorm: BatchNormMode = "probe",
        top_k: int = 8,
        metrics: Metrics = "standard",
        max_overhead: float = 0.02,
        memory_budget: str | int = "1GiB",
        dirpath: str | Path | None = None,
        save_kernels: bool = True,
        on_error: Literal["warn", "raise"] = "warn",
        on_verdict: Callable[..., Any] | str | None = None,
        custom_scalars: bool = True,
        name: str = "ntk",
    ) -> None:
        if TrainerCallback is object:
            raise MissingExtraError(
                "transformers cannot be imported, so there is no Trainer to watch. Install it "
                "with: pip install 'ntkwatch[transformers]'"
            )
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
        if every_n_steps is not None:
            check_range("every_n_steps", every_n_steps, 1, whole=True)
            every_n_steps = int(every_n_steps)
        self.every_n_steps, self.max_overhead = every_n_steps, max_overhead
        self.probe, self.probe_size, self.resample_probe = probe, int(probe_size), resample_probe
        self.on_error, self.on_verdict = on_error, resolved(on_verdict)
        self.dirpath, self.name = dirpath, name
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
        self._run: WatchedRun | None = None
        self._trainer: Any = None
        self._passing: PassingBatches | None = None
        self._loss, self._board = StepLoss(), BoardLogger(None)

    @property
    def history(self) -> History:
        """What was observed so far."""
        return History() if self._run is None else self._run.history

    @property
    def verdict(self) -> Verdict | None:
        """The verdict as of the last observation, or None."""
        return None if self._run is None else self._run.verdict

    # Events, in the order in which they come. -----------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Draw the probe, or go on where an interrupted run stopped."""
        if self._run is not None:  # no event tells of a training that failed
            self._run.let_go()
        self._stop_gathering()
        self._run, self._trainer = None, calling_trainer()
        self._loss, self._board = StepLoss(), BoardLogger(self._trainer)
        model, main = whole_model(parts["model"]), bool(state.is_world_process_zero)
        if not (check_whole(self._trainer, model, self.on_error, is_main=main) and main):
            return
        folder = Path(args.output_dir) / self.name if self.dirpath is None else Path(self.dirpath)
        self._run = WatchedRun(
            folder,
            Outlet([self._board], {}, self._outlet_settings),
            schedule=Schedule(self.every_n_steps),
            max_overhead=self.max_overhead if self.every_n_steps is None else None,
            tracker_settings=self._tracker_settings,
            probe_size=self.probe_size,
            on_error=self.on_error,
            on_verdict=self.on_verdict,
            tell=_tell,
        )
        trainer, loader, optimizer = self._trainer, parts["train_dataloader"], parts["optimizer"]
        probe, size = self.probe, self.probe_size
        with self._run.harmless(state.global_step):
            self._run.begin(
                model,
                may_stop_early=may_stop_early(trainer),
                step=state.global_step,
                total_steps=state.max_steps,
                interrupted=state.stateful_callbacks.get(self._key),
                draw=lambda seed: probe_of_trainer(trainer, model, loader, probe, size, seed=seed),
                resample=self.resample_probe,
                training=lambda: training_facts(args, optimizer, loader),
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Take the reference before the first update; where there is no probe, look for batches."""
        run, model = self._watching, whole_model(parts["model"])
        if run is None or run.has_reference or self._passing is not None:
            return
        with run.harmless(state.global_step), in_training_modes(model):
            if run.has_probe:
                run.take_reference(model, None, **place_of(state))
            else:
                self._passing = PassingBatches(model, self._trainer)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Gather a probe from the batches that have passed, while the weights are as they were."""
        run, model = self._watching, whole_model(parts["model"])
        optimizer = parts.get("optimizer")
        if run is not None and optimizer is not None and not run.follows(optimizer):
            with run.harmless(state.global_step):
                run.before_step(optimizer, 0, lambda: state.global_step)
        if run is None or self._passing is None:
            self._stop_gathering()
            return
        with run.harmless(state.global_step):
            for batch in self._passing.taken():
                if not run.has_reference:
                    run.take_reference(model, batch, **place_of(state))
        if run.has_reference or run.stood_down:
            self._stop_gathering()

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Observe if the schedule says so and the budget allows it."""
        run, model = self._watching, whole_model(parts["model"])
        if run is None:
            return
        with run.harmless(state.global_step):
            run.note_loss(self._loss.of_step(self._trainer))
            if run.is_due(state.global_step):
                run.observe_if_due(model, **place_of(state))
        if control.should_save:
            self._leave_word(state)

    def on_log(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Take the logged loss, where no other is known."""
        self._loss.logged(self._trainer)
        run, loss = self._watching, (parts.get("logs") or {}).get("loss")
        if run is not None and loss is not None and not hasattr(self._trainer, "_tr_loss"):
            run.note_loss(torch.tensor(float(loss)))

    def on_evaluate(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Leave word for a resumed run: a good result may be saved."""
        self._leave_word(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Make do with the rows of one epoch, and observe the last step if training stops here."""
        run, model = self._watching, whole_model(parts["model"])
        if run is None:
            return
        with run.harmless(state.global_step):
            run.take_gathered_reference(model)
            # Now and not at the end, where the Trainer may have put the best weights back.
            if control.should_training_stop:
                run.observe_last(model, **place_of(state))
        if control.should_save:
            self._leave_word(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Observe the last step unless that is done, write the verdict and the report."""
        run, model = self._watching, whole_model(parts["model"])
        if run is not None and not ends_with_other_weights(args, state):
            with run.harmless(state.global_step):
                run.observe_last(model, **place_of(state))
        if self._run is not None:
            with self._run.harmless(state.global_step):
                self._run.finish()
                self._board.flush()
            self._run.let_go()
        self._stop_gathering()
        self._trainer, self._board = None, BoardLogger(None)

    # ----------------------------------------------------------------------------------------------

    @property
    def _watching(self) -> WatchedRun | None:
        """The run, unless failures have ended the watching."""
        return None if self._run is None or self._run.stood_down else self._run

    @property
    def _key(self) -> str:
        """Under which a checkpoint keeps the state; two names keep two callbacks apart."""
        return f"ntkwatch: {self.name}"

    def _stop_gathering(self) -> None:
        if self._passing is not None:
            self._passing.stop()
        self._passing = None

    def _leave_word(self, state: Any) -> None:
        """Tell a run that is resumed from the next checkpoint where this one's files are.

        In the Trainer's own record of callbacks' states, but by hand: what it offers makes a new
        callback of the resumed one, and fails where a checkpoint knows nothing of it.
        """
        if self._run is not None and self._run.has_reference:
            # As JSON, which holds no weights: their path is then followed from where it resumes.
            kept = {key: value for key, value in self._run.state().items() if key != "weights"}
            state.stateful_callbacks[self._key] = kept


def _tell(message: str) -> None:
    """Say something as the Trainer does, past its progress bar."""
    from tqdm.auto import tqdm

    tqdm.write(message)
