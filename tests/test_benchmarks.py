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
