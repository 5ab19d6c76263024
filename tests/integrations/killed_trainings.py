"""Trains, is killed, is read and goes on: many times over, in processes forked from one warm one.

Run as a script with a folder and a number of kills. Writes one line of JSON per kill, and before
them one for the training that nobody killed.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path

import pytorch_lightning as pl
import torch
from integrations.trainings import Resumable, data, mlp, module, seed_all, trainer
from safetensors.torch import load_file
from torch import nn

from ntkwatch import NTKMonitor, read_history
from ntkwatch.errors import NtkwatchError
from ntkwatch.watch.record.history import History
from ntkwatch.watch.record.records import TIMINGS
from ntkwatch.watch.store import read_probe

STEPS, EVERY = 18, 4  # of training; between two checkpoints


class Progress(pl.Callback):
    """Notes each step that is over, monitor included, in a way that no kill takes back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(b"x")


def train(root: Path, checkpoint: Path | None = None) -> None:
    """Observe every step, and keep a checkpoint of every fourth."""
    seed_all()
    keep = pl.callbacks.ModelCheckpoint(
        root / "checkpoints", every_n_train_steps=EVERY, save_top_k=-1, save_last=True
    )
    watch = NTKMonitor(every_n_train_steps=1, on_error="raise", metrics="minimal")
    settings = {"enable_checkpointing": True, "max_epochs": None, "max_steps": STEPS}
    run = trainer(pl, root, [watch, Progress(root / "progress"), keep], **settings)
    loader = Resumable(data(80), batch_size=8, shuffle=True)
    net = module(pl, mlp(nn.BatchNorm1d(8)))
    run.fit(net, loader, ckpt_path=None if checkpoint is None else str(checkpoint))


def forked(root: Path, checkpoint: Path | None = None) -> int:
    """Start a training in a process of its own; return its number."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        with (root / "output").open("a") as said, contextlib.redirect_stdout(said):
            os.dup2(said.fileno(), 2)
            train(root, checkpoint)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def numbers(history: History) -> list[dict]:
    return [{**asdict(seen), **dict.fromkeys((*TIMINGS, "at_end"))} for seen in history]


def unreadable(folder: Path) -> list[str]:
    """Return what our readers cannot read of a run's files."""
    wrong = []

    def attempt(path: Path, read) -> None:
        try:
            read(path)
        except Exception as error:
            wrong.append(f"{path.name}: {type(error).__name__}: {error}")

    def whole_page(path: Path) -> None:
        assert path.read_text().rstrip().endswith("</html>")

    for path in folder.rglob("*.safetensors"):
        if not path.name.startswith("."):
            attempt(path, read_probe if path.name == "probe.safetensors" else load_file)
    for path in folder.glob("*.json"):
        attempt(path, lambda path: json.loads(path.read_text()))
    for path in folder.glob("report.html"):
        attempt(path, whole_page)
    if (folder / "history.jsonl").exists():
        attempt(folder, read_history)
    return wrong


def newest(checkpoints: Path) -> Path | None:
    """Return the last checkpoint that Lightning had written whole when it was killed."""
    for path in sorted(checkpoints.glob("*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True):
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=True)
            return path
    return None


def after(root: Path, whole: list[dict]) -> dict:
    """Return what is left of a run that was killed, and whether it goes on to the same end."""
    folder = root / "ntk"
    progress = root / "progress"
    over = progress.stat().st_size if progress.exists() else 0
    found = {"over": over, "unreadable": unreadable(folder), "resumed": None}
    history = None
    with contextlib.suppress(NtkwatchError):
        history = read_history(folder)
    steps = [] if history is None else [seen.step for seen in history]
    found["contiguous"] = steps == list(range(len(steps)))
    found["lost"] = over - (steps[-1] if steps else 0)
    found["observed"] = len(steps)
    found["finished"] = (folder / "verdict.json").exists()
    checkpoint = newest(root / "checkpoints")
    if checkpoint is None:
        return found
    _, status = os.waitpid(forked(root, checkpoint), 0)
    again = read_history(folder)
    found["resumed"] = status == 0 and numbers(again) == whole
    found["left"] = sorted(path.name for path in folder.rglob(".*.tmp"))
    if not found["resumed"]:
        found["why"] = (root / "output").read_text()[-2000:]
    return found


def wait_for(root: Path, over: int) -> None:
    """Wait until so many steps are over; for -1, until the monitor writes its first file."""
    sign = root / ("ntk" if over < 0 else "progress")
    for _ in range(60_000):
        if sign.exists() and (over < 0 or sign.stat().st_size >= over):
            return
        time.sleep(0.001)


def tell(found: dict) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main(root: Path, kills: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for place in ("first", "whole"):  # the first is slower than those that will be killed
        (root / place).mkdir()
        began = time.perf_counter()
        _, status = os.waitpid(forked(root / place), 0)
        seconds = time.perf_counter() - began
        assert status == 0, (root / place / "output").read_text()
    whole = numbers(read_history(root / "whole" / "ntk"))
    tell({"seconds": seconds, "observed": len(whole)})
    chance = random.Random(0)
    for number in range(kills):
        place = root / str(number)
        place.mkdir()
        child = forked(place)
        wait_for(place, chance.randrange(-1, STEPS + 1))
        time.sleep(chance.uniform(0, 1.5) * seconds / STEPS)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        found = after(place, whole)
        tell({"killed": os.WIFSIGNALED(status), **found})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
