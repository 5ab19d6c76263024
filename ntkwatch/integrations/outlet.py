"""Where a watched run's numbers go: its loggers, TensorBoard, its folder."""

import logging
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ntkwatch.integrations.tensorboard import (
    is_writer,
    log_kernel_picture,
    log_layout,
    log_spectrum,
    log_verdict,
    scalars_of,
)
from ntkwatch.kernel.spectrum import eigenvalues
from ntkwatch.report.html import render_html
from ntkwatch.watch.bands import Strength
from ntkwatch.watch.plain import to_plain
from ntkwatch.watch.records import Observation
from ntkwatch.watch.store import RunFiles
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.verdict import Verdict

__all__ = ["Outlet", "OutletSettings"]

_log = logging.getLogger("ntkwatch")

_PICTURES = 10  # TensorBoard keeps ten images of a tag; more would drop some at random


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
        self._writers: list[Any] | None = None
        self._shown: Strength | None = None
        self._pictures = 0

    @property
    def writers(self) -> list[Any]:
        """The loggers' summary writers; asking for one makes its files, so it is done late."""
        if self._writers is None:
            found = [_experiment(logger) for logger in self._loggers]
            self._writers = [writer for writer in found if is_writer(writer)]
        return self._writers

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
        if self._settings.custom_scalars:
            for writer in self.writers:
                log_layout(writer, self._settings.name)

    def observed(
        self,
        tracker: KernelTracker,
        observation: Observation,
        verdict: Verdict,
        files: RunFiles,
        *,
        last: bool = False,
    ) -> None:
        """Write one observation to the folder, to every logger and to TensorBoard.

        Args:
            tracker: That observed.
            observation: What it saw.
            verdict: As of it.
            files: The run's folder.
            last: Whether training is over.
        """
        x = observation.step if observation.logged_step is None else observation.logged_step
        scalars = {
            f"{self._settings.name}/{tag}": value
            for tag, value in scalars_of(observation, verdict).items()
        }
        news, self._shown = last or verdict.strength != self._shown, verdict.strength
        actions: list[Callable[[], object]] = [lambda: files.append(observation)]
        if self._settings.save_kernels and tracker.kernel is not None:
            kernel = tracker.kernel.trace
            actions.append(lambda: files.write_kernel(observation.step, kernel))
        actions += [partial(logger.log_metrics, scalars, step=x) for logger in self._loggers]
        # So that EarlyStopping and ModelCheckpoint can monitor our tags.
        monitored = {tag: torch.tensor(value) for tag, value in scalars.items()}
        actions.append(lambda: self._metrics.update(monitored))
        actions.append(lambda: self._show(tracker, verdict, x, news=news))
        _do_all(actions)

    def _show(self, tracker: KernelTracker, verdict: Verdict, x: int, *, news: bool) -> None:
        name = self._settings.name
        kernel = None if tracker.kernel is None else tracker.kernel.trace
        reference = None if tracker.last_reference is None else tracker.last_reference.kernel
        probe = tracker.last_probe
        classes = probe.targets if probe.has_classes else None
        for writer in self.writers:
            if news:
                log_verdict(writer, f"{name}/verdict", verdict, step=x)
            if kernel is None or reference is None:
                continue
            log_spectrum(writer, f"{name}/log10_eigenvalues", eigenvalues(kernel), step=x)
            if news and self._pictures < _PICTURES:
                order = None if classes is None else classes.tolist()
                log_kernel_picture(
                    writer, f"{name}/kernel", kernel, reference, step=x, classes=order
                )
        self._pictures += news

    def finish(self, tracker: KernelTracker, verdict: Verdict, files: RunFiles) -> None:
        """Write the verdict and the report."""
        cost = tracker.history.cost
        about = {} if cost is None else {"cost": to_plain(cost)}
        files.write_json("verdict.json", {**verdict.to_plain(), **about})
        title = f"{tracker.history.run.model.get('class', 'run')} in {files.folder}"
        files.write_text("report.html", render_html(tracker.history, verdict, title=title))


def _do_all(actions: Sequence[Callable[[], object]]) -> None:
    """Do all that can be done, then raise the first failure: one sink must not stop others."""
    failures: list[Exception] = []
    for action in actions:
        try:
            action()
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _experiment(logger: Any) -> Any:
    """What a logger writes with; some reach for a server at this moment, and may fail to."""
    try:
        return getattr(logger, "experiment", None)
    except Exception as error:  # whatever it is, its scalars may still arrive
        _log.debug("%s has no experiment: %s", type(logger).__name__, error)
        return None
