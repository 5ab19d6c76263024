"""Writing whole files; oracle: the file system."""

import os
import subprocess
import sys
import threading

import pytest

from ntkwatch.report.files import write_whole


def test_a_file_is_replaced_and_nothing_else_is_left_behind(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with path.open() as reader:
        write_whole(path, "new ä")
        assert reader.read() == "old"  # who had it open reads on in the old file
    assert path.read_bytes() == "new ä".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, "through")
    reader.join(timeout=10)
    assert read == [b"through"]
    assert pipe.is_fifo()


def test_a_disk_that_fills_up_leaves_the_old_file_whole_and_nothing_else(tmp_path):
    """A limit on file sizes stops the write half-way, as a full disk does."""
    path = tmp_path / "report.html"
    path.write_text("old")
    code = (
        "import pathlib, resource, signal, sys; from ntkwatch.report.files import write_whole; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
        "write_whole(pathlib.Path(sys.argv[1]), b'x' * 100_000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "File too large" in done.stderr
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_is_not_there_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "no" / "report.html", "x")
    assert list(tmp_path.iterdir()) == []
