"""Which plots the page of one run shows.

Nothing here knows how a curve becomes a picture (``drawing``) or where it stands on a page.
"""

import math
from collections.abc import Callable

from ntkwatch.report.colours import COLOURS, DASHES
from ntkwatch.report.columns import BY_KEY, value_of
from ntkwatch.report.curve import Curve, Point
from ntkwatch.report.drawing import Axis, Drawing, draw
from ntkwatch.report.heatmap import timeline_drawings
from ntkwatch.report.layer_curves import layer_curves
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import Observation
from ntkwatch.watch.verdict.verdict import Bands, Verdict

__all__ = ["axis_title", "edges_of", "points", "points_of", "run_drawings"]

# Thin lines beyond so many are a hairball; the page's table lists every layer.
_LAYERS_SHOWN = 12


def run_drawings(history: History, verdict: Verdict) -> list[Drawing]:
    """Return the plots of one run.

    Args:
        history: Its observations.
        verdict: Whose bands are shaded.

    Returns:
        Those of which there is something to draw.
    """
    bands = verdict.bands
    drawings = [
        _error(history, bands),
        _angles(history, bands),
        *timeline_drawings(verdict),
        _kernel(history),
        _eigenvalues(history),
        _displacement(history),
        _alignment(history, bands),
        _single(history, "effective_rank"),
        _single(history, "loss", log=True),
        _stability(history),
    ]
    return [drawing for drawing in drawings if drawing is not None]


# One run. -----------------------------------------------------------------------------------------


def _error(history: History, bands: Bands) -> Drawing | None:
    key = "linearization_error"
    return draw(
        [
            Curve(name="since the start", points=points(history, key)),
            Curve(
                name="since the start, weight decay followed",
                points=points_of(
                    history,
                    lambda o: o.linearization_error_decayed,
                    interval=lambda o: o.intervals.get("linearization_error_decayed"),
                ),
                colour=COLOURS[2],
            ),
            *_since_warmup(history, key),
        ],
        Axis(title=axis_title(key), log=True, edges=edges_of(key, bands)),
        id="linearization-error",
        title="Linearization error",
        caption=f"{BY_KEY[key].meaning} The verdict rests on this number first.",
    )


def _angles(history: History, bands: Bands) -> Drawing | None:
    key = "layer_angle_median"
    median = Curve(name="median of the layers", points=points(history, key), width=3.2)
    layers, said = layer_curves(history, lambda o: o.layer_angle, shown=_LAYERS_SHOWN)
    return draw(
        [median, *_since_warmup(history, key), *layers],
        Axis(title="angle (rad)", log=True, edges=edges_of(key, bands)),
        id="layer-angles",
        title="Layer angles",
        caption=f"{BY_KEY[key].meaning} Thin lines are single layers; the names below show and "
        f"hide them.{said}",
    )


def _kernel(history: History) -> Drawing | None:
    change, scale = BY_KEY["relative_kernel_change"], BY_KEY["kernel_scale"]
    return draw(
        [
            Curve(name=change.title, points=points(history, change.key)),
            Curve(name=scale.title, points=points(history, scale.key), colour=COLOURS[1]),
        ],
        Axis(title="no unit"),
        id="kernel-change",
        title="Kernel: change and growth",
        caption="A large relative change with a large ln scale is mostly growth; without it, the "
        "kernel turned.",
    )


