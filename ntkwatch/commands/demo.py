"""``ntkwatch demo``."""

from pathlib import Path

import click

__all__ = ["demo"]


@click.command(short_help="Train a lazy and a feature-learning CNN and report on both.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder for the runs, the report and the dashboard's logs. Made if it is not there.",
)
def demo(out: Path | None) -> None:
    """Train a lazy and a feature-learning CNN on real digits and report on both.

    \b
    Examples:
      ntkwatch demo
      ntkwatch demo --out somewhere-new
    """
    from ntkwatch.demo import run_demo

    run_demo(out)
