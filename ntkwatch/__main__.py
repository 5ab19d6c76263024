"""Where ``ntkwatch`` and ``python -m ntkwatch`` begin, and where every end gets its exit code.

Knows no command.
"""

import sys
from collections.abc import Sequence

import click

from ntkwatch.cli import cli

__all__ = ["main"]

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; those of the process if None.

    Returns:
        The exit code: 0 fine, 1 error, 2 usage, 3 ``--fail-on`` matched, 130 interrupted.
    """
    try:
        # Not standalone, as click would end an interrupted run with 1.
        result = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="ntkwatch",
            standalone_mode=False,
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
