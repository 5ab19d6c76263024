"""Runs that start at once in one place get folders of their own; oracle: the file system."""

import json
import os
import socket
import subprocess
import sys

import pytest
from integrations.trainings import lightning, loader, module, trainer

from ntkwatch import NTKMonitor, read_history
from ntkwatch.integrations.run.claim import free_folder, let_go_of

pl = lightning()


def test_a_second_run_that_starts_before_the_first_has_a_history_gets_another_folder(tmp_path):
    wanted = tmp_path / "ntk"
    first, second = free_folder(wanted), free_folder(wanted)
    assert (first, second) == (wanted, tmp_path / "ntk-2")
    let_go_of(first)
    let_go_of(second)
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_two_monitors_with_one_folder_write_two_histories(tmp_path):
    watches = [
        NTKMonitor(name=name, dirpath=tmp_path / "runs", every_n_train_steps=3) for name in "ab"
    ]
    trainer(pl, tmp_path, watches).fit(module(pl), loader())
    for folder in ("runs", "runs-2"):
        assert [seen.step for seen in read_history(tmp_path / folder)] == [0, 3, 6]
        assert not (tmp_path / folder / ".claimed").exists()


def test_two_processes_get_two_folders_and_what_a_dead_one_left_is_free(tmp_path):
    code = (
        "import sys, pathlib; from ntkwatch.integrations.run.claim import free_folder;"
        "print(free_folder(pathlib.Path(sys.argv[1]) / 'ntk').name, flush=True); sys.stdin.read()"
    )
    start = lambda: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    runs = [start(), start()]
    assert sorted(run.stdout.readline().strip() for run in runs) == ["ntk", "ntk-2"]
    for run in runs:
        run.kill()
        run.communicate()
    assert free_folder(tmp_path / "ntk") == tmp_path / "ntk"


@pytest.mark.parametrize(
    ("who", "is_free"),
    [
        ({"host": "another"}, False),
        ({"host": socket.gethostname(), "process": os.getppid(), "token": "t"}, False),
        ({"host": socket.gethostname(), "process": os.getpid(), "token": "before us"}, True),
    ],
)
def test_only_a_mark_of_a_process_that_is_gone_for_certain_means_nothing(tmp_path, who, is_free):
    (tmp_path / "ntk").mkdir()
    (tmp_path / "ntk" / ".claimed").write_text(json.dumps({"process": 1, **who}))
    assert (free_folder(tmp_path / "ntk").name == "ntk") == is_free


def test_an_empty_folder_of_the_users_stays(tmp_path):
    wanted = tmp_path / "mine"
    wanted.mkdir()
    let_go_of(free_folder(wanted))
    assert list(tmp_path.iterdir()) == [wanted]
    assert list(wanted.iterdir()) == []


def test_a_place_where_no_folder_can_be_made_is_nobody_s(tmp_path):
    (tmp_path / "file").write_text("in the way")
    wanted = tmp_path / "file" / "ntk"
    assert free_folder(wanted) == wanted
    let_go_of(wanted)
