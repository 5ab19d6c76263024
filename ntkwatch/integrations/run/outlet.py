"""Where a watched run's numbers go: its loggers, their dashboards, its folder."""

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ntkwatch.integrations.dashboard.actions import do_all
from ntkwatch.integrations.dashboard.board import Dashboard
from ntkwatch.integrations.dashboard.tensorboard import scalars_of
from ntkwatch.report.html import render_html
from ntkwatch.report.kept_kernels import read_kernel_pair
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.plain import to_plain
from ntkwatch.watch.record.records import Gap, Observation
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.verdict.verdict import Verdict, judge

__all__ = ["FOLDER", "Outlet", "OutletSettings", "Trying"]

# Given what is written and where, keeps a failure to write it away from what is written next.
Trying = Callable[[str, str], AbstractContextManager[None]]
_STRENGTH, _SHARE = "strength", "overhead_share"  # tags
_UNMOVED = ("linearization_error", _STRENGTH)  # tags that the reference has no value of
FOLDER, _PAGES = "the run's folder", "the TensorBoard logger"


def as_it_comes(what: str, sink: str) -> AbstractContextManager[None]:
    """Let a failure to write through: there is no training to keep it away from."""
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutletSettings:
    """What to write.

    Attributes:
        name: Prefix of tags.
        save_kernels: Whether to write each kernel to a file.
        custom_scalars: Whether to write TensorBoard's Custom Scalars page.
    """

    name: str
    save_kernels: bool
    custom_scalars: bool


