"""Whether ``max_overhead`` keeps its promise: real trainings at several budgets, and none.

Run: ``python benchmarks/overhead.py [--minutes 3] [--budgets 0.005 0.02 0.1] [--models resnet]``

Each line is a training in a process of its own, all of a model over the same steps: as many as the
unwatched one takes for the minutes asked for. Printed are the share that was promised and the one
that the monitor says it took, how many observations that paid for (brief ones are those without a
kernel), and wall and processor time of the whole fit beside the unwatched one's. The last two are a
check from outside of what the monitor says of itself; on a machine that does other things besides,
processor time is the better one of them.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import apart, forget_peak, machine, peak_bytes, table
from trained import TRAININGS, fit

_HEAD = ("promised", "took", "seconds", "observations", "brief", "wall s", "more", "cpu s", "more")
_TRIAL = 12  # steps that tell the pace, after as many to warm up


def train(model: str, steps: int, share: float, threads: int) -> dict[str, Any]:
    """Train, watched if a share is given, and return what that took."""
    torch.set_num_threads(threads)
    from ntkwatch import NTKMonitor  # an unwatched run has not even imported it

    watch = [NTKMonitor(max_overhead=share, on_error="raise")] if share else []
    with tempfile.TemporaryDirectory() as folder:
        forget_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        fit(model, Path(folder), steps, watch)
        found: dict[str, Any] = {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "peak": peak_bytes(),
        }
    if watch:
        history = watch[0].history
        assert history.cost is not None
        found |= {"share": history.cost.share, "spent": history.cost.seconds}
        found |= {"observations": len(history), "brief": history.cost.brief}
        found["steps"] = [seen.step for seen in history]
        found["seconds"] = [round(seen.seconds, 3) for seen in history]
        found["verdict"] = str(watch[0].verdict.label if watch[0].verdict else None)
    return found


def pace(model: str, threads: int) -> dict[str, Any]:
    """Return how long a step takes."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, Path(folder), _TRIAL, [])
        began = time.perf_counter()
        fit(model, Path(folder), _TRIAL, [])
        return {"step": (time.perf_counter() - began) / _TRIAL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="*", choices=list(TRAININGS), default=["cnn", "transformer"]
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="of each unwatched training")
    parser.add_argument("--steps", type=int, help="so many instead of so many minutes")
    parser.add_argument("--watched-only", action="store_true", help="no unwatched run beside")
    parser.add_argument("--budgets", nargs="*", type=float, default=[0.005, 0.02, 0.1])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--details", action="store_true", help="steps and seconds of observations")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        asked = given.child.pop("what")
        print(json.dumps({"pace": pace, "train": train}[asked](**given.child)))
        return
    print(machine(given.threads))
    for model in given.models:
        settings = {"model": model, "threads": given.threads}
        steps = given.steps
        if steps is None:
            step = apart(__file__, {"what": "pace", **settings})["step"]
            steps = max(1, round(60 * given.minutes / step))
        settings |= {"what": "train", "steps": steps}
        print(f"\n{TRAININGS[model]}: {steps} steps", flush=True)
        alone, rows = None, []
        if not given.watched_only:
            alone = apart(__file__, {**settings, "share": 0.0})
            rows.append(_row(0.0, alone, alone))
        for share in given.budgets:
            found = apart(__file__, {**settings, "share": share})
            rows.append(_row(share, found, alone))
            if given.details:
                print(share, found, flush=True)
        print(table(("", *_HEAD), rows), flush=True)


def _row(share: float, found: dict[str, Any], alone: dict[str, Any] | None) -> list[str]:
    if "failed" in found:
        return ["FAILED", f"{share:.1%}", *["-"] * (len(_HEAD) - 1)]
    outside = [
        cell
        for key in ("wall", "cpu")
        for cell in (
            f"{found[key]:.1f}",
            "-" if alone is None else f"{found[key] / alone[key] - 1:+.1%}",
        )
    ]
    if not share:
        return ["alone", *["-"] * 5, *outside]
    kept = "kept" if found["share"] <= share else "NOT KEPT"
    seen = [f"{found['observations']}", f"{found['brief']}"]
    took = [f"{share:.1%}", f"{found['share']:.2%}", f"{found['spent']:.2f}"]
    return [kept, *took, *seen, *outside]


if __name__ == "__main__":
    main()
