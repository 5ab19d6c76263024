"""What the loggers of a watched run show besides scalars, and when: charts, pictures, texts.

Curves may have a point at every observation. Pictures cost a tenth of a second each and are kept
ten to a tag, so there are few, denser at the start; the first and the last are always among them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ntkwatch.integrations.dashboard.actions import do_all
from ntkwatch.integrations.dashboard.canvas import Pixels
from ntkwatch.integrations.dashboard.displays import Display, SummaryDisplay, display_of
from ntkwatch.integrations.dashboard.layer_map import layer_picture
from ntkwatch.integrations.dashboard.pictures import kernel_picture, spectrum_picture
from ntkwatch.integrations.dashboard.tensorboard import (
    SCALARS,
    layout_of,
    log_spectrum,
    margins_of,
)
from ntkwatch.integrations.dashboard.verdict_text import Turn, turns_of, verdict_text
from ntkwatch.kernel.spectrum import eigenvalues
from ntkwatch.watch.anchors.anchors import Anchor
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.tracker import KernelTracker
from ntkwatch.watch.verdict.verdict import Verdict

__all__ = ["Dashboard", "pictured"]

Actions = list[Callable[[], object]]

_PICTURES = 10  # TensorBoard keeps ten images of a tag; more would drop some at random
_SPARSER = 4  # each picture is taken at so many times the steps of the one before
# Lightning's loggers have the reference and the first step at one place of their x axis.
_SECOND = 2
# The scalars of every run that keeps the defaults, for a page that exists from the start.
_USUAL = {*SCALARS, "top_eigenvalue_1", "strength", "overhead_share"} - {"edge_of_stability"}


def pictured(steps: Sequence[int]) -> list[int]:
    """Return the observations that are shown as pictures, whatever the run's length.

    Args:
        steps: Of the whole observations until now, ascending.

    Returns:
        The first, then each at four times the steps since the first; one place is left for the
        last. What is chosen stays chosen as the run goes on.
    """
    chosen: list[int] = []
    for step in steps:
        due = not chosen or step - steps[0] >= max(_SECOND, _SPARSER * (chosen[-1] - steps[0]))
        if due and len(chosen) < _PICTURES - 1:
            chosen.append(step)
    return chosen


class Dashboard:
    """Shows a run on those of its loggers that can show more than scalars.

    Args:
        loggers: Of the run.
        metrics: What the run logs, by tag; read for whether there is a loss.
        name: Prefix of tags.
        custom_scalars: Whether to write TensorBoard's Custom Scalars page, and what it needs.
    """

    def __init__(
        self, loggers: Sequence[Any], metrics: Mapping[str, Any], *, name: str, custom_scalars: bool
    ) -> None:
        self._loggers, self._metrics = loggers, metrics
        self._name, self._custom_scalars = name, custom_scalars
        self._displays: list[Display] | None = None
        self._tags: set[str] = set()
        self._margins: set[str] = set()
        self._layout: object = None
        self._told_at = -1
        self._turns: list[Turn] | None = None
        self._pictured_at: int | None = None

    @property
    def displays(self) -> list[Display]:
        """How the loggers show things; asking for one makes its files, so it is done late."""
        if self._displays is None:
            found = [display_of(logger) for logger in self._loggers]
            self._displays = [display for display in found if display is not None]
        return self._displays

    @property
    def _writers(self) -> list[Any]:
        return [shown.writer for shown in self.displays if isinstance(shown, SummaryDisplay)]

    def lay_out(self) -> None:
        """Write the Custom Scalars page with the charts of most runs."""
        self._write_layout(_USUAL, ())

    def show(
        self,
        tracker: KernelTracker,
        observation: Observation,
        verdict: Verdict,
        tags: Collection[str],
        *,
        x: int,
        last: bool = False,
    ) -> Actions:
        """Return what there is to do to show an observation; each may fail without the others.

        Args:
            tracker: That observed.
            observation: What it saw.
            verdict: As of it.
            tags: Of the scalars that are logged of it, without prefix.
            x: Place on the loggers' x axis.
            last: Whether training is over.

        Returns:
            Things to do.
        """
        if not self.displays:
            return []
        history = tracker.history
        turned = self._note_turn(history, observation, verdict)
        actions: Actions = [lambda: self._chart(history, observation, verdict, tags, x)]
        if turned or last:
            actions.append(lambda: self.tell(verdict, x))
        if self._writers and tracker.kernel is not None:
            actions.append(lambda: self._spread(tracker, x))
        # A brief observation has no kernel to show; the last whole one was shown when it was new.
        shown = last or observation.step in pictured(history.whole_steps)
        if shown and not observation.is_brief:
            actions += self._pictures(tracker, verdict, x)
        return actions

    def finish(self, tracker: KernelTracker, verdict: Verdict) -> Actions:
        """Return what there is to do at the end of a run, whose last picture may be missing.

        Args:
            tracker: That observed.
            verdict: On the whole run.

        Returns:
            Things to do.
        """
        if not self.displays or len(tracker.history) == 0:
            return []
        final = tracker.history[-1]
        if tracker.kernel is None or final.step == self._pictured_at:
            return []
        x = final.step if final.logged_step is None else final.logged_step
        return [lambda: self.tell(verdict, x), *self._pictures(tracker, verdict, x)]

    # Charts. --------------------------------------------------------------------------------------

    def _chart(
        self,
        history: History,
        observation: Observation,
        verdict: Verdict,
        tags: Collection[str],
        x: int,
    ) -> None:
        if not self._custom_scalars:
            return
        margins = margins_of(observation, verdict)
        for writer in self._writers:
            for tag, value in margins.items():
                writer.add_scalar(f"{self._name}_margins/{tag}", value, x)
        self._tags.update(tags)
        self._margins.update(margins)
        if len(history) > 1:  # the reference has next to no numbers
            self._write_layout(self._tags, self._margins)

    def _write_layout(self, tags: Collection[str], margins: Collection[str]) -> None:
        """TensorBoard shows the page written last, so it may grow as numbers come to be known."""
        if not self._custom_scalars:
            return
        own = f"{self._name}/"
        losses = any("loss" in tag.lower() and not tag.startswith(own) for tag in self._metrics)
        layout = layout_of(self._name, tags, margins, losses=losses)
        if layout != self._layout:
            self._layout = layout
            do_all([partial(writer.add_custom_scalars, layout) for writer in self._writers])

    def _spread(self, tracker: KernelTracker, x: int) -> None:
        assert tracker.kernel is not None
        spectrum, precision = eigenvalues(tracker.kernel.trace), _precision(tracker)
        tag = f"{self._name}/log10_eigenvalues"
        for writer in self._writers:
            log_spectrum(writer, tag, spectrum, step=x, precision=precision)

    # Texts. ---------------------------------------------------------------------------------------

    def _note_turn(self, history: History, observation: Observation, verdict: Verdict) -> bool:
        if self._turns is None or len(history) == 1:
            # Of a resumed run, or of one whose reference was taken again.
            self._turns = turns_of(history)
            return True
        if self._turns[-1].label == verdict.label:
            return False
        self._turns.append(Turn.at(observation, verdict))
        return True

    def tell(self, verdict: Verdict, x: int) -> None:
        """Show a verdict with its past, never before one that was told: a run may have diverged."""
        self._told_at = x = max(x, self._told_at)
        text = verdict_text(verdict, self._turns or [])
        do_all([partial(d.text, f"{self._name}/verdict", text, x) for d in self.displays])

    # Pictures. ------------------------------------------------------------------------------------

    def _pictures(self, tracker: KernelTracker, verdict: Verdict, x: int) -> Actions:
        history, start = tracker.history, tracker.last_reference
        self._pictured_at = step = history[-1].step
        drawings: dict[str, Callable[[], Pixels | None]] = {}
        if tracker.kernel is not None and start is not None and start.kernel is not None:
            now, then = tracker.kernel.trace, start.kernel
            drawings["kernel"] = partial(
                kernel_picture, now, then, step=step, classes=_classes(tracker)
            )
            if len(history) > 1:
                drawings["spectrum"] = partial(_spectrum, tracker, now, then, start, step)
        if len(history) > 1:
            drawings["layer_angles"] = partial(layer_picture, history.observations, verdict.bands)
        return [partial(self._hang, tag, draw, x) for tag, draw in drawings.items()]

    def _hang(self, tag: str, draw: Callable[[], Pixels | None], x: int) -> None:
        image = draw()
        if image is not None:
            do_all([partial(d.picture, f"{self._name}/{tag}", image, x) for d in self.displays])


def _classes(tracker: KernelTracker) -> list[int] | None:
    probe = tracker.last_probe
    return probe.targets.tolist() if probe.has_classes and probe.targets is not None else None


def _precision(tracker: KernelTracker) -> torch.dtype:
    assert tracker.kernel is not None
    return getattr(torch, tracker.kernel.spec.dtype)


def _spectrum(
    tracker: KernelTracker, now: Tensor, then: Tensor, start: Anchor, step: int
) -> Pixels:
    spectra = (eigenvalues(now), eigenvalues(then))
    return spectrum_picture(*spectra, step=step, start=start.step, precision=_precision(tracker))
