"""What keeps the kernels of two runs from being compared: settings and probes that differ.

Nothing here knows how that is shown.
"""

from collections.abc import Sequence
from typing import Any

from ntkwatch.errors import KernelMismatchError
from ntkwatch.report.comparison_figures import Run
from ntkwatch.report.words import clean
from ntkwatch.watch.record.history import History

__all__ = ["check_comparable", "differences"]

# Settings that make two kernels of one kind; how the model was called and by which engine do not.
_SETTINGS = ("outputs", "output_shape", "params", "dtype", "batchnorm", "trace", "mode")
_LISTED = 3


def differences(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return in which settings the runs' kernels differ, each run held against the first.

    Args:
        runs: Name, observations and verdict of each.

    Returns:
        One sentence per setting that differs; empty if the kernels are alike.
    """
    said = []
    for name, history, _ in runs[1:]:
        first, other = runs[0][0], runs[0][1]
        here, there = _kind_of(history), _kind_of(other)
        said += [
            f"{key}: {_shown(there[key], here[key])} in {clean(first)}, "
            f"{_shown(here[key], there[key])} in {clean(name)}"
            for key in there
            if there[key] != here[key]
        ]
    return tuple(said)


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs whose kernels are not of one kind.

    Args:
        runs: Name, observations and verdict of each.

    Raises:
        KernelMismatchError: If they differ in settings or probe, naming what differs.
    """
    found = (*differences(runs), *_unlike_kinds(runs))
    if found:
        raise KernelMismatchError(
            f"these runs hold kernels of different kinds ({'; '.join(found)}), so a difference "
            "between their numbers need not be one between the trainings. Watch them with one "
            "probe and the same settings (probe= takes the probe.safetensors of the other run), "
            "or add --anyway to see them side by side all the same."
        )


def _unlike_kinds(runs: Sequence[Run]) -> list[str]:
    """Of kernels that no bands were made for (sketched or coupled ones), which these are."""
    kinds = {name: history[-1].unjudged for name, history, _ in runs if len(history)}
    if len(set(kinds.values())) <= 1:
        return []
    return [f"{clean(name)}: {clean(kind)}" for name, kind in kinds.items() if kind is not None]


def _kind_of(history: History) -> dict[str, Any]:
    kind = {f"kernel setting {key}": history.run.spec.get(key) for key in _SETTINGS}
    return {"probe": history.run.probe.get("fingerprint"), **kind}


def _shown(value: Any, other: Any) -> str:
    """A setting for people; of long lists, what the other one lacks."""
    if not isinstance(value, list) or not isinstance(other, list) or len(value) <= _LISTED:
        return "unknown" if value is None else clean(value)
    own = [item for item in value if item not in other]
    more = ", ..." if len(own) > _LISTED else ""
    listed = f", such as {clean(', '.join(map(str, own[:_LISTED])))}{more}" if own else ""
    return f"{len(value)} in all, {len(own)} of its own{listed}"
