"""What users give to the monitor, in Python or in a configuration file: checked and resolved."""

import importlib
from typing import Any

from ntkwatch.errors import InputError
from ntkwatch.watch.held_out import check_held_out_metrics

__all__ = [
    "DRAWN",
    "check_held_out_named",
    "check_probe",
    "check_range",
    "named_object",
    "resolved",
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


def check_range(name: str, value: float, low: float, high: float | None = None) -> None:
    """Refuse a number out of range.

    Args:
        name: Of the argument.
        value: As given.
        low: Smallest allowed value; just not allowed where there is a largest one.
        high: Largest allowed value, or None.

    Raises:
        InputError: If it is out of range.
    """
    if value < low or (high is not None and not low < value <= high):
        bounds = f"at least {low}" if high is None else f"above {low} and at most {high}"
        raise InputError(f"{name}={value} is out of range: it must be {bounds}.")


def _is_path(name: str) -> bool:
    return "." in name or ":" in name
