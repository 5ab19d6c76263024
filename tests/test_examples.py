"""Every example, run as a reader runs it; oracle: how each network was made or trained.

A large output scale is lazy, a head on a frozen network is linear in its weights, BatchNorm's
averages start at 0 and 1 whatever the data, and the two scalings of a width have their limits.
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


@pytest.fixture
def real_data():
    """Skip where there is none: with NTKWATCH_REQUIRE_ALL=1 that is a failure."""
    if not (ROOT / "data" / ".unpacked").exists():
        pytest.skip("there is no real data here: run `make data`")


def _verdict(text):
    return re.search(r"verdict: (.*)", text).group(1)


def test_a_plain_loop_learns_features_and_leaves_a_report(tmp_path):
    text = _printed(tmp_path, "plain_loop", "--out", "run", "--picture", "picture.png")
    assert _verdict(text) == "feature-learning"
    assert (tmp_path / "picture.png").stat().st_size > 1000
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
    text, by_block = _printed(tmp_path, "fine_tuning", "--picture", "picture.png").split("\n\n")
    rows = dict(re.findall(r"^(\w.*?) {2,}(.*)$", text, re.M))
    assert rows["head only"].endswith("static")
    for moving in ("full", "LoRA", "head, then full"):
        assert rows[moving].endswith("feature-learning")
    # Where the outputs do not depend on a weight at the start, nothing is divided by zero.
    assert re.search(r"no reference for 8 layers, such as \S+\.down$", text, re.M)
    assert text.count("no reference") == 1
    turned = dict(re.findall(r"^(\w.*?) {2,}(.*)$", by_block, re.M))
    assert turned["head only"] == "classifier 0"
    for moving in ("full", "LoRA", "head, then full"):
        assert all(float(turn) > 0.1 for turn in re.findall(r"block \d (\S+)", turned[moving]))
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert "nan" not in text + by_block


def test_above_the_stable_learning_rate_the_loss_rises_and_the_kernel_moves(tmp_path):
    text = _printed(tmp_path, "learning_rate", "--picture", "picture.png")
    rows = [re.split(r" {2,}", line.strip()) for line in text.splitlines()[1:5]]
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert [float(row[0]) for row in rows] == [0.25, 0.9, 1.25, 1.5]
    highest = [float(row[1].rstrip("x")) for row in rows]
    assert highest[:2] == [1.0, 1.0], "below the limit it never rises"
    assert min(highest[2:]) > 2
    assert max(float(row[3]) for row in rows) < 1, "every one ends below its limit"
    assert [row[4] for row in rows[:2]] == ["lazy", "lazy"]
    assert rows[3][4] != "lazy"


@pytest.mark.usefixtures("real_data")
def test_a_resnet_forms_features_from_the_first_layer_on_and_its_averages_move_the_kernel(tmp_path):
    text = _printed(tmp_path, "resnet_fashion", "--picture", "picture.png")
    assert _verdict(text) == "feature-learning"
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    rows = [line.split() for line in text.splitlines() if re.match(r" *\d+ .*\d$", line)]
    shares = {int(row[0]): float(row[6]) for row in rows if row[6] != "-"}
    assert min(share for step, share in shares.items() if 1 <= step <= 8) > 0.9
    turned = dict(re.findall(r"^(stem|head|block\d\.\w+) +(\d\.\d+)", text, re.M))
    assert len(turned) == 11
    assert float(turned["stem"]) > float(turned["block3.conv1"])


@pytest.mark.usefixtures("real_data")
def test_a_small_gpt_moves_its_embedding_first_and_its_first_block_later(tmp_path):
    text = _printed(tmp_path, "small_gpt", "--picture", "picture.png")
    assert _verdict(text).startswith("feature-learning")
    rows = [line.split() for line in text.splitlines() if re.match(r" *\d+ .*\d$", line)]
    angles = {int(row[0]): [float(cell) for cell in row[3:]] for row in rows}
    assert max(angles[16]) == angles[16][0], "the token embedding leads at first"
    assert angles[100][2] > 1.5 * angles[16][2], "the first block moves later"
    outputs = re.findall(r"^(8 random directions|logit to come|space) +(.*)$", text, re.M)
    assert [name for name, _ in outputs] == ["8 random directions", "logit to come", "space"]
    assert all(float(number) > 0.02 for _, numbers in outputs for number in numbers.split())


@pytest.mark.usefixtures("real_data")
def test_drift_vanishes_with_width_in_the_neural_tangent_scaling_and_not_in_mup(tmp_path):
    text = _printed(tmp_path, "small_gpt_widths", "--picture", "picture.png")
    exponents = dict(re.findall(r"^(neural tangent|muP) {3,}(.*)$", text, re.M))
    assert max(float(number) for number in exponents["neural tangent"].split()) < -0.3
    assert min(float(number) for number in exponents["muP"].split()) > -0.15


def test_features_are_needed_at_a_small_output_scale_and_not_used_at_a_large_one(tmp_path):
    text = _printed(tmp_path, "output_scale", "--picture", "picture.png")
    small, large = (re.split(r" {2,}", line.strip()) for line in text.splitlines()[2:4])
    assert (small[0], *small[8:]) == ("0.3", "yes", "feature-learning")
    assert (large[0], *large[8:]) == ("100", "no", "lazy")
    network, kernel = (float(cell.rstrip("%")) for cell in large[5:7])
    assert abs(network - kernel) < 5, "a lazy network is the kernel machine that it started as"
    assert float(small[5].rstrip("%")) > kernel + 15
