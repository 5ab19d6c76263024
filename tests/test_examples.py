"""Every example, run as a reader runs it; oracle: how each network was made or trained.

A large output scale is lazy, and a head on a frozen network is linear in its weights.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def _printed(folder, name, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--quick", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _verdict(text):
    return re.search(r"verdict: (.*)", text).group(1)


def test_a_plain_loop_learns_features_and_leaves_a_report(tmp_path):
    assert _verdict(_printed(tmp_path, "plain_loop", "--out", "run")) == "feature-learning"
    assert "feature-learning" in (tmp_path / "run" / "report.html").read_text()
    command = [sys.executable, "-m", "ntkwatch", "report", "run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["verdict"]["strength"] == "feature-learning"


def test_a_large_output_scale_under_fabric_is_lazy(tmp_path):
    assert _verdict(_printed(tmp_path, "fabric")) == "lazy"


def test_a_vision_transformer_under_the_trainer_learns_features(tmp_path):
    text = _printed(tmp_path, "huggingface_trainer", "--out", "run")
    assert _verdict(text) == "feature-learning"
    assert [int(step) for step in re.findall(r"^step +(\d+)", text, re.M)] == [*range(0, 181, 30)]
    assert (tmp_path / "run" / "ntk" / "report.html").exists()


def test_of_four_ways_to_fine_tune_only_the_linear_one_is_static(tmp_path):
    text = _printed(tmp_path, "fine_tuning")
    rows = dict(re.findall(r"^(\w.*?) {2,}(.*)$", text, re.M))
    assert rows["head only"].endswith("static")
    for moving in ("full", "LoRA", "head, then full"):
        assert rows[moving].endswith("feature-learning")
    # Where the outputs do not depend on a weight at the start, nothing is divided by zero.
    assert re.search(r"no reference for 8 layers, such as \S+\.down$", text, re.M)
    assert text.count("no reference") == 1
    assert "nan" not in text


def test_above_the_stable_learning_rate_the_loss_rises_and_the_kernel_moves(tmp_path):
    text = _printed(tmp_path, "learning_rate")
    rows = [re.split(r" {2,}", line.strip()) for line in text.splitlines()[1:]]
    assert [float(row[0]) for row in rows] == [0.25, 0.9, 1.25, 1.5]
    highest = [float(row[1].rstrip("x")) for row in rows]
    assert highest[:2] == [1.0, 1.0], "below the limit it never rises"
    assert min(highest[2:]) > 2
    assert max(float(row[3]) for row in rows) < 1, "every one ends below its limit"
    assert [row[4] for row in rows[:2]] == ["lazy", "lazy"]
    assert rows[3][4] != "lazy"
