"""Where a command's result goes, and in which form: options and functions that commands share.

Knows no command and no maths.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["chosen_form", "output_options", "wants_colour", "width", "write_page"]

_WIDEST = 100  # columns of a text report

_Command = TypeVar("_Command", bound=Callable[..., Any])


def output_options(forms: Sequence[str]) -> Callable[[_Command], _Command]:
    """Return a decorator that adds --format, --json, -o and --no-color to a command.

    Args:
        forms: What the command can write; the first is the default.

    Returns:
        The decorator.
    """
    options = (
        click.option(
            "--format",
            "form",
            type=click.Choice(forms),
            default=None,
            help=f"Form of the result; {forms[0]}, unless told otherwise.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Short for --format json."),
        click.option(
            "-o",
            "--output",
            type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
            default=None,
            help="File to write, replaced in one piece; standard output, unless told otherwise.",
        ),
        click.option(
            "--no-color",
            is_flag=True,
            help="No colours on a terminal. NO_COLOR in the environment does the same.",
        ),
    )

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def chosen_form(form: str | None, *, as_json: bool, default: str = "text") -> str:
    """Return the form that was asked for in either of two ways.

    Args:
        form: As given to --format, or None.
        as_json: Whether --json was given.
        default: Without either.

    Returns:
        The form.

    Raises:
        click.UsageError: If the two contradict each other.
    """
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} contradict each other; give one.")
    return "json" if as_json else form or default


def width() -> int:
    """Return columns: no more than reads well; a file or a pipe has no width of its own."""
    if not sys.stdout.isatty():
        return _WIDEST
    return min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)


def wants_colour(output: Path | None, *, no_color: bool) -> bool:
    """Return whether what is written may be coloured: on a terminal that was not told otherwise."""
    refused = no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not _is_file(output) and not refused and sys.stdout.isatty()


def write_page(page: str, output: Path | None) -> None:
    """Write a result to a file, or to standard output.

    Args:
        page: All of it.
        output: The file; None or a dash for standard output.
    """
    if output is not None and _is_file(output):
        _write_file(output, page)
    else:
        _write_out(page)


def _is_file(output: Path | None) -> bool:
    return output is not None and str(output) != "-"


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
