"""What users give to the monitor, in Python or in a configuration file: checked and resolved."""

import importlib
from typing import Any

from ntkwatch.errors import InputError
from ntkwatch.jacobian.engine import check_choice
from ntkwatch.watch.counts import number_in, whole_in
from ntkwatch.watch.readings.held_out import check_held_out_metrics
from ntkwatch.watch.readings.settle import check_settings

__all__ = [
    "DRAWN",
    "check_held_out_named",
    "check_probe",
    "check_range",
    "check_watching",
    "named_object",
    "resolved",
    "tracker_settings",
]

DRAWN = ("auto", "val", "train")  # probes that are drawn from the run's own data


def named_object(name: str) -> Any:
    """Return the object that a dotted path such as "package.module:name" names.

    Args:
        name: Module and attribute, separated by a colon or the last dot.

    Returns:
        The object.

    Raises:
        InputError: If it cannot be imported.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # an imported file can fail in any way
        raise InputError(
            f"{name!r} cannot be imported ({type(error).__name__}: {error}), so it is not known "
            'what is meant. Give it as "package.module:name", with the package installed or in the '
            "current folder."
        ) from error


def resolved(setting: Any) -> Any:
    """Return a setting, imported if it is a dotted path; its own words are like "random:8"."""
    if isinstance(setting, str) and _is_path(setting) and not setting.startswith("random:"):
        return named_object(setting)
    return setting


def tracker_settings(**settings: Any) -> dict[str, Any]:
    """Return a callback's settings as arguments of ``KernelTracker``: dotted paths are imported."""
    named = ("forward", "outputs")
    found = {key: resolved(value) if key in named else value for key, value in settings.items()}
    check_settings(**found)
    return found


def check_watching(
    *,
    probe: Any,
    probe_size: int,
    resample_probe: bool,
    max_overhead: float,
    on_error: str,
    on_verdict: Any,
    name: str,
) -> None:
    """Refuse what no callback can do, in the words of its user's arguments.

    Args:
        probe: As given to the callback.
        probe_size: Probe points to draw.
        resample_probe: Whether every observation is to have a fresh probe.
        max_overhead: Largest share of wall time.
        on_error: "warn" or "raise".
        on_verdict: What is called with the verdict, or None.
        name: Prefix of tags.

    Raises:
        InputError: If an argument is out of range, or two do not go together.
    """
    check_choice("on_error", on_error, ("warn", "raise"))
    check_probe(probe)
    check_range("probe_size", probe_size, 2, whole=True)
    if not (on_verdict is None or callable(on_verdict)):
        raise InputError(
            f"on_verdict={on_verdict!r} cannot be called, so nobody would hear of it. Give "
            'a function of one argument, or its path, "package.module:name".'
        )
    if not (isinstance(name, str) and name):
        raise InputError(f"name={name!r} names no folder and no tags. Give a word, such as 'ntk'.")
    check_range("max_overhead", max_overhead, 0, 1)
    if resample_probe and not (isinstance(probe, str) and probe in DRAWN):
        raise InputError(
            "resample_probe=True draws a fresh probe at every observation, and probe= names "
            'one that is given. Use probe="auto", "val" or "train", or resample_probe=False.'
        )


def check_probe(probe: Any) -> None:
    """Refuse a word that names no probe.

    Args:
        probe: As given to the monitor.

    Raises:
        InputError: If it is a string of no known kind.
    """
    if isinstance(probe, str) and probe not in DRAWN and not _is_path(probe):
        raise InputError(
            f"probe={probe!r} is not known, so it is not clear where the probe comes from. Use "
            '"auto", "val", "train", a batch, a ProbeBatch, a probe.safetensors file or a dotted '
            'path such as "package.module:name".'
        )


def check_held_out_named(held_out: Any, metrics: str) -> None:
    """Refuse a word that names no held-out samples, and settings that measure nothing on them.

    Args:
        held_out: As given to the monitor.
        metrics: As given to the monitor.

    Raises:
        InputError: If it is so.
    """
    if isinstance(held_out, str) and held_out != "val" and not _is_path(held_out):
        raise InputError(
            f"held_out={held_out!r} is not known, so it is not clear which samples are meant. Use "
            '"val", a batch, a ProbeBatch, a probe.safetensors file or a dotted path such as '
            '"package.module:name".'
        )
    check_held_out_metrics(metrics)


def check_range(
    name: str, value: Any, low: float, high: float | None = None, *, whole: bool = False
) -> None:
    """Refuse a number out of range.

    Args:
        name: Of the argument.
        value: As given.
        low: Smallest allowed value; just not allowed where there is a largest one.
        high: Largest allowed value, or None.
        whole: Whether it must be a whole number.

    Raises:
        InputError: If it is no number, or out of range.
    """
    number = whole_in(value) if whole else number_in(value)
    if number is None:
        wanted = "whole number" if whole else "number"
        raise InputError(f"{name}={value!r} is no {wanted}, so it means nothing here. Give one.")
    if number < low or (high is not None and not low < number <= high):
        bounds = f"at least {low}" if high is None else f"above {low} and at most {high}"
        raise InputError(f"{name}={value} is out of range: it must be {bounds}.")


def _is_path(name: str) -> bool:
    return "." in name or ":" in name
