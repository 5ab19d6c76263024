"""EarlyStopping and ModelCheckpoint on our tags in a data-parallel run; oracle: the history.

Every process asks its own trainer for the tag: one that found none would end the training of all.
"""

import json
import math
import os
import subprocess
import sys

import pytest

from ntkwatch import read_history

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SCRIPT = """
import json, sys
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import distributed, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from ntkwatch import NTKMonitor

RUINED = sys.argv[1] == "ruined"

class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.found = []
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Reads(pl.Callback):
    def on_train_batch_end(self, trainer, model, *_):
        if RUINED and trainer.global_step == 18:
            with torch.no_grad():
                model.net[0].weight.fill_(float("nan"))
    def on_train_epoch_end(self, trainer, model):
        model.found.append(float(trainer.callback_metrics["ntk/linearization_error"]))

if __name__ == "__main__":
    torch.set_num_threads(1)
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    tag = "ntk/linearization_error"
    stop = EarlyStopping(tag, mode="max", patience=99, check_on_train_epoch_end=True)
    keep = ModelCheckpoint("kept", monitor=tag, mode="max", save_on_train_epoch_end=True)
    model = Lit()
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=4, logger=False,
        callbacks=[NTKMonitor(every_n_train_steps=12, probe_size=32), Reads(), stop, keep],
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=4))
    said = {"found": model.found, "step": trainer.global_step, "best": float(stop.best_score)}
    with open(f"said-{distributed.get_rank()}.json", "w") as file:
        json.dump(said, file)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["well", "ruined"])
def test_every_process_finds_what_the_first_one_saw(tmp_path, how):
    (tmp_path / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "train.py", how],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in (0, 1))
    seen = {o.step: o.linearization_error for o in read_history(tmp_path / "ntk")}
    expected = [0.0, seen[12], seen.get(24, math.nan), seen.get(24)][: len(first["found"])]
    assert first["found"] == pytest.approx(expected, nan_ok=True)
    assert second["found"] == pytest.approx(expected, nan_ok=True)
    assert (first["step"], first["best"]) == (second["step"], second["best"])
    assert first["step"] == (32 if how == "well" else 24), "EarlyStopping ends a run that diverged"
