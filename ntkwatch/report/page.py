"""A page of text for a terminal: lines of a width, in colours or without.

Control characters in names never reach the terminal.
"""

import textwrap
from collections.abc import Iterable

from ntkwatch.report.words import clean
from ntkwatch.watch.verdict.verdict import Strength

__all__ = ["ANSI", "Page"]

# Blue and yellow are told apart by more eyes than green and red are.
ANSI = {
    Strength.STATIC: "37",
    Strength.LAZY: "36",
    Strength.TRANSITIONAL: "33",
    Strength.FEATURE_LEARNING: "35",
    Strength.UNDETERMINED: "37",
}
_NARROWEST = 60  # columns below which tables are no longer readable


class Page:
    """Lines that remember their width and whether they may be coloured."""

    def __init__(self, *, colour: bool, width: int) -> None:
        self._colour = colour
        self.width = max(width, _NARROWEST)
        self._lines: list[str] = []

    def painted(self, text: str, code: str) -> str:
        """Return text in an ANSI style, if there are colours."""
        return f"\x1b[{code}m{clean(text)}\x1b[0m" if self._colour else clean(text)

    def line(self, text: str = "") -> None:
        """Add a line as it is."""
        self._lines.append(text.rstrip())

    def section(self, heading: str) -> None:
        """Add a heading."""
        self.line()
        for line in textwrap.wrap(heading, self.width):
            self.line(self.painted(line, "1"))

    def prose(self, text: str, first: str = "  ", rest: str = "  ") -> None:
        """Add text, wrapped; ``first`` and ``rest`` stand before its lines."""
        self._lines.extend(
            textwrap.wrap(
                clean(text),
                self.width,
                initial_indent=first,
                subsequent_indent=rest,
                break_on_hyphens=False,
            )
        )

    def items(self, texts: Iterable[str]) -> None:
        """Add texts as a list."""
        for text in texts:
            self.prose(text, "  - ", "    ")

    def text(self) -> str:
        """Return all lines, the last one ended."""
        return "\n".join(self._lines) + "\n"
