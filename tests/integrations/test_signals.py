"""A data-parallel training that is told to stop; oracle: what is left on the disk and running.

Signals come in the middle of a real run of two processes that Lightning started: the first process
sends them at a known point, to itself or to all.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ntkwatch import read_history

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SCRIPT = """
import os, signal, sys, time
import pytorch_lightning as pl
import torch
from torch import distributed, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from ntkwatch import NTKMonitor

NUMBER, TO, WHEN = getattr(signal, sys.argv[1]), sys.argv[2], sys.argv[3]

SENT = []  # no attribute of the model: those are put back after a call that measures

class Net(nn.Sequential):
    step = 0
    def forward(self, x):
        if WHEN == ("training" if self.training else "measuring") and self.step >= 6:
            self.stop()
        return super().forward(x)
    def stop(self):
        if distributed.get_rank() == 0 and not SENT:
            SENT.append(NUMBER)
            os.kill(0 if TO == "all" else os.getpid(), NUMBER)
        if WHEN == "training":
            time.sleep(0.5)

class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    def training_step(self, batch, batch_idx):
        self.net.step = self.trainer.global_step
        return functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

if __name__ == "__main__":
    torch.set_num_threads(1)
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x[:, 0] > 0).long())
    pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1000, logger=False,
        callbacks=[NTKMonitor(every_n_train_steps=2)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(Lit(), DataLoader(data, batch_size=4))
"""


def _members(group):
    """Processes of a group that still run."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(process.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "to", "when"),
    [
        ("SIGTERM", "itself", "measuring"),
        ("SIGTERM", "itself", "training"),
        ("SIGINT", "all", "measuring"),
    ],
)
def test_a_run_that_is_told_to_stop_ends_with_its_files_written(tmp_path, number, to, when):
    (tmp_path / "train.py").write_text(SCRIPT)
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, "-W", "ignore", "train.py", number, to, when],
            cwd=tmp_path,
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        run.wait(timeout=200)  # what hangs fails
        end = time.monotonic() + 60
        while (left := _members(run.pid)) and time.monotonic() < end:
            time.sleep(0.1)  # another process may end a moment later
    finally:
        if _members(run.pid):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    said = output.read_text()
    assert left == [], said
    assert [seen.step for seen in read_history(tmp_path / "ntk")][:3] == [0, 2, 4], said
    assert json.loads((tmp_path / "ntk" / "verdict.json").read_text())["strength"]
    assert (tmp_path / "ntk" / "report.html").is_file()
