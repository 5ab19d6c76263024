"""A training that nobody watched, from its checkpoints: the same history as if someone had.

Checkpoints are measured one after the other, and each number is on disk before the next file is
read: an interrupted report goes on where it stopped, and a later one measures only what is new.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ntkwatch.errors import DivergedError, HistoryError, NtkwatchError
from ntkwatch.integrations.checkpoints.files import Weights, read_checkpoint
from ntkwatch.integrations.checkpoints.places import name_of
from ntkwatch.integrations.checkpoints.probe_loss import LossFn, loss_on_probe
from ntkwatch.integrations.checkpoints.series import Entry, Series, digest_of
from ntkwatch.integrations.checkpoints.weights import load_weights
from ntkwatch.integrations.run.claim import free_folder, let_go_of
from ntkwatch.integrations.run.mishaps import in_words
from ntkwatch.integrations.run.outlet import Outlet, OutletSettings
from ntkwatch.watch.probe import ProbeBatch
from ntkwatch.watch.record.history import History, read_history
from ntkwatch.watch.record.records import Gap, GapKind
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.verdict.verdict import judge

__all__ = ["CheckpointReading", "watch_checkpoints"]

_LEDGER = "checkpoints.json"
_LEDGER_FORM = 1
_PAGES = ("verdict.json", "report.html")
_STALE = ("history.jsonl", "angles.json", "reference-warmup.safetensors", *_PAGES)

_WARMUP_STEPS, _WARMUP_SHARE = 20, 0.01  # as where a callback watches
_NEVER = math.inf  # steps: where a clock counts something else, the end of a warm-up is unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReading:
    """How checkpoints are read.

    Attributes:
        trust: Whether code in them may run.
        weights: Raw or averaged ones.
        prefix: What stands before the model's names in them; None to find it.
        first_is_start: Whether the earliest holds the weights from before training, though its
            step is not 0 or not known.
        loss: ``(outputs, targets) -> number``, taken on the probe; None for no loss.
        about: Further settings that decide the numbers, for telling cached ones apart.
    """

    trust: bool = False
    weights: Weights = "raw"
    prefix: str | None = None
    first_is_start: bool = False
    loss: LossFn | None = None
    about: dict[str, Any]


def watch_checkpoints(
    model: nn.Module,
    probe: ProbeBatch,
    series: Series,
    folder: Path,
    *,
    reading: CheckpointReading,
    tracker_settings: dict[str, Any],
    watched: RunFiles | None = None,
    on_progress: Callable[[Entry], object] = lambda entry: None,
) -> tuple[History, RunFiles]:
    """Measure checkpoints in order and write what a watched run would have written.

    Args:
        model: A model to put the weights into; its own are lost.
        probe: What to measure on.
        series: The checkpoints.
        folder: For the run's files; numbers measured earlier, with equal settings and of files
            that have not changed, are taken from there.
        reading: How to read them.
        tracker_settings: Arguments of ``KernelTracker``.
        watched: Files of the same training as a callback left them, to go on from its reference
            instead of the earliest checkpoint.
        on_progress: Called after each checkpoint.

    Returns:
        The history and the files it was written to. A checkpoint that cannot be measured is a gap
        in it.
    """
    run = _Run(model, probe, series, reading, tracker_settings, watched)
    run.begin(folder)
    for entry in series.entries:
        run.measure(entry)
        on_progress(entry)
    run.finish()
    return run.tracker.history, run.files


class _Run:
    """One series on its way to a history."""

    def __init__(
        self,
        model: nn.Module,
        probe: ProbeBatch,
        series: Series,
        reading: CheckpointReading,
        tracker_settings: dict[str, Any],
        watched: RunFiles | None,
    ) -> None:
        self.model, self.reading, self.watched = model, reading, watched
        self.tracker = _tracker(probe, series, reading, tracker_settings)
        self.outlet = Outlet(
            [], {}, OutletSettings(name="ntk", save_kernels=True, custom_scalars=False)
        )
        self.settings = _settings(series, reading, self.tracker, watched)
        self.digests = {entry.step: digest_of(entry.path) for entry in series.entries}
        self.broken = [skip for skip in series.skipped if skip.is_broken]
        self.measured: dict[int, str] = {}
        self.files = RunFiles(Path())

    def begin(self, folder: Path) -> None:
        """Go on with numbers measured earlier, or start in a folder where nothing is lost."""
        ledger = _read_ledger(folder / _LEDGER)
        self.files = RunFiles(folder if ledger is not None else free_folder(folder))
        self.tracker.keep_anchors_on(self.files.anchors)
        known = {} if ledger is None else ledger
        if known.get("settings") == self.settings and self._go_on(known["measured"]):
            self._write_ledger()
            return
        # First the ledger: without it, what follows would be taken for a watched run's.
        self._write_ledger()
        let_go_of(self.files.folder)
        for name in _STALE:
            (self.files.folder / name).unlink(missing_ok=True)
        for part in ("kernels", "anchors"):
            for file in (self.files.folder / part).glob("step=*.safetensors"):
                file.unlink()
        if self.watched is not None:
            self._take_over(self.watched)

    def measure(self, entry: Entry) -> None:
        """Measure one checkpoint, unless that was done; the first must succeed."""
        start, warmup = self.tracker.reference, self.tracker.warmup
        if self.measured.get(entry.step) == self.digests[entry.step]:
            return
        if self.watched is not None and start is not None and entry.step <= start.step:
            return
        try:
            found = read_checkpoint(
                entry.path, trust=self.reading.trust, weights=self.reading.weights
            )
            load_weights(self.model, found.tensors, entry.path, prefix=self.reading.prefix)
            loss = loss_on_probe(self.model, self.tracker.probe, self.reading.loss)
            observation = self.tracker.observe(self.model, entry.step, loss=loss, epoch=entry.epoch)
        except NtkwatchError as error:
            if not self.measured:  # it is not this file, but the model, the data or the settings
                raise
            kind: GapKind = "diverged" if isinstance(error, DivergedError) else "failed"
            self._gap(Gap(step=entry.step, reason=in_words(error), kind=kind))
            return
        if start is None:
            self.outlet.begin(self.tracker, self.files)
        if self.tracker.warmup is not None and self.tracker.warmup is not warmup:
            self.files.write_anchor(self.tracker.warmup, "warmup")
        self.outlet.observed(self.tracker, observation, judge(self.tracker.history), self.files)
        self.measured[entry.step] = self.digests[entry.step]
        self._write_ledger()

    def finish(self) -> None:
        """Write the verdict and the report."""
        for _, step, reason, _ in self.broken:
            if step is not None:
                self._gap(Gap(step=step, reason=reason))
        self.outlet.finish(self.tracker, judge(self.tracker.history), self.files)

    def _gap(self, gap: Gap) -> None:
        self.tracker.history.gaps.append(gap)
        self.files.append(gap)

    def _go_on(self, measured: dict[str, str]) -> bool:
        """Keep what would be measured again in just this way; False if that is nothing."""
        if not self.files.can_go_on:
            return False
        try:
            then = read_history(self.files.history)
        except HistoryError:
            return False
        seen = {observation.step for observation in then}
        # A file may be gone since, or be another one.
        kept = {
            step: digest
            for step, digest in self.digests.items()
            if measured.get(str(step)) == digest and step in seen
        }
        start = self.files.read_anchor(device=self._device)
        if start is None or start.step not in (kept if self.watched is None else seen):
            return False
        observations = tuple(o for o in then if o.step in kept or o.step == start.step)
        warmup = self.files.read_anchor("warmup", device=self._device)
        last = self.files.read_kernel(observations[-1].step, device=self._device)
        seen_again = {observation.step for observation in observations}
        angles = None if then.angles is None else then.angles.only(seen_again)
        self.tracker.resume(
            History(then.run, observations, angles=angles),
            start,
            warmup,
            last_kernel=last,
            kernel_at=lambda step: self.files.read_kernel(step, device=self._device),
        )
        self.measured = kept
        self.files.rewrite(self.tracker.history)
        return True

    def _take_over(self, watched: RunFiles) -> None:
        """Start from the reference of the callback that watched this training."""
        then, start = read_history(watched.history), watched.read_anchor(device=self._device)
        assert start is not None
        first = tuple(observation for observation in then if observation.step == start.step)
        self.tracker.resume(History(then.run, first), start)
        self.files.write_probe(self.tracker.probe)
        self.files.write_anchor(start)
        self.files.rewrite(self.tracker.history)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _write_ledger(self) -> None:
        measured = {str(step): digest for step, digest in self.measured.items()}
        about = {"ntkwatch_checkpoints": _LEDGER_FORM, "settings": self.settings}
        self.files.write_json(_LEDGER, {**about, "measured": measured})


def _read_ledger(path: Path) -> dict[str, Any] | None:
    """What an earlier report on these checkpoints wrote down, or None where there was none."""
    try:
        ledger = json.loads(path.read_text(encoding="utf-8"))
        known = ledger["ntkwatch_checkpoints"] == _LEDGER_FORM
        return {"settings": ledger["settings"] if known else None, "measured": ledger["measured"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tracker(
    probe: ProbeBatch, series: Series, reading: CheckpointReading, settings: dict[str, Any]
) -> KernelTracker:
    first, last = series.entries[0], series.entries[-1]
    is_zero = series.clock == "step" and first.step == 0
    words = f"the earliest checkpoint, {name_of(first.path)}"
    if series.clock == "time":
        words += ", and steps are files by the time of writing, as they do not say theirs"
    elif series.clock == "epoch":
        words += f" (epoch {first.step}), and steps are epochs, as the files do not say theirs"
    else:
        words += f" (step {first.step})"
    if reading.loss is not None:
        words += "; losses are those on the probe"
    tracker = KernelTracker(
        probe,
        reference=words,
        reference_is_start=is_zero or reading.first_is_start,
        **settings,
    )
    tracker.warmup_steps = _NEVER
    if series.clock == "step":
        share = int(_WARMUP_SHARE * (last.step - first.step))
        tracker.warmup_steps = max(_WARMUP_STEPS, share)
    return tracker


def _settings(
    series: Series, reading: CheckpointReading, tracker: KernelTracker, watched: RunFiles | None
) -> dict[str, Any]:
    """All that decides the numbers besides the weights; the anchors are files among the others."""
    first = series.entries[0]
    reference = first.path if watched is None else watched.reference
    over = (e for e in series.entries if e.step - first.step >= tracker.warmup_steps)
    warmup = next(over, None)
    return {
        **reading.about,
        "ntkwatch": version("ntkwatch"),
        "torch": torch.__version__,
        "probe": tracker.probe.fingerprint(),
        "weights": reading.weights,
        "prefix": reading.prefix,
        "first_is_start": reading.first_is_start,
        "clock": series.clock,
        "reference": digest_of(reference),
        "warmup": None if warmup is None else digest_of(warmup.path),
    }
