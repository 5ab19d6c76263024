"""Where a watched run's numbers go: its loggers, their dashboards, its folder."""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ntkwatch.integrations.actions import do_all
from ntkwatch.integrations.dashboard import Dashboard
from ntkwatch.integrations.tensorboard import scalars_of
from ntkwatch.report.html import render_html
from ntkwatch.watch.records import Observation
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.verdict import Verdict

__all__ = ["Outlet", "OutletSettings"]


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

    def begin(self, tracker: KernelTracker, files: RunFiles) -> None:
        """Write what is fixed from the reference on: run, probe, reference, chart layout."""
        assert tracker.reference is not None
        files.write_probe(tracker.probe)
        files.write_anchor(tracker.reference)
        files.append(tracker.history.run)
        self.lay_out()

    def begin_again(self, tracker: KernelTracker, files: RunFiles) -> None:
        """Write the reference anew, which the tracker had to take again, and all that follows."""
        assert tracker.reference is not None
        files.write_anchor(tracker.reference)
        files.rewrite(tracker.history)
        if self._settings.save_kernels and tracker.reference.kernel is not None:
            files.write_kernel(tracker.reference.step, tracker.reference.kernel)

    def lay_out(self) -> None:
        """Write TensorBoard's Custom Scalars page."""
        self._dashboard.lay_out()

    def observed(
        self,
        tracker: KernelTracker,
        observation: Observation,
        verdict: Verdict,
        files: RunFiles,
        *,
        share: float,
        last: bool = False,
    ) -> None:
        """Write one observation to the folder, to every logger and to TensorBoard.

        Args:
            tracker: That observed.
            observation: What it saw.
            verdict: As of it.
            files: The run's folder.
            share: Share of wall time spent on observing.
            last: Whether training is over.
        """
        x = observation.step if observation.logged_step is None else observation.logged_step
        values = scalars_of(observation, verdict, share=share)
        scalars = {f"{self._settings.name}/{tag}": value for tag, value in values.items()}
        actions: list[Callable[[], object]] = [lambda: files.append(observation)]
        if self._settings.save_kernels and tracker.kernel is not None:
            kernel = tracker.kernel.trace
            actions.append(lambda: files.write_kernel(observation.step, kernel))
        actions += [partial(logger.log_metrics, scalars, step=x) for logger in self._loggers]
        # So that EarlyStopping and ModelCheckpoint can monitor our tags.
        monitored = {tag: torch.tensor(value) for tag, value in scalars.items()}
        actions.append(lambda: self._metrics.update(monitored))
        actions += self._dashboard.show(tracker, observation, verdict, values, x=x, last=last)
        do_all(actions)

    def finish(self, tracker: KernelTracker, verdict: Verdict, files: RunFiles) -> None:
        """Write the verdict and the report, and show the last observation if nobody did."""
        title = f"{tracker.history.run.model.get('class', 'run')} in {files.folder}"
        actions: list[Callable[[], object]] = [
            lambda: files.write_json("verdict.json", verdict.to_plain()),
            lambda: files.write_text(
                "report.html", render_html(tracker.history, verdict, title=title)
            ),
        ]
        do_all([*actions, *self._dashboard.finish(tracker, verdict)])
