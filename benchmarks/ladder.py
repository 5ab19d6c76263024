"""What the package measures on the ground-truth ladder: the tables of ``docs/ladder.md``.

``python benchmarks/ladder.py`` runs every experiment of ``tests/regimes`` (a few minutes on one
core) and prints its figures; ``--rungs 6 7`` runs some of them. Means are geometric over seeds.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from ntkwatch import judge

from regimes import deep, digits, foretold, grokking, parity, solvable, stacked, text

WIDTHS = (64, 256, 1024, 4096)


def _row(*cells: Any) -> None:
    print("| " + " | ".join(c if isinstance(c, str) else f"{c:.3g}" for c in cells) + " |")


def _head(*cells: str) -> None:
    print()
    _row(*cells)
    _row(*["---"] * len(cells))


def _mean(runs: Iterable[Any], key: str) -> float:
    return stacked.geometric_mean([getattr(run, key) for run in runs])


def _labels(runs: Iterable[Any]) -> str:
    counts = Counter(run.label.split(" (")[0] for run in runs)
    return ", ".join(f"{label} {count}" for label, count in counts.most_common())


def solvable_network() -> None:
    keys = ("relative_kernel_change", "kernel_distance", "linearization_error")
    _head("strength", "rho", "D", "LE", "rk", "alignment", "read-out angle", "label at n=32")
    for strength in (0.1, 1.0, 3.0, 10.0):
        runs = [solvable.solved(strength, 8, seed=seed) for seed in range(4)]
        means = [sum(getattr(run.seen, key) for run in runs) / 4 for key in keys]
        rest = [sum(run.ratio for run in runs) / 4, sum(run.alignment for run in runs) / 4]
        angle = sum(run.seen.layer_angle["a"] for run in runs) / 4
        _row(strength, *means, *rest, angle, solvable.solved(strength, 32).verdict.label)


def output_scales() -> None:
    keys = ("change", "error", "distance", "ratio", "gap", "angle")
    for activation in stacked.ACTIVATIONS:
        _head(f"{activation}, alpha", "rho", "LE", "D", "rk", "G", "layer angle", "labels")
        for alpha, runs in stacked.output_scales(activation).items():
            _row(alpha, *(_mean(runs, key) for key in keys), _labels(runs))


def widths() -> None:
    _head("one hidden layer", *(f"rho at {m}" for m in WIDTHS), "slope", "D", "displacement")
    kinds = [("NTK", a) for a in stacked.ACTIVATIONS]
    kinds += [(kind, a) for kind in ("mean-field", "standard") for a in ("tanh", "ReLU")]
    for kind, activation in kinds:
        problems = (stacked.drawn(activation, width=m, parametrization=kind) for m in WIDTHS)
        ends = [stacked.train(problem) for problem in problems]
        runs = [[stacked.measured(end, i) for i in range(8)] for end in ends]
        means = {
            key: [_mean(each, key) for each in runs]
            for key in ("change", "distance", "relative_displacement")
        }
        slopes = [stacked.slope(WIDTHS, values) for values in means.values()]
        _row(f"{kind} {activation}", *means["change"], *slopes)


def depths() -> None:
    sizes = [64, 128, 256, 512]
    _head("deep", "hidden layers", "rho at 512", "slope", "displacement")
    for standard in (False, True):
        for activation in deep.ACTIVATIONS:
            for depth in (1, 2, 4):
                runs = [deep.deep_drifts(activation, depth, m, standard=standard) for m in sizes]
                changes = [_mean(each, "change") for each in runs]
                moves = [_mean(each, "relative_displacement") for each in runs]
                name = f"{'standard' if standard else 'NTK'} {activation}"
                exponents = (stacked.slope(sizes, means) for means in (changes, moves))
                _row(name, depth, changes[-1], *exponents)


def learning_rates() -> None:
    for activation in ("tanh", "ReLU"):
        _head(f"{activation}, c", "converged", "rho", "LE", "eta lambda_T", "peak", "labels")
        rates = (0.5, 1.9, 2.1, 2.5, 3.0, 3.8, 5.0)
        for c, end in stacked.learning_rates(activation, rates).items():
            runs = [stacked.measured(end, i) for i in range(8) if end.finished[i]]
            if not runs:
                _row(c, "0 of 8", *["-"] * 5)
                continue
            edges = [run.rate * run.top[1] for run in runs]
            spread = [f"{min(edges):.2f}-{max(edges):.2f}"]
            peaks = [run.peak for run in runs]
            spread.append(f"{min(peaks):.1f}-{max(peaks):.1f}x")
            numbers = (_mean(runs, key) for key in ("change", "error"))
            _row(c, f"{len(runs)} of 8", *numbers, *spread, _labels(runs))
    _head("digits, alpha", "eta lambda_max times curvature on the way")
    for alpha in (0.3, 30.0):
        _row(alpha, " ".join(f"{value:.2f}" for value in digits.sharpness_on_the_way(alpha)))


def quadratic_forms() -> None:
    _head("alpha", "fitted at", "test error then", "final", "rho then", "final", "D", "alignment")
    keys = ("fitted_at", "test_error_then", "test_error", "change_then", "change", "distance")
    for alpha, runs in grokking.grokked().items():
        _row(alpha, *(_mean(runs, key) for key in (*keys, "alignment")))


def parities() -> None:
    keys = ("acc_net", "acc_start", "acc_end", "gap", "error", "distance", "change", "rise")
    titles = ("acc net", "acc K_0", "acc K_T", "G", "LE", "D", "rho", "alignment rise", "R ratio")
    _head("alpha", *titles, "labels", "aligned", "needed")
    for alpha, runs in parity.parities().items():
        means = [sum(getattr(run, key) for run in runs) / len(runs) for key in keys]
        answers = [
            Counter(getattr(run, key) for run in runs).most_common(1)[0][0]
            for key in ("task_aligned", "features_needed")
        ]
        _row(alpha, *means, _mean(runs, "norm_ratio"), _labels(runs), *answers)


def images() -> None:
    titles = ("LE", "layer angle", "ln s (evaluation mode)", "acc net / K_0 / K_T", "label")
    _head("digits", "alpha", "epochs", *titles)
    for name in digits.NETS:
        for alpha in digits.ALPHAS:
            run = digits.learned(name, alpha)
            scores = " / ".join(f"{float(score):.3f}" for score in run.triple[:3])
            numbers = run.error, run.angle, run.running_scale
            _row(name, alpha, run.epochs, *numbers, scores, run.label)


def texts() -> None:
    _head("targets", "loss ratio", "LE since start", "since warm-up", "label", "task-aligned")
    for independent in (True, False):
        history = text.read(independent=independent)
        verdict, last = judge(history), history[-1]
        errors = (reading.linearization_error for reading in verdict.readings.values())
        name = "by chance" if independent else "of the text"
        _row(name, last.loss_ratio, *errors, verdict.label, verdict.use.task_aligned)


def forecasts() -> None:
    """The forecast over what training showed, from the smallest to the largest over seeds."""
    _head("said / found", "alpha", "rho found", "rho", "D", "LE")
    for activation in foretold.ACTIVATIONS:
        for alpha in (0.03, 0.1, 0.3, 1.0, 10.0):
            runs = [foretold.two_layers(activation, alpha, seed) for seed in range(8)]
            _ratios(activation, alpha, runs)
    for alpha in (0.25, 0.5, 1.0, 2.0, 4.0):
        _ratios("grokking", alpha, [foretold.grokked(alpha)])
    for optimizer in ("SGD", "Adam"):
        for alpha in (1.0, 10.0):
            runs = [foretold.transformer(optimizer, alpha, seed) for seed in range(4)]
            _ratios(f"transformer, {optimizer}", alpha, runs)


def _ratios(name: str, alpha: float, runs: list[foretold.Foretold]) -> None:
    spreads = []
    for key in foretold.Drift._fields:
        ratios = [getattr(run.said, key) / getattr(run.found, key) for run in runs]
        spreads.append(f"{min(ratios):.2f}-{max(ratios):.2f}" if runs[1:] else f"{ratios[0]:.2f}")
    found = stacked.geometric_mean([run.found.change for run in runs])
    _row(name, alpha, found, *spreads)


RUNGS: dict[str, tuple[Callable[[], None], ...]] = {
    "2": (solvable_network,),
    "6": (output_scales,),
    "7": (widths, depths),
    "8": (learning_rates,),
    "9": (quadratic_forms,),
    "10": (parities,),
    "11": (images,),
    "13": (forecasts,),
    "14": (texts,),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rungs", nargs="*", choices=RUNGS, default=list(RUNGS))
    torch.set_num_threads(1)
    for rung in parser.parse_args().rungs:
        began = time.perf_counter()
        print(f"\n### Rung {rung}")
        for experiment in RUNGS[rung]:
            experiment()
        print(f"\n{time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
