"""Loggers that keep their runs elsewhere, offline; oracle: the files that the real packages leave.

Nothing here needs a server: Weights & Biases writes a run to upload later, MLflow writes a folder.
"""

import json
import math

import numpy as np
import pytest
from integrations.trainings import lightning, loader, module, trainer
from PIL import Image

from ntkwatch import NTKMonitor

pl = lightning()
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
PICTURES = ("kernel", "layer_angles", "spectrum")


def _watched(root, logger):
    watch = NTKMonitor(every_n_train_steps=2, on_error="raise")
    trainer(pl, root, [watch], logger=logger, max_epochs=2).fit(module(pl), loader())
    return watch


def _is_drawn(path):
    with Image.open(path) as image:
        return len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_mlflow_keeps_curves_pictures_and_the_verdict(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    # Late versions of MLflow 3 keep runs in a folder only where this asks for it.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = pl.loggers.MLFlowLogger("watched", save_dir=str(tmp_path / "mlruns"))
    watch = _watched(tmp_path, logger)
    client = mlflow.MlflowClient(f"file:{tmp_path}/mlruns")
    curve = client.get_metric_history(logger.run_id, "ntk/kernel_angle")
    assert [(p.step, p.value) for p in curve] == [
        (o.logged_step, pytest.approx(o.kernel_angle)) for o in watch.history
    ]
    folder = tmp_path / "mlruns" / logger.experiment_id / logger.run_id / "artifacts"
    assert watch.verdict.reason[:40] in (folder / "ntk" / "verdict.md").read_text()
    for tag in PICTURES:
        kept = list((folder / "images").glob(f"ntk*{tag}*.png"))
        assert len(kept) == (4 if tag == "kernel" else 3)
        assert all(map(_is_drawn, kept))


def test_weights_and_biases_keeps_curves_pictures_and_the_verdict(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = pl.loggers.WandbLogger("watched", save_dir=tmp_path, offline=True)
    watch = _watched(tmp_path, logger)
    logged = dict(logger.experiment.summary)
    logger.experiment.finish()
    assert logged["ntk/kernel_angle"] == pytest.approx(watch.history[-1].kernel_angle)
    assert logged["trainer/global_step"] == watch.history[-1].logged_step
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    for tag in PICTURES:
        kept = list((media / "images" / "ntk").glob(f"{tag}_*.png"))
        assert len(kept) == (4 if tag == "kernel" else 3)
        assert all(map(_is_drawn, kept))
    tables = sorted((media / "table" / "ntk").glob("verdict_*.json"))
    cells = [json.loads(path.read_text())["data"][0][0] for path in tables]
    assert any(watch.verdict.reason[:40] in cell for cell in cells)
    assert not any(math.isnan(value) for value in logged.values() if isinstance(value, float))
