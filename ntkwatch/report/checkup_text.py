"""What was found out about a model before training, for a terminal."""

from collections import Counter

from ntkwatch.report.page import Page
from ntkwatch.report.words import MISSING, clean, counted, duration, flatten, number
from ntkwatch.watch.before_training.checkup import Checkup

__all__ = ["render_checkup_text"]

_SHOWN = 20  # parameters beyond this many are counted, not listed
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def render_checkup_text(checkup: Checkup, *, colour: bool = False, width: int = 100) -> str:
    """Return what was found out as text.

    Args:
        checkup: What was found out.
        colour: Use ANSI colours.
        width: Columns of the terminal, at least 60.

    Returns:
        Lines, the last one ended.
    """
    page = Page(colour=colour, width=width)
    page.line(f"ntkwatch: {clean(checkup.model)} before training")
    page.line()
    fully = checkup.no_kernel is None
    answer = "It can be watched." if fully else "It can be watched in part: samples have no kernel."
    page.line(page.painted(answer, "1"))
    if checkup.no_kernel is not None:
        page.prose(checkup.no_kernel)
    _routes(page, checkup)
    _costs(page, checkup)
    _forecast(page, checkup)
    page.section("Suggested")
    page.items(checkup.suggestions)
    arguments = ", ".join(f"{name}={value!r}" for name, value in checkup.settings.items())
    page.line(f"  NTKMonitor({arguments})")
    page.section("What was measured")
    spec = {k: v for k, v in checkup.spec.items() if k != "params"}
    page.items(f"{name}: {value}" for name, value in flatten({**spec, **checkup.probe}))
    page.items(checkup.notes)
    return page.text()


def _routes(page: Page, checkup: Checkup) -> None:
    if not checkup.routes:
        return
    total = sum(checkup.elements.values())
    page.section(f"How the kernel is computed ({counted(len(checkup.routes), 'parameter')})")
    share: Counter[str] = Counter()
    for name, route in checkup.routes.items():
        share[route] += checkup.elements[name]
    for route, elements in share.most_common():
        names = [name for name, taken in checkup.routes.items() if taken == route]
        page.line(
            f"  {route:<11} {counted(len(names), 'parameter'):>15}  "
            f"{elements / total:7.2%} of {total:,} weights"
        )
    others = [name for name, route in checkup.routes.items() if route != "structured"]
    page.items(f"{name}: {checkup.routes[name]}" for name in others[:_SHOWN])
    if len(others) > _SHOWN:
        page.line(f"  ... and {len(others) - _SHOWN} more")


def _costs(page: Page, checkup: Checkup) -> None:
    page.section("Cost of an observation, measured")
    page.line(f"  {'N':>6}  {'time':>12}  {'first time':>12}  {'memory':>10}")
    for cost in checkup.costs:
        page.line(
            f"  {cost.probe_size:>6}  {duration(cost.seconds):>12}  "
            f"{duration(cost.reference_seconds):>12}  {_size(cost.peak_bytes):>10}"
        )


def _forecast(page: Page, checkup: Checkup) -> None:
    page.section("Forecast")
    foretold = checkup.forecast
    if not foretold:
        page.prose(f"None: {checkup.no_forecast or 'it was not asked for'}")
        return
    page.prose(
        f"{foretold['strength']}, for training on these {foretold['samples']} samples to the last "
        "loss below; training on fewer is lazier."
    )
    page.line(
        f"  {'loss/start':>10}  {'of the net':>10}  {'linear. error':>13}  {'kernel change':>13}  "
        f"{'layer angle':>11}"
    )
    for point in foretold["points"]:
        page.line(
            f"  {number(point['loss_ratio']):>10}  {number(point['network_loss_ratio']):>10}  "
            f"{number(point['linearization_error']):>13}  "
            f"{number(point['relative_kernel_change']):>13}  "
            f"{number(point['layer_angle_median']):>11}"
        )
    page.items(f"loss/start {ratio}: {reason}" for ratio, reason in foretold["left_out"].items())


def _size(nbytes: int | None) -> str:
    if nbytes is None:
        return MISSING
    size, unit = float(nbytes), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{number(size)} {_UNITS[unit]}"
