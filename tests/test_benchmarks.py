"""The benchmarks of what watching costs run and print what they say; nothing here is timed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_overhead_is_printed_beside_the_promise():
    said = _run("overhead.py", "--models", "mlp", "--minutes", "0.02", "--budgets", "0.5").split(
        "\n"
    )
    head = next(i for i, line in enumerate(said) if "promised" in line)
    alone, watched = (line.split() for line in said[head + 1 : head + 3])
    assert said[head].split()[:4] == ["promised", "took", "seconds", "observations"]
    assert alone[0] == "alone"
    assert "50.0%" in watched
    assert watched[-1].endswith("%")


def test_a_soak_prints_lines_and_slopes():
    said = _run("soak.py", "--minutes", "0.05")
    assert "per 1,000 observations:" in said
    for name in ("MiB resident", "objects", "MiB of history.jsonl", "ms each", "cpu ms"):
        assert name in said
    assert "observations" in said.splitlines()[-1]


def test_the_memory_of_observations_is_held_against_the_budget():
    said = _run(
        "memory.py", "--models", "mlp", "--outputs", "trace", "--budgets", "64MiB", "--watched"
    )
    line = next(line for line in said.splitlines() if line.startswith("trace"))
    assert line.split()[:2] == ["trace", "64MiB"]
    assert "FAILED" not in line


def test_a_large_model_is_counted_beside_what_paper_says():
    said = _run("large.py", "--shape", "64", "2", "2", "500", "--steps", "1", "--threads", "1")
    lines = [line.split() for line in said.splitlines()]
    head = next(i for i, words in enumerate(lines) if words[:2] == ["step", "training"])
    assert [words[0] for words in lines[head + 1 : head + 3]] == ["0", "1"]
    counted, told = (float(word) for word in said.split("a later observation")[1].split()[:2])
    assert abs(told - counted) < 0.5 * counted  # small shapes: norms and attention are not so small


def test_a_model_without_weights_is_priced_on_paper():
    said = _run("paper.py", "--depth", "1", "--probes", "2x16", "--budgets", "1").splitlines()
    assert said[0].startswith("LLaMA's shape, 0.46G parameters")
    assert [line.split()[:3] for line in said[-2:]] == [["2x16", "1", "8"], ["2x16", "1", "64"]]
