"""Records as JSON-ready values, and back; what was read is checked against the annotations.

No torch here, and no file is touched.
"""

import dataclasses
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ntkwatch.watch.record.cost import Cost
from ntkwatch.watch.record.records import Gap, Observation, Reading, RunInfo

__all__ = ["cost_from_plain", "observation_from_plain", "run_info_from_plain", "to_plain"]

# Fields that hold a reading within a reading.
_NESTED = ("since_warmup", "parameters_only")


def to_plain(record: Reading | Gap | RunInfo | Cost) -> dict[str, Any]:
    """Return a record as JSON-ready values; empty fields are left out.

    Args:
        record: Any record of this module.

    Returns:
        A dictionary of numbers, strings, lists and dictionaries.
    """
    plain = dataclasses.asdict(record)
    for key in _NESTED:
        inner = getattr(record, key, None)
        if inner is not None:
            plain[key] = to_plain(inner)
    return {key: value for key, value in plain.items() if value not in (None, {}, (), [])}


def observation_from_plain(plain: dict[str, Any]) -> Observation:
    """Return the observation that ``to_plain`` wrote; unknown keys are ignored.

    Args:
        plain: One parsed line of a history.

    Returns:
        The observation.

    Raises:
        TypeError: If a required key is missing, or a value is not of its kind.
    """
    values = _reading_values(plain, Observation)
    return Observation(**_checked(values, Observation))


def _reading_values(plain: dict[str, Any], kind: type[Reading]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(kind)}
    values = {key: value for key, value in plain.items() if key in names}
    values["intervals"] = {key: tuple(pair) for key, pair in plain.get("intervals", {}).items()}
    for key, hint in get_type_hints(kind).items():
        if get_origin(hint) is tuple and isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    for key in _NESTED:
        if isinstance(values.get(key), dict):
            inner = _reading_values(values[key], Reading)
            values[key] = Reading(**_checked(inner, Reading))
    return values


def _checked(values: dict[str, Any], kind: type[Reading] | type[Cost]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise TypeError(f"{key} is {value!r}, which is not {hints[key]}")
    return values


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON is of an annotated kind."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(part, inner[1]) for part in value.values())
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        fits = isinstance(value, tuple) and len(value) == len(kinds)
        return fits and all(map(_fits, value, kinds))
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool) or kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def run_info_from_plain(plain: dict[str, Any]) -> RunInfo:
    """Return the run information that ``to_plain`` wrote; unknown keys are ignored.

    Args:
        plain: The parsed first line of a history.

    Returns:
        The run information.
    """
    names = {f.name for f in dataclasses.fields(RunInfo)}
    return RunInfo(**{key: value for key, value in plain.items() if key in names})


def cost_from_plain(plain: dict[str, Any]) -> Cost:
    """Return the cost that ``to_plain`` wrote; unknown keys are ignored.

    Args:
        plain: One parsed line of a history.

    Returns:
        The cost.
    """
    names = {f.name for f in dataclasses.fields(Cost)}
    return Cost(**_checked({key: plain[key] for key in plain if key in names}, Cost))
