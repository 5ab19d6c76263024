"""The built package, as those get it who have nothing else; oracles: zipfile, tarfile and pip."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def _run(*command: object, cwd: Path) -> str:
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**bare, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def _files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_package_and_nothing_else(built):
    files = _files(built[0])
    package = {name for name in files if not name.startswith("ntkwatch-")}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ntkwatch").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package == expected
    assert "ntkwatch/py.typed" in package
    assert any(name.endswith("LICENSE") for name in files - package)


def test_the_source_distribution_builds_the_same_wheel(built, tmp_path):
    wheel, source = built
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out", cwd=unpacked)
    (again,) = (unpacked / "out").glob("*.whl")
    assert _files(again) == _files(wheel)
    assert (unpacked / "tests").is_dir()
    assert (unpacked / "docs").is_dir()


def test_in_an_empty_environment_it_runs_the_demo_and_reads_it_back(built, tmp_path):
    _run(sys.executable, "-m", "venv", "environment", cwd=tmp_path)
    python = tmp_path / "environment" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--constraint", ROOT / "constraints.txt", f"{built[0]}[demo]", cwd=tmp_path)
    where = _run(python, "-c", "import ntkwatch; print(ntkwatch.__file__)", cwd=tmp_path)
    assert (tmp_path / "environment") in Path(where.strip()).parents
    shown = _run(python.with_name("ntkwatch"), "demo", "--out", "runs", cwd=tmp_path)
    rows = dict(re.findall(r"^(lazy|feature-learning) {2,}(\S+)", shown, re.MULTILINE))
    assert rows == {"lazy": "lazy", "feature-learning": "feature-learning"}
    (run, *_) = sorted(path.parent for path in (tmp_path / "runs").rglob("history.jsonl"))
    assert "verdict" in _run(python.with_name("ntkwatch"), "report", run, cwd=tmp_path).lower()
