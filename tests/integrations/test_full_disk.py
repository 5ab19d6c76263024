"""A disk that is really full: no file may grow beyond some bytes; oracle: the operating system.

In a process of its own, since the limit holds for all files of a process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

resource = pytest.importorskip("resource", reason="Windows has no such limits")

ROOT = Path(__file__).parents[2]
SCRIPT = """
import resource, sys, warnings
from integrations.trainings import lightning, loader, mlp, module, trainer
from ntkwatch import NTKMonitor, read_history

pl = lightning()
watch = NTKMonitor(every_n_train_steps=2, dirpath=sys.argv[1])
run = trainer(pl, sys.argv[1], (watch,), max_epochs=12)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    run.fit(module(pl, mlp()), loader())
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print("steps", [seen.step for seen in watch.history] == list(range(0, 73, 2)))
print("gaps", watch.history.gaps)
print("missing", sorted({k for seen in watch.history for k in seen.left_out if "/" in k}))
print("said", sum("ntkwatch" in str(word.message) for word in said))
"""


@pytest.mark.parametrize("room", [0, 3000, 12000])
def test_every_observation_is_made_on_a_disk_without_room(tmp_path, room):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(room)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert (found["steps"], found["gaps"]) == ("True", "[]"), done.stderr
    assert "since/" in found["missing"] or room == 12000
    assert 1 <= int(found["said"]) <= 2, "each kind of file is said once"
    assert not list(tmp_path.rglob(".*.tmp"))
