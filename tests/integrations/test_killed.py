"""Killed without warning, at any moment; oracle: the same training that nobody killed.

Most kills come while files are written: every step is observed, and the model is tiny.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KILLS = 25

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    """What was found after each of 25 kills."""
    script = str(HERE / "killed_trainings.py")
    done = subprocess.run(
        [sys.executable, script, str(tmp_path_factory.mktemp("killed")), str(KILLS)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _, *found = (json.loads(line) for line in done.stdout.splitlines())
    assert len(found) == KILLS
    return found


def test_most_kills_came_in_time(kills):
    assert sum(kill["killed"] and not kill["finished"] for kill in kills) >= 18
    assert len({kill["over"] for kill in kills}) >= 8, "at many different steps"


def test_every_file_of_a_killed_run_can_be_read(kills):
    assert [kill["unreadable"] for kill in kills] == [[]] * KILLS


def test_at_most_the_observation_in_progress_is_lost(kills):
    """A step is noted as over only after it was observed."""
    assert all(kill["contiguous"] for kill in kills)
    assert [kill["lost"] for kill in kills if kill["lost"] > 0] == []


def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_end(kills):
    resumed = [kill for kill in kills if kill["resumed"] is not None]
    assert len(resumed) >= 8
    assert [kill["why"] for kill in resumed if not kill["resumed"]] == []


def test_a_resumed_run_leaves_no_half_written_file_behind(kills):
    assert [kill["left"] for kill in kills if kill.get("left")] == []
