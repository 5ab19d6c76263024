"""Trainings in processes of their own, as users start them; oracle: what they print and leave.

A plain script, with its own logging or none, and data-parallel training on two processes.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from integrations.trainings import NAMESPACES

from ntkwatch import read_history

pytestmark = pytest.mark.slow

SCRIPT = """
import importlib, logging, sys
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

pl = importlib.import_module(sys.argv[1])
watched, parallel, own_logging = (name in sys.argv for name in ("watched", "parallel", "logging"))
if own_logging:
    logging.basicConfig(level=logging.INFO)

class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    callbacks = []
    if watched:
        from ntkwatch import NTKMonitor
        callbacks = [NTKMonitor(every_n_train_steps=3, on_error="raise")]
    x = torch.randn(48, 5)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    where = {"devices": 2, "strategy": "ddp"} if parallel else {"devices": 1}
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=callbacks, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, **where,
    )
    model = Lit()
    trainer.fit(model, DataLoader(data, batch_size=4))
    torch.save(model.state_dict(), f"weights-{trainer.global_rank}.pt")
"""


def _run(folder, *words):
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "train.py", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("own_logging", [False, True])
def test_one_line_on_the_console_tells_the_verdict_and_where_to_look(
    tmp_path, namespace, own_logging
):
    printed = _run(tmp_path, namespace, "watched", *(["logging"] if own_logging else []))
    (line,) = {
        line[line.index("ntkwatch: ") :] for line in printed.splitlines() if "ntkwatch: " in line
    }
    folder = tmp_path / "lightning_logs" / "version_0" / "ntk"
    verdict = json.loads((folder / "verdict.json").read_text())
    assert line.startswith(f"ntkwatch: {verdict['strength']}")
    assert "(step 24, 9 observations" in line
    assert f"See {folder / 'report.html'} or" in line
    assert line.endswith(f"run: ntkwatch report {folder}")
    assert (folder / "report.html").is_file()


@pytest.mark.distributed
def test_two_processes_train_as_if_nobody_watched_and_one_of_them_writes(tmp_path):
    printed = _run(tmp_path / "watched", "pytorch_lightning", "watched", "parallel")
    _run(tmp_path / "alone", "pytorch_lightning", "parallel")
    for rank in (0, 1):
        watched, alone = (
            torch.load(tmp_path / kind / f"weights-{rank}.pt") for kind in ("watched", "alone")
        )
        assert all(torch.equal(watched[name], alone[name]) for name in alone), rank
    assert sum("ntkwatch: " in line for line in printed.splitlines()) == 1
    (folder,) = (tmp_path / "watched").glob("**/ntk*")
    assert [o.step for o in read_history(folder)] == [0, 3, 6, 9, 12]
