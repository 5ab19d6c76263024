"""The command line: what was recorded about a run, in words, and a demonstration.

No command holds any maths: it parses, calls, writes and exits. Neither torch nor Lightning is
imported before a command needs them.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ntkwatch.errors import NtkwatchError
from ntkwatch.watch.history import History, read_history
from ntkwatch.watch.verdict import Strength, Verdict, judge

__all__ = ["GATE", "cli"]

GATE = 3  # --fail-on matched; click keeps 1 for errors and 2 for usage

_WIDEST = 100  # columns of a text report
_FORMATS = ("text", "html", "markdown", "json")


class _Group(click.Group):
    """The one place where the library's errors become messages without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NtkwatchError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends quietly when nobody reads any more
                raise
            raise click.ClickException(f"{error}. The command stopped there.") from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ntkwatch", message="%(prog)s %(version)s")
def cli() -> None:
    """Watch the neural tangent kernel of a model while it trains.

    Says whether training was lazy or feature-learning, and how it knows.

    Exit codes: 0 fine, 1 error, 2 wrong usage, 3 --fail-on matched, 130 interrupted.
    """


@cli.command(short_help="Train a lazy and a feature-learning CNN and report on both.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder for the runs, the report and the dashboard's logs. Made if it is not there.",
)
def demo(out: Path | None) -> None:
    """Train a lazy and a feature-learning CNN on real digits and report on both."""
    from ntkwatch.demo import run_demo

    run_demo(out)


@cli.command(short_help="Report what was recorded about a RUN.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default=None,
    help="Form of the report; text, unless told otherwise.",
)
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    default=None,
    help="File to write, replaced in one piece; standard output, unless told otherwise.",
)
@click.option(
    "--fail-on",
    type=click.Choice([str(strength) for strength in Strength]),
    multiple=True,
    help="Exit with 3 if the verdict is this strength; may be given several times.",
)
@click.option(
    "--no-color",
    is_flag=True,
    help="No colours on a terminal. NO_COLOR in the environment does the same.",
)
@click.pass_context
def report(
    ctx: click.Context,
    run: Path,
    form: str | None,
    as_json: bool,
    output: Path | None,
    fail_on: tuple[str, ...],
    no_color: bool,
) -> None:
    """Report what was recorded about a RUN: was training lazy or feature-learning?

    RUN is the folder that the training logged to, such as lightning_logs/version_0, or the
    history.jsonl in it.
    """
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} contradict each other; give one.")
    form = "json" if as_json else form or "text"
    to_file = output is not None and str(output) != "-"
    history = read_history(run)
    verdict = judge(history)
    render = _renderer(form, colour=not to_file and _wants_colour(no_color))
    page = render(history, verdict, title=str(run))
    if output is not None and to_file:
        _write_file(output, page)
    else:
        _write_out(page)
    if verdict.strength in fail_on:
        ctx.exit(GATE)


def _renderer(form: str, *, colour: bool) -> Callable[..., str]:
    """Import what one form needs: the page's libraries take longer than all the rest."""
    if form == "html":
        from ntkwatch.report.html import render_html

        return render_html
    if form == "markdown":
        from ntkwatch.report.markdown import render_markdown

        return render_markdown
    if form == "json":
        from ntkwatch.report.json_report import render_json

        return render_json
    from ntkwatch.report.text import render_text

    def render(history: History, verdict: Verdict, *, title: str) -> str:
        return render_text(history, verdict, title=title, colour=colour, width=_width())

    return render


def _width() -> int:
    """No wider than reads well; a file or a pipe has no width of its own."""
    if not sys.stdout.isatty():
        return _WIDEST
    return min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)


def _wants_colour(no_color: bool) -> bool:
    refused = no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not refused and sys.stdout.isatty()


def _write_file(path: Path, page: str) -> None:
    from ntkwatch.report.files import write_whole

    try:
        write_whole(path, page)
    except OSError as error:
        raise click.ClickException(
            f"{path} cannot be written ({error.strerror or error}), so the report is nowhere. "
            "Give -o a file in a folder that exists and that you may write to."
        ) from error
    click.echo(f"Wrote {path}", err=True)


def _write_out(page: str) -> None:
    """Write to standard output; a reader who has seen enough (``| head``) is no error."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        # A terminal without Unicode shows question marks instead of a traceback.
        click.echo(page.encode(encoding, "replace").decode(encoding), nl=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
