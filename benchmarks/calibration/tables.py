"""What the calibration found, as Markdown tables."""

import json
from collections.abc import Sequence
from pathlib import Path

from calibration.fitting import Judged, Run, fit_bands, judge_runs
from calibration.settings import Setting
from calibration.twin import FEATURE_GAP, LAZY_GAP
from ntkwatch.watch.record.history import read_history
from ntkwatch.watch.verdict.bands import Bands

__all__ = ["print_tables", "read_runs"]

_ANSWERS = ("lazy", "transitional", "feature-learning")
_LABELS = (*_ANSWERS, "undetermined")


def read_runs(settings: Sequence[Setting], folder: Path) -> list[Run]:
    """Return what was measured of the settings."""
    runs = []
    for setting in settings:
        found = json.loads((folder / setting.name / "answer.json").read_text())
        gaps = {int(step): (gap[0], gap[1]) for step, gap in found["gaps"].items()}
        history = read_history(folder / setting.name)
        runs.append(Run(setting=setting, history=history, gaps=gaps))
    return runs


def print_tables(settings: Sequence[Setting], folder: Path, *, each: bool = False) -> None:
    """Fit on one half, judge the other, and print both.

    Args:
        settings: All of them.
        folder: Where what was measured lies.
        each: Whether to list every training, too.
    """
    runs = read_runs(settings, folder)
    graded = [run for run in runs if run.gaps]
    fitted = fit_bands([run for run in graded if run.setting.fits])
    print(f"{len(graded)} graded trainings and {len(runs) - len(graded)} controls.")
    print(f"Answers: lazy below a gap of {LAZY_GAP}, feature-learning above {FEATURE_GAP}.\n")
    for words, bands in (("fitted", fitted), ("of the package", Bands())):
        print(
            f"Bands {words}: linearization error {bands.lazy_error} and {bands.feature_error}, "
            f"angle {bands.lazy_angle} and {bands.feature_angle}\n"
        )
    for words, half in (("fitted on", True), ("held out", False)):
        here = [run for run in runs if run.setting.fits is half]
        judged = judge_runs(here, Bands())
        print(f"### The half {words}, with the bands of the package\n")
        _print_confusion([one for one in judged if one.run.gaps])
        _print_controls([one for one in judged if not one.run.gaps])
    if each:
        _print_each(judge_runs(runs, Bands()))


def _print_confusion(judged: Sequence[Judged]) -> None:
    print(f"| answer | {' | '.join(_LABELS)} |")
    print(f"| --- |{' ---: |' * len(_LABELS)}")
    for answer in _ANSWERS:
        row = [one.label for one in judged if one.answer == answer]
        print(f"| {answer} | {' | '.join(str(row.count(label)) for label in _LABELS)} |")
    total = len(judged)
    exact = sum(one.label == one.answer for one in judged)
    silent = sum(one.label == "undetermined" for one in judged)
    opposite = sum({one.label, one.answer} == {"lazy", "feature-learning"} for one in judged)
    spoken = max(1, total - silent)
    print(
        f"\nExact band {exact}/{total} ({exact / total:.0%}; {exact / spoken:.0%} of those not "
        f"undetermined), undetermined {silent}/{total} ({silent / total:.0%}), "
        f"lazy and feature-learning confused {opposite}.\n"
    )


def _print_controls(judged: Sequence[Judged]) -> None:
    print(f"| control | {' | '.join(_LABELS)} |")
    print(f"| --- |{' ---: |' * len(_LABELS)}")
    for control in sorted({str(one.run.setting.control) for one in judged}):
        row = [one.label for one in judged if one.run.setting.control == control]
        print(f"| {control} | {' | '.join(str(row.count(label)) for label in _LABELS)} |")
    kept = sum(one.label != "feature-learning" for one in judged)
    print(f"\nNot feature-learning {kept}/{len(judged)}.\n")


def _print_each(judged: Sequence[Judged]) -> None:
    print("| group | alpha | seed | gaps since start | error | angle | gaps since warm-up |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for one in judged:
        setting, verdict = one.run.setting, one.verdict
        cells = [setting.group, f"{setting.alpha:g}", str(setting.seed)]
        for reading in verdict.readings.values():
            gaps = one.run.gaps.get(reading.anchor_step, ())
            cells.append(" ".join(f"{gap:.3f}" for gap in gaps))
            cells += [_short(reading.linearization_error), _short(reading.layer_angle_median)]
        print(f"| {' | '.join([*cells, verdict.label])} |")


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
