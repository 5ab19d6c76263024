"""Fit the verdict's bands on one half of graded trainings, and judge the other half with them.

    python benchmarks/calibrate.py --keep calibration-runs

The answer to every training is found without a kernel, by training the network's linear twin (see
calibration/twin.py). What was measured is kept, so that a second call only fits and judges.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from calibration.settings import Setting, all_settings
from calibration.tables import print_tables
from calibration.training import train
from calibration.twin import twin_gaps

from ntkwatch.watch.history import append_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    keep = {"type": Path, "default": Path("calibration-runs"), "metavar": "FOLDER"}
    parser.add_argument("--keep", help="where what was measured lies", **keep)
    parser.add_argument("--each", action="store_true", help="list every training, too")
    asked = parser.parse_args()
    folder: Path = asked.keep
    settings = all_settings()
    missing = [setting for setting in settings if not (folder / setting.name).exists()]
    for number, setting in enumerate(missing):
        print(f"{number + 1} of {len(missing)}: {setting.name}", flush=True)
        _measure(setting, folder / setting.name)
    print_tables(settings, folder, each=asked.each)


def _measure(setting: Setting, folder: Path) -> None:
    """Train and watch a network, then its twins; leaves ``history.jsonl`` and ``answer.json``."""
    began = time.process_time()
    training = train(setting)
    graded = [] if setting.control else training.anchors
    answer = {
        "gaps": {str(anchor.step): twin_gaps(training, anchor) for anchor in graded},
        "seconds": time.process_time() - began,
    }
    unfinished = folder.with_name(f".{folder.name}")
    unfinished.mkdir(parents=True, exist_ok=True)
    history = training.tracker.history
    for record in (history.run, *history):
        append_record(unfinished / "history.jsonl", record)
    (unfinished / "answer.json").write_text(json.dumps(answer))
    unfinished.rename(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