def _eigenvalues(history: History) -> Drawing | None:
    count = max((len(o.top_eigenvalues) for o in history), default=0)
    curves = [
        Curve(
            name=f"eigenvalue {k + 1}",
            points=points_of(history, _item(k)),
            colour=COLOURS[k % len(COLOURS)],
            dash=DASHES[k // len(COLOURS) % len(DASHES)],
            width=2.8 if k == 0 else 1.5,
        )
        for k in range(count)
    ]
    return draw(
        curves,
        Axis(title="eigenvalue of the trace kernel", log=True),
        id="top-eigenvalues",
        title="Top eigenvalues",
        caption="Lazy training leaves them where they are; in feature learning a few rise above "
        "the rest. Not divided by N.",
    )


def _item(k: int) -> Callable[[Observation], float | None]:
    return lambda o: o.top_eigenvalues[k] if k < len(o.top_eigenvalues) else None


def _displacement(history: History) -> Drawing | None:
    column = BY_KEY["relative_displacement"]
    whole = Curve(name="all watched weights", points=points(history, column.key), width=3.2)
    layers, said = layer_curves(history, lambda o: o.layer_relative_displacement, shown=0)
    return draw(
        [whole, *layers],
        Axis(title=axis_title(column.key)),
        id="displacement",
        title="Relative displacement of the weights",
        caption=column.meaning + said,
    )


def _alignment(history: History, bands: Bands) -> Drawing | None:
    column = BY_KEY["target_alignment"]
    lines: tuple[tuple[float, str], ...] = ()
    first = history[0] if len(history) else None
    if first and first.target_alignment is not None and first.target_alignment_null_sd:
        height = first.target_alignment + bands.aligned_sd * first.target_alignment_null_sd
        lines = ((height, f"start + {bands.aligned_sd:g} permutation s.d."),)
    caption = column.meaning
    if lines:
        caption += " Above the dotted line the kernel turned toward the task."
    return draw(
        [Curve(name=column.title, points=points(history, column.key))],
        Axis(title=axis_title(column.key), lines=lines),
        id="target-alignment",
        title="Target alignment",
        caption=caption,
    )


def _stability(history: History) -> Drawing | None:
    """The largest eigenvalue against 2 over the rate, as rates, so that momentum is in it, too."""
    limit = points_of(history, lambda o: o.max_stable_lr)
    used = points_of(history, _learning_rate)
    if not used:
        return None
    return draw(
        [
            Curve(name="largest stable one on the present kernel", points=limit, width=2.8),
            Curve(name="in use", points=used, colour=COLOURS[1], dash="dash"),
        ],
        Axis(title="learning rate", log=True),
        id="stability",
        title="Learning rate and its limit",
        caption="Without momentum the limit is 2 over the largest eigenvalue of the loss's "
        "curvature on frozen features. A rate above it cannot last: the loss rises until the "
        "kernel has moved to where the rate is below its limit, or training diverges.",
    )


def _learning_rate(observation: Observation) -> float | None:
    limit, edge = observation.max_stable_lr, observation.edge_of_stability
    return None if limit is None or edge is None else limit * edge


def _single(history: History, key: str, *, log: bool = False) -> Drawing | None:
    column = BY_KEY[key]
    return draw(
        [Curve(name=column.title, points=points(history, key))],
        Axis(title=axis_title(key), log=log),
        id=key.replace("_", "-"),
        title=column.title.capitalize(),
        caption=column.meaning,
    )


def _since_warmup(history: History, key: str) -> list[Curve]:
    anchors = {o.since_warmup.anchor_step for o in history if o.since_warmup is not None}
    if not anchors:
        return []
    found = points_of(
        history, lambda o: None if o.since_warmup is None else getattr(o.since_warmup, key)
    )
    name = f"since warm-up (step {min(anchors)})"
    return [Curve(name=name, points=found, colour=COLOURS[1], dash="dash")]


# Points and axes. ---------------------------------------------------------------------------------


def points(history: History, key: str) -> tuple[Point, ...]:
    """Return one number over steps, with its intervals.

    Args:
        history: A run's observations.
        key: Of a column.

    Returns:
        A point per observation that has the number.
    """
    return points_of(history, lambda o: value_of(o, key), interval=lambda o: o.intervals.get(key))


def points_of(
    history: History,
    read: Callable[[Observation], float | None],
    *,
    interval: Callable[[Observation], tuple[float, float] | None] = lambda _: None,
    at: Callable[[Observation], float | None] = lambda o: o.step,
) -> tuple[Point, ...]:
    """Return any number of the observations against any other.

    Args:
        history: A run's observations.
        read: The number.
        interval: Its interval, where there is one.
        at: What it is drawn against; the step, unless told otherwise.

    Returns:
        A point per observation that has both numbers.
    """
    found: list[Point] = []
    for observation in history:
        x, y = at(observation), read(observation)
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y):
            found.append((x, y, interval(observation)))
    return tuple(found)


def axis_title(key: str) -> str:
    """Return what stands at the axis of a column.

    Args:
        key: Of the column.

    Returns:
        Its title, with the unit where it has one.
    """
    column = BY_KEY[key]
    return f"{column.title} ({column.unit})" if column.unit else column.title


def edges_of(key: str, bands: Bands) -> tuple[float, float] | None:
    """Return the two edges between the bands of a number.

    Args:
        key: Of its column.
        bands: The thresholds of the verdict.

    Returns:
        The end of the lazy and the start of the feature-learning band, or None without bands.
    """
    if key == "linearization_error":
        return bands.lazy_error, bands.feature_error
    if key == "layer_angle_median":
        return bands.lazy_angle, bands.feature_angle
    return None
