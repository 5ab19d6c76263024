"""Fit the verdict's bands on one half of graded trainings, and judge the other half with them.

    python benchmarks/calibrate.py --keep calibration-runs

The answer to every training is found without a kernel, by training the network's linear twin (see
calibration/twin.py). What was measured is kept, so that a second call only fits and judges.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from calibration.settings import Setting, all_settings
from calibration.tables import print_tables
from calibration.training import train
from calibration.twin import twin_gaps

from ntkwatch.watch.record.history import append_record

_ANSWER = "answer.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    keep = {"type": Path, "default": Path("calibration-runs"), "metavar": "FOLDER"}
    parser.add_argument("--keep", help="where what was measured lies", **keep)
    parser.add_argument("--each", action="store_true", help="list every training, too")
    parser.add_argument(
        "--watch-again",
        action="store_true",
        help="train and watch again; the answers, which take no kernel, are kept",
    )
    asked = parser.parse_args()
    settings = all_settings()
    for number, setting in enumerate(settings):
        folder = asked.keep / setting.name
        if asked.watch_again or not (folder / _ANSWER).exists():
            print(f"{number + 1} of {len(settings)}: {setting.name}", file=sys.stderr, flush=True)
            _measure(setting, folder)
    print_tables(settings, asked.keep, each=asked.each)


def _measure(setting: Setting, folder: Path) -> None:
    """Train and watch a network, then its twins; leaves ``history.jsonl`` and ``answer.json``."""
    training = train(setting)
    folder.mkdir(parents=True, exist_ok=True)
    history = folder / "history.jsonl"
    history.unlink(missing_ok=True)
    for record in (training.tracker.history.run, *training.tracker.history):
        append_record(history, record)
    if not (folder / _ANSWER).exists():
        graded = [] if setting.control else training.anchors
        gaps = {str(anchor.step): twin_gaps(training, anchor) for anchor in graded}
        (folder / _ANSWER).write_text(json.dumps({"gaps": gaps}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
