"""Numbers, times and names as a reader sees them: rounded without lying, and never markup.

Nothing here knows of a run or of a page; strings go in and come out.
"""

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

__all__ = [
    "MISSING",
    "Number",
    "clean",
    "counted",
    "duration",
    "finite",
    "flatten",
    "number",
    "shorten",
    "with_interval",
]

MISSING = "–"

# Counts come as whole numbers, and so does a measured number that a JSON file holds as 2.
Number = float | int

# Names of parameters can run into thousands; of more than this many, only the ends are listed.
_LISTED = 12

# Below and above these, fixed notation hides the size of a number behind zeros.
_SMALLEST_FIXED, _LARGEST_FIXED = 1e-3, 1e5

# Control, format, surrogate: they move a terminal's cursor, turn text around or cannot be encoded.
_UNPRINTABLE = {"Cc", "Cf", "Cs"}


def number(value: Number | None, *, digits: int = 3, signed: bool = False) -> str:
    """Return a number for people.

    Args:
        value: Any number, or None for "not measured".
        digits: Significant digits.
        signed: Print a plus sign too.

    Returns:
        Text that is "0" only for exactly 0, and an en dash for None.
    """
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    sign = "+" if signed else ""
    if _SMALLEST_FIXED <= abs(value) < _LARGEST_FIXED:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:{sign}.{decimals}f}"
    return f"{value:{sign}.{digits - 1}e}"


def with_interval(value: Number | None, interval: tuple[Number, Number] | None) -> str:
    """Return a number, followed by its interval where there is one.

    Args:
        value: The number, or None.
        interval: Lower and upper end, or None.

    Returns:
        Such as "0.0310 [0.0270, 0.0360]".
    """
    if value is None or interval is None:
        return number(value)
    return f"{number(value)} [{number(interval[0])}, {number(interval[1])}]"


def duration(seconds: Number) -> str:
    """Return a time span in the units a reader would use.

    Args:
        seconds: The span in seconds.

    Returns:
        Such as "0.420 s" or "3 min 20 s".
    """
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def counted(count: int, thing: str) -> str:
    """Return a count of things.

    Args:
        count: How many.
        thing: What, in the singular; its plural ends in s.

    Returns:
        Such as "1 observation" or "7 observations".
    """
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def clean(text: object) -> str:
    """Return text in which nothing moves the cursor, hides or fails to encode.

    Args:
        text: A name from a model, a label from a data set, the text of an error.

    Returns:
        One line; white space becomes a blank, other control characters a replacement character.
    """
    return "".join(" " if character.isspace() else _printable(character) for character in str(text))


def _printable(character: str) -> str:
    return "�" if unicodedata.category(character) in _UNPRINTABLE else character


def shorten(text: str, limit: int) -> str:
    """Return text of at most ``limit`` characters; the middle goes, as names differ at their ends.

    Args:
        text: A name.
        limit: Most characters, at least 3.

    Returns:
        The text, with one ellipsis in it if it was too long.
    """
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return settings as pairs of a name and a printable value.

    Args:
        settings: Strings, numbers, lists and further mappings by name.
        prefix: Put before every name.

    Returns:
        The pairs, in the order of the mapping; what is nested becomes one line.
    """
    return [
        (f"{prefix}{clean(key).replace('_', ' ')}", _in_one_line(value))
        for key, value in settings.items()
    ]


def _in_one_line(value: Any) -> str:
    if isinstance(value, Mapping):
        items = [f"{clean(key)}: {_in_one_line(item)}" for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [_in_one_line(item) for item in value]
    else:
        return MISSING if value is None else clean(value)
    if len(items) > _LISTED:
        return f"{len(items)} in all: {', '.join(items[: _LISTED - 1])}, …, {items[-1]}"
    return ", ".join(items) or MISSING


def finite(value: Any) -> Any:
    """Return plain data without NaN and infinity, which JSON has no words for.

    Args:
        value: Numbers, strings, lists, tuples and dictionaries, nested.

    Returns:
        The same with None in place of each number that is not finite, and lists for tuples.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
