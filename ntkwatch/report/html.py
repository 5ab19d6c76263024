"""A run, or several side by side, as one HTML page that needs nothing but itself.

Knows nothing of files. Every name is escaped by the templates, and the page's own policy lets no
script run but the two that it was made with, and nothing be loaded from anywhere.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ntkwatch.report.columns import BY_KEY, title_of, value_of
from ntkwatch.report.comparison import compare
from ntkwatch.report.comparison_figures import Run, comparison_drawings
from ntkwatch.report.core import summarise
from ntkwatch.report.drawing import Drawing
from ntkwatch.report.figures import run_drawings
from ntkwatch.report.gauge import gauges
from ntkwatch.report.kept_kernels import KernelPair
from ntkwatch.report.kernel_drawings import kernel_drawings
from ntkwatch.report.loss_drawings import loss_drawings
from ntkwatch.report.matching import Clock
from ntkwatch.report.since_rows import ANCHOR_HEAD, LAYER_HEAD, anchor_rows, layer_rows
from ntkwatch.report.words import clean, counted, number, shorten
from ntkwatch.watch.record.history import History
from ntkwatch.watch.verdict.verdict import Strength, Verdict

__all__ = ["render_comparison_html", "render_html"]

# What the table of runs at equal loss has room for.
_AT_EQUAL_LOSS = (
    "linearization_error",
    "layer_angle_median",
    "kernel_scale",
    "relative_kernel_change",
    "effective_rank",
    "target_alignment",
)


def render_html(
    history: History, verdict: Verdict, *, title: str, kernels: KernelPair | None = None
) -> str:
    """Return the report of a run as a page.

    Args:
        history: The run's observations.
        verdict: What ``judge`` said about them.
        title: Name of the run.
        kernels: Its first and last kernel (``read_kernel_pair``), where they were kept.

    Returns:
        One HTML document of about 5 MB, most of it the plotting library, which it carries along.
    """
    last = history[-1] if len(history) else None
    return _page(
        "report.html.j2",
        []
        if len(history) < 2
        else [
            *run_drawings(history, verdict),
            *loss_drawings(history, verdict.bands),
            *kernel_drawings(kernels, precision=str(history.run.spec.get("dtype"))),
        ],
        title=title,
        verdict=verdict,
        last=last,
        summary=summarise(history, verdict),
        gauges=() if last is None else gauges(last, verdict.bands),
        floors=[]
        if last is None
        else [(title_of(key), number(floor)) for key, floor in last.noise_floor.items()],
        # Thresholds were chosen, not measured: all their digits are shown.
        thresholds=[
            (title_of(key), f"{edge:g}") for key, edge in dataclasses.asdict(verdict.bands).items()
        ],
        since=_since(verdict),
        has_intervals=any(observation.intervals for observation in history),
    )


def _since(verdict: Verdict) -> list[tuple[Sequence[str], Sequence[Sequence[str]]]]:
    """The tables of the timeline, with their heads."""
    timeline = verdict.timeline
    if timeline is None or not timeline.errors:
        return []
    layers = layer_rows(timeline)
    return [(ANCHOR_HEAD, anchor_rows(timeline)), *([(LAYER_HEAD, layers)] if layers else [])]


def render_comparison_html(
    runs: Sequence[Run],
    *,
    title: str,
    facts: Mapping[str, Mapping[str, str]] | None = None,
    by: Clock = "ratio",
) -> str:
    """Return several runs side by side as a page.

    Args:
        runs: Name, observations and verdict of each.
        title: Heading of the page.
        facts: Per name of a run, further lines for its card, such as its test accuracy.
        by: What runs are matched by: "ratio" of the loss to its start, or "loss".

    Returns:
        One HTML document of about 5 MB, most of it the plotting library, which it carries along.
    """
    return _page(
        "comparison.html.j2",
        comparison_drawings(runs),
        title=title,
        comparison=compare(runs, facts or {}, by=by),
        matched=[(key, BY_KEY[key].title) for key in _AT_EQUAL_LOSS],
    )


def _page(template: str, drawings: Sequence[Drawing], **context: Any) -> str:
    scripts = (_plotly(), _resource("page.js"))
    return (
        _environment()
        .get_template(template)
        .render(
            drawings=drawings,
            data=_embedded({drawing.id: drawing.plot for drawing in drawings}),
            style=Markup(_resource("style.css")),
            scripts=[Markup(script) for script in scripts],
            policy=Markup(_policy(scripts)),
            **context,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ntkwatch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable,
    )
    environment.filters |= {"number": number, "shorten": shorten, "counted": counted}
    environment.globals |= {
        "strengths": [s for s in Strength if s is not Strength.UNDETERMINED],
        "value_of": value_of,
    }
    return environment


def _printable(value: Any) -> Any:
    """Every string that a template prints passes here before it is escaped."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _resource(name: str) -> str:
    text = files("ntkwatch.report").joinpath("templates", name).read_text(encoding="utf-8")
    # A browser reads CR LF as LF, and would then find another hash than we did.
    return text.replace("\r\n", "\n")


def _plotly() -> str:
    # Imported here, as it takes longer than all the rest of the command line.
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("\r\n", "\n").replace("</script", "<\\/script")


def _embedded(data: Mapping[str, Any]) -> Markup:
    """JSON inside a script element ends at "</script" whatever its quotes say; so no "<" in it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def _policy(scripts: Sequence[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()) for script in scripts]
    allowed = " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
    # Styles are written by the plotting library; images are what its download button makes.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
