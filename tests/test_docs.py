"""Code in README and docs runs as printed; commands and links in them exist.

The oracle is the interpreter, the command line's own parser and the file system.
"""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run_as_printed(page, tmp_path):
    code = "\n".join(_blocks(page, "python"))
    # Lightning warns of its own use of torch; everything else is an error.
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_the_readme_s_yaml_names_a_callback_that_can_be_built():
    import ntkwatch

    (block,) = _blocks(ROOT / "README.md", "yaml")
    (callback,) = yaml.safe_load(block)["trainer"]["callbacks"]
    module, _, name = callback["class_path"].rpartition(".")
    assert module == "ntkwatch"
    assert getattr(ntkwatch, name)(**callback["init_args"]).probe_size == 64


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_console_lines_name_commands_and_options_that_exist(page):
    from ntkwatch.cli import cli

    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in _blocks(page, "console"):
        for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
            words = shlex.split(line, comments=True)
            if words[0] == "make":
                assert words[1] in targets
            elif words[0] == "ntkwatch":
                command = cli.commands[words[1]]
                context = click.Context(command)
                known = {
                    option for parameter in command.get_params(context) for option in parameter.opts
                }
                assert {word for word in words[2:] if word.startswith("-")} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_scalar_logged_to_tensorboard_is_in_the_table_of_numbers():
    from ntkwatch.integrations.dashboard.tensorboard import SCALARS

    table = (ROOT / "docs" / "metrics.md").read_text()
    tags = {*SCALARS, "top_eigenvalue_1", "strength", "overhead_share"}
    assert [tag for tag in tags if f"`{tag}`" not in table] == []


def test_every_field_of_an_observation_is_in_the_table_of_numbers():
    import dataclasses

    from ntkwatch.watch.record.records import Observation

    table = (ROOT / "docs" / "metrics.md").read_text()
    explained = {"anchor_step", "probe_size", "output_count", "notes", "left_out"}
    fields = {field.name for field in dataclasses.fields(Observation)} - explained
    shown = {"layer_displacement": "per layer", "layer_relative_displacement": "per layer"}
    assert [f for f in sorted(fields) if f"`{f}`" not in table and f not in shown] == []


def test_the_bands_in_the_docs_are_those_of_the_code():
    from ntkwatch.watch.verdict.bands import Bands

    text, bands = (ROOT / "docs" / "verdict.md").read_text(), Bands()
    assert f"| lazy | < {bands.lazy_error} | < {bands.lazy_angle} |" in text
    assert f"| feature-learning | > {bands.feature_error} | > {bands.feature_angle} |" in text
    assert f"N < {bands.min_probe}" in text
    assert f"above {bands.max_loss_ratio} of its start" in text


# The page of commands. ----------------------------------------------------------------------------


def _make_commands():
    place = ROOT / "docs" / "make_commands.py"
    spec = importlib.util.spec_from_file_location("make_commands", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_is_what_the_code_says():
    written = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert written == _make_commands().page(), "run: python docs/make_commands.py"


def test_the_page_of_commands_has_an_example_and_every_option_of_each():
    from ntkwatch.cli import cli

    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name, command in cli.commands.items():
        section = page.split(f"## ntkwatch {name}\n")[1].split("\n## ")[0]
        assert f"$ ntkwatch {name}" in section
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(f"`{word}`" in section for word in parameter.opts), parameter.name


def test_json_has_the_keys_that_the_page_explains(tmp_path, capsys):
    from report.made_runs import lazy_observations, written

    from ntkwatch.__main__ import main

    for name in ("a", "b"):
        written(tmp_path / name, lazy_observations())
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    check = ["integrations.plain_training:Net", "--data", "integrations.test_check_command:batch"]
    calls = {"report": [a], "compare": [a, b], "check": [*check, "--probe-size", "16"]}
    forms = _make_commands().FORMS
    assert set(forms) == set(calls)
    for command, arguments in calls.items():
        assert main([command, *arguments, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        key, number, explained = forms[command]
        assert printed.pop(key) == number
        assert set(printed) == set(explained)
