"""``ntkwatch compare``: several runs side by side, at equal loss."""

from collections.abc import Callable, Sequence
from os.path import commonpath
from pathlib import Path
from typing import Any

import click

from ntkwatch.commands.output import chosen_form, output_options, wants_colour, width, write_page
from ntkwatch.watch.record.history import find_history, read_history
from ntkwatch.watch.verdict.verdict import judge

__all__ = ["compare"]


@click.command(short_help="See several runs side by side, at equal loss.")
@click.argument("runs", metavar="RUN...", nargs=-1, type=click.Path(path_type=Path))
@output_options(("text", "html", "markdown", "json"))
@click.option(
    "--match",
    "by",
    type=click.Choice(["ratio", "loss"]),
    default="ratio",
    show_default=True,
    help="Match runs by the share of the loss at the start that is left, or by the loss itself.",
)
@click.option(
    "--anyway",
    is_flag=True,
    help="Also where the kernels differ in probe or settings, which the page then says.",
)
def compare(
    runs: tuple[Path, ...],
    form: str | None,
    as_json: bool,
    output: Path | None,
    no_color: bool,
    by: Any,
    anyway: bool,
) -> None:
    """See RUNs side by side: which is the lazier one?

    Each RUN is a folder that a training logged to, or checkpoints/ that were reported on. Runs are
    matched by the loss that they reached, not by step, since every run moves further as its loss
    falls. Kernels of different kinds (other probe, outputs, parameters, BatchNorm statistics) are
    refused, with what differs.

    \b
    Examples:
      ntkwatch compare lightning_logs/version_0 lightning_logs/version_1
      ntkwatch compare narrow wide wider --format html -o widths.html
    """
    form = chosen_form(form, as_json=as_json)
    files = [find_history(run) for run in runs]
    if len({file.resolve() for file in files}) < max(2, len(files)):
        raise click.UsageError("name two runs or more to compare, each once.")
    histories = [read_history(file) for file in files]
    names = _short(runs)
    judged = [(n, history, judge(history)) for n, history in zip(names, histories, strict=True)]
    if not anyway:
        from ntkwatch.report.unlike import check_comparable

        check_comparable(judged)
    render = _renderer(form, colour=wants_colour(output, no_color=no_color))
    write_page(render(judged, title=f"{len(runs)} runs side by side", by=by), output)


def _short(runs: Sequence[Path]) -> list[str]:
    """Names without the folders that all have in common."""
    whole = [run.absolute() for run in runs]
    try:
        common = Path(commonpath(whole))
    except ValueError:  # on several drives
        return [str(run) for run in runs]
    short = [str(run.relative_to(common)) for run in whole]
    return [str(run) for run in runs] if "." in short else short


def _renderer(form: str, *, colour: bool) -> Callable[..., str]:
    """Import what one form needs."""
    if form == "html":
        from ntkwatch.report.html import render_comparison_html

        return render_comparison_html
    if form == "markdown":
        from ntkwatch.report.comparison_markdown import render_comparison_markdown

        return render_comparison_markdown
    if form == "json":
        from ntkwatch.report.comparison_json import render_comparison_json

        return render_comparison_json
    from ntkwatch.report.comparison_text import render_comparison_text

    def render(runs: Any, **rest: Any) -> str:
        return render_comparison_text(runs, colour=colour, width=width(), **rest)

    return render
