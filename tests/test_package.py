"""The package as a thing that is installed, imported and read; the files on disk are the oracle."""

import ast
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import ntkwatch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ntkwatch"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CONTRACT = {
    "KernelTracker",
    "NTKMonitor",
    "ProbeBatch",
    "empirical_ntk",
    "judge",
    "read_history",
}
HEAVY = {"lightning", "matplotlib", "numpy", "plotly", "pytorch_lightning", "torch", "transformers"}
MAX_SOURCE_LINES = 400
MAX_README_LINES = 150


def _in_a_fresh_process(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_no_heavy_package():
    code = "import json, sys; import ntkwatch; print(json.dumps(sorted(sys.modules)))"
    assert HEAVY.isdisjoint(json.loads(_in_a_fresh_process(code)))


def test_a_history_is_read_and_judged_where_torch_cannot_be_imported():
    _in_a_fresh_process(
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'lightning', 'pytorch_lightning']))"
        "; from ntkwatch import judge, read_history"
    )


def test_the_public_names_hold_the_contract_and_stay_few():
    assert set(ntkwatch.__all__) >= CONTRACT
    assert len(ntkwatch.__all__) == len(set(ntkwatch.__all__)) < 25


def test_every_public_name_resolves_and_is_listed():
    for name in ntkwatch.__all__:
        assert getattr(ntkwatch, name) is not None
    assert set(ntkwatch.__all__) <= set(dir(ntkwatch))


def test_a_name_that_is_not_there_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="no_such_name"):
        ntkwatch.no_such_name  # noqa: B018


def _imported_modules(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_file_is_short_and_imports_no_functorch(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < MAX_SOURCE_LINES
    imported = _imported_modules(ast.parse(text))
    # Deprecated since torch 2.0 in favour of torch.func; its first call warns.
    assert not {name for name in imported if "functorch" in name.split(".")}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < MAX_README_LINES


def test_a_wheel_holds_every_file_of_the_package_and_the_licence(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in packed if name.startswith("ntkwatch/")} == on_disk
    assert "ntkwatch/py.typed" in packed
    assert any(name.startswith("ntkwatch/report/templates/") for name in packed)
    assert f"ntkwatch-{ntkwatch.__version__}.dist-info/licenses/LICENSE" in packed


def test_the_citation_has_the_version_and_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == ntkwatch.__version__
    assert citation["license"] == project["license"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()


def test_the_changelog_lists_changed_numbers_under_their_own_heading():
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert "### Changed numbers" in lines[lines.index("## [Unreleased]") :]


def test_no_file_of_the_repository_names_a_place_outside_it():
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
    )
    if listing.returncode != 0:
        pytest.skip("needs Git and a clone: what belongs to the repository is not known here")
    names = [name for name in listing.stdout.decode().split("\0") if name]
    assert "pyproject.toml" in names
    # In two halves, or this file would name them.
    outside = [b"/wor" + b"k/", b"../share" + b"d"]
    found = [
        name
        for name in names
        if (ROOT / name).is_file() and any(place in (ROOT / name).read_bytes() for place in outside)
    ]
    assert found == []
