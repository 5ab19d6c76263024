"""Which plots a page shows of several runs side by side.

Nothing here knows how a curve becomes a picture (``drawing``) or where it stands on a page.
"""

from collections.abc import Callable, Sequence

from ntkwatch.report.colours import COLOURS, DASHES, run_colours
from ntkwatch.report.columns import BY_KEY
from ntkwatch.report.curve import Curve, Point
from ntkwatch.report.drawing import Axis, Drawing, draw
from ntkwatch.report.figures import axis_title, edges_of, points, points_of
from ntkwatch.watch.record.history import History
from ntkwatch.watch.verdict.verdict import Bands, Verdict

__all__ = ["Run", "comparison_drawings"]

Run = tuple[str, History, Verdict]


def comparison_drawings(runs: Sequence[Run]) -> list[Drawing]:
    """Return plots that show several runs, one colour each.

    Args:
        runs: Name, observations and verdict of each; the bands of the first are shaded.

    Returns:
        Those of which there is something to draw.
    """
    if not runs:
        return []
    bands = runs[0][2].bands
    # As verdicts do: past what weight decay alone did.
    runs = [(name, _past_decay(history), verdict) for name, history, verdict in runs]
    drawings = [
        _shared(runs, "linearization_error", bands, log=True),
        _shared(runs, "layer_angle_median", bands, log=True),
        _error_against_loss(runs, bands),
        _shared(runs, "loss", bands, log=True),
        _shared(runs, "relative_kernel_change", bands, log=True),
        _shared(runs, "kernel_scale", bands),
        _shared(runs, "top_eigenvalue_1", bands, log=True),
        _shared(runs, "relative_displacement", bands, log=True),
        _shared(runs, "target_alignment", bands),
        _shared(runs, "effective_rank", bands),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def _past_decay(history: History) -> History:
    return History(history.run, tuple(observation.past_decay() for observation in history))


def _shared(runs: Sequence[Run], key: str, bands: Bands, *, log: bool = False) -> Drawing | None:
    title = BY_KEY[key].title
    heading = title if title.startswith("ln ") else title[:1].upper() + title[1:]
    return draw(
        _one_colour_each(runs, lambda history: points(history, key)),
        Axis(title=axis_title(key), log=log, edges=edges_of(key, bands)),
        id=key.replace("_", "-"),
        title=heading,
        caption=BY_KEY[key].meaning,
    )


def _error_against_loss(runs: Sequence[Run], bands: Bands) -> Drawing | None:
    """Training time differs between runs; the loss reached is the clock that they share."""
    key = "linearization_error"

    def read(history: History) -> tuple[Point, ...]:
        return points_of(
            history,
            lambda o: o.linearization_error,
            interval=lambda o: o.intervals.get(key),
            at=lambda o: o.loss_ratio if o.loss_ratio and o.loss_ratio > 0 else None,
        )

    return draw(
        _one_colour_each(runs, read, across="loss ratio"),
        Axis(title=axis_title(key), log=True, edges=edges_of(key, bands)),
        id="error-against-loss",
        title="Linearization error at equal loss",
        caption="Read from left to right as the loss falls: at the same loss, the lower curve is "
        "the lazier run.",
        across=Axis(title="training loss, as a share of its start", log=True, falling=True),
    )


def _one_colour_each(
    runs: Sequence[Run], read: Callable[[History], tuple[Point, ...]], *, across: str = "step"
) -> list[Curve]:
    colours = run_colours([verdict.strength for _, _, verdict in runs])
    return [
        Curve(
            name=name,
            points=read(history),
            colour=colours[place],
            dash=DASHES[place // len(COLOURS) % len(DASHES)],
            across=across,
        )
        for place, (name, history, _) in enumerate(runs)
    ]
