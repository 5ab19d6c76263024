"""The command line: its commands together, and the one place where errors become messages.

No command holds any maths: it parses, calls, writes and exits. Neither torch nor Lightning is
imported before a command needs them.
"""

import errno
from typing import Any

import click

from ntkwatch.commands.check import check
from ntkwatch.commands.compare import compare
from ntkwatch.commands.demo import demo
from ntkwatch.commands.report import GATE, report
from ntkwatch.errors import NtkwatchError

__all__ = ["GATE", "cli"]


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

    \b
    Examples:
      ntkwatch demo
      ntkwatch report lightning_logs/version_0
      ntkwatch compare lightning_logs/version_0 lightning_logs/version_1
      ntkwatch check pkg.mod:Net --data pkg.mod:Data

    Exit codes: 0 fine, 1 error, 2 wrong usage, 3 --fail-on matched, 130 interrupted.
    """


for command in (demo, report, compare, check):
    cli.add_command(command)