class Outlet:
    """Writes what a tracker saw to loggers and to the run's folder.

    Args:
        loggers: Things with ``log_metrics(scalars, step)``, and perhaps a summary writer as
            ``experiment``.
        metrics: Where other callbacks look for values to monitor.
        settings: What to write.

    Attributes:
        is_behind: Whether the history holds more than its file does.
        found: By tag, what other callbacks find.
    """

    def __init__(
        self,
        loggers: Sequence[Any],
        metrics: MutableMapping[str, Any],
        settings: OutletSettings,
    ) -> None:
        self._loggers, self._metrics, self._settings = loggers, metrics, settings
        self._dashboard = Dashboard(
            loggers, metrics, name=settings.name, custom_scalars=settings.custom_scalars
        )
        self.is_behind = False
        self.found: dict[str, float] = {}
        self._first: Callable[[], None] | None = None
        self._tags = {_STRENGTH}

    def begin(self, tracker: KernelTracker, files: RunFiles, trying: Trying = as_it_comes) -> None:
        """Write what is fixed from the reference on: run, probe, reference, chart layout."""
        assert tracker.reference is not None
        with trying("the reference", FOLDER):
            self.is_behind = True
            files.write_probe(tracker.probe)
            files.write_anchor(tracker.reference)
            files.append(tracker.history.run)
            self.is_behind = False
        self.lay_out(trying)

    def append(self, record: Observation | Gap, tracker: KernelTracker, files: RunFiles) -> None:
        """Write one record to the history, and all that could not be written before.

        Args:
            record: The newest, which the tracker's history holds already.
            tracker: That observed.
            files: The run's folder.
        """
        assert tracker.reference is not None
        if self._first is not None:
            self._first()
            self._first = None
        if self.is_behind:
            if not files.can_go_on:
                files.write_probe(tracker.probe)
                files.write_anchor(tracker.reference)
            files.rewrite(tracker.history)
        else:
            self.is_behind = True
            files.append(record)
        self.is_behind = False

    def wait_for(self, first: Callable[[], None]) -> None:
        """Write nothing to the folder before something else has succeeded, which is tried again.

        Args:
            first: Raises an ``OSError`` while it cannot.
        """
        self._first, self.is_behind = first, True

    def begin_again(self, tracker: KernelTracker, files: RunFiles) -> None:
        """Write the reference anew, which the tracker had to take again, and all that follows."""
        assert tracker.reference is not None
        files.write_anchor(tracker.reference)
        files.rewrite(tracker.history)
        if self._settings.save_kernels and tracker.reference.kernel is not None:
            files.write_kernel(tracker.reference.step, tracker.reference.kernel)

    def lay_out(self, trying: Trying = as_it_comes) -> None:
        """Write TensorBoard's Custom Scalars page."""
        with trying("the chart layout", _PAGES):
            self._dashboard.lay_out()

    def observed(
        self,
        tracker: KernelTracker,
        observation: Observation,
        verdict: Verdict,
        files: RunFiles,
        trying: Trying = as_it_comes,
        *,
        last: bool = False,
    ) -> None:
        """Write one observation to the folder, to every logger and to TensorBoard.

        Args:
            tracker: That observed.
            observation: What it saw.
            verdict: As of it.
            files: The run's folder.
            trying: Keeps a failure of one sink away from the others.
            last: Whether training is over.
        """
        x = observation.step if observation.logged_step is None else observation.logged_step
        values = scalars_of(observation, verdict)
        self._tags |= values.keys()
        scalars = {f"{self._settings.name}/{tag}": value for tag, value in values.items()}
        what = f"what it saw at step {observation.step}"
        with trying(what, FOLDER):
            self.append(observation, tracker, files)
            if self._settings.save_kernels and tracker.kernel is not None:
                files.write_kernel(observation.step, tracker.kernel.trace)
            if tracker.history.angles is not None:
                files.write_angles(tracker.history.angles)
        self._log(scalars, x, what, trying)
        self._let_be_found({})
        with trying(what, _PAGES):
            do_all(self._dashboard.show(tracker, observation, verdict, values, x=x, last=last))

    def _log(self, scalars: Mapping[str, float], x: int, what: str, trying: Trying) -> None:
        for logger in self._loggers:
            with trying(what, f"the logger {type(logger).__name__}"):
                logger.log_metrics(dict(scalars), step=x)
        self._offer(scalars)

    def _offer(self, scalars: Mapping[str, float]) -> None:
        """Let EarlyStopping and ModelCheckpoint find these values of our tags."""
        self.found.update(scalars)
        self._metrics.update({tag: torch.tensor(value) for tag, value in scalars.items()})

    def recall(self, history: History) -> None:
        """Let other callbacks find what an earlier part of this run saw last."""
        if len(history):
            self._let_be_found(scalars_of(history[-1], judge(history)))

    def _let_be_found(self, values: Mapping[str, float]) -> None:
        """Give those who monitor a tag something where it has no value yet; nothing is logged."""
        known = {**dict.fromkeys(_UNMOVED, 0.0), **values}
        tags = {f"{self._settings.name}/{tag}": value for tag, value in known.items()}
        self._offer({tag: value for tag, value in tags.items() if tag not in self._metrics})

    def diverged(self, verdict: Verdict, x: int, trying: Trying = as_it_comes) -> None:
        """Write that there is nothing left to observe: NaN where the last numbers would stay.

        Lightning's EarlyStopping then ends the run, and its ModelCheckpoint takes NaN for the worst
        there is.

        Args:
            verdict: Which says so.
            x: x axis.
            trying: Keeps a failure away from the training.
        """
        gone = sorted(self._tags - {_SHARE})
        scalars = {f"{self._settings.name}/{tag}": math.nan for tag in gone}
        self._log(scalars, x, "that the model diverged", trying)
        # These may not be among what was logged so far.
        self._offer({f"{self._settings.name}/{tag}": math.nan for tag in _UNMOVED})
        with trying("the verdict", _PAGES):
            self._dashboard.tell(verdict, x)

    def finish(
        self,
        tracker: KernelTracker,
        verdict: Verdict,
        files: RunFiles,
        trying: Trying = as_it_comes,
    ) -> None:
        """Write the verdict and the report."""
        with trying("the verdict and the report", FOLDER):
            if self.is_behind:
                self.append(tracker.history[-1], tracker, files)
            self._write_report(tracker, verdict, files)
        with trying("the last pictures", _PAGES):
            do_all(self._dashboard.finish(tracker, verdict))

    def _write_report(self, tracker: KernelTracker, verdict: Verdict, files: RunFiles) -> None:
        history = tracker.history.unpacked()
        cost = history.cost
        about = {} if cost is None else {"cost": to_plain(cost)}
        files.write_json("verdict.json", {**verdict.to_plain(), **about})
        title = f"{history.run.model.get('class', 'run')} in {files.folder}"
        kernels = read_kernel_pair(files.folder, history)
        page = render_html(history, verdict, title=title, kernels=kernels)
        files.write_text("report.html", page)
