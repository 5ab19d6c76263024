"""The command line; oracle: what a second process prints, and the codes it ends with."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from report.made_runs import feature_observations, lazy_observations, written
from versions import needs

from ntkwatch.__main__ import main
from ntkwatch.cli import cli

COMMAND = [sys.executable, "-m", "ntkwatch"]


def _run(*arguments, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        **options,
    )


@pytest.fixture
def rich(tmp_path):
    written(tmp_path / "version_0" / "ntk", feature_observations())
    return tmp_path / "version_0"


@pytest.fixture
def lazy(tmp_path):
    written(tmp_path / "version_1" / "ntk", lazy_observations())
    return tmp_path / "version_1"


# Results and messages. ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "ntk", "ntk/history.jsonl"])
def test_a_run_is_found_from_its_log_folder_its_own_folder_and_its_file(rich, capsys, place):
    assert main(["report", str(rich / place)]) == 0
    output = capsys.readouterr()
    assert "Verdict: feature-learning" in output.out
    assert output.err == ""


def test_json_prints_one_object_and_nothing_else(rich):
    done = _run("report", rich, "--json")
    assert json.loads(done.stdout)["verdict"]["strength"] == "feature-learning"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ("text", "ntkwatch: "),
        ("html", "<!doctype html>"),
        ("markdown", "# ntkwatch: "),
        ("json", "{"),
    ],
)
def test_every_form_goes_to_standard_output(rich, capsys, form, begins):
    assert main(["report", str(rich), "--format", form]) == 0
    assert capsys.readouterr().out.startswith(begins)


def test_output_goes_to_the_file_in_one_piece_and_a_message_to_stderr(rich, tmp_path, capsys):
    page = tmp_path / "page.html"
    page.write_text("old")
    assert main(["report", str(rich), "--format", "html", "-o", str(page)]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"Wrote {page}\n"
    assert page.read_text().endswith("</html>\n")
    assert [entry.name for entry in tmp_path.iterdir() if "tmp" in entry.name] == []


def test_a_dash_is_standard_output(rich, capsys):
    assert main(["report", str(rich), "-o", "-"]) == 0
    assert "Verdict" in capsys.readouterr().out


# Exit codes. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gates", "code"),
    [
        ([], 0),
        (["lazy"], 3),
        (["static", "lazy"], 3),
        (["feature-learning"], 0),
        (["undetermined"], 0),
    ],
)
def test_a_lazy_run_ends_with_3_only_at_its_own_gate(lazy, capsys, gates, code):
    options = [word for gate in gates for word in ("--fail-on", gate)]
    assert main(["report", str(lazy), *options]) == code
    assert "Verdict: lazy" in capsys.readouterr().out  # the report is printed all the same


def test_a_folder_without_a_history_is_an_error_in_one_paragraph(tmp_path):
    done = _run("report", tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"Error: {tmp_path} has no history.jsonl")
    assert done.stderr.count("\n") == 1


def test_a_history_of_a_newer_version_is_an_error_that_says_what_to_do(rich, capsys):
    path = rich / "ntk" / "history.jsonl"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps({**json.loads(first), "schema": 99}) + "\n" + rest)
    assert main(["report", str(rich)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: ")
    assert "schema 99" in message
    assert "Update ntkwatch" in message


def test_a_file_that_cannot_be_written_is_an_error(rich, tmp_path, capsys):
    assert main(["report", str(rich), "-o", str(tmp_path / "no" / "page.txt")]) == 1
    message = capsys.readouterr().err
    assert re.match(r"Error: .*page\.txt cannot be written \(No such file or directory\)", message)


def test_a_file_in_the_place_of_a_folder_is_an_error_and_no_traceback(rich, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["report", str(rich), "-o", str(tmp_path / "file" / "page.txt")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], marks=needs("click", "8.2")),  # an older one shows the help with 0
        ["report"],
        ["report", ".", "--format", "pdf"],
        ["report", ".", "--fail-on", "rich"],
        ["report", ".", "--json", "--format", "html"],
        ["report", ".", "--nonsense"],
        ["nonsense"],
    ],
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Usage: ntkwatch" in output.err


# Help. ----------------------------------------------------------------------------------


def test_every_command_and_every_option_has_help():
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, (name, parameter.name)


@pytest.mark.parametrize("arguments", [[], *[[name] for name in sorted(cli.commands)]])
def test_help_is_a_result_with_an_example(arguments, capsys):
    assert main([*arguments, "--help"]) == 0
    output = capsys.readouterr().out
    assert "Usage: ntkwatch" in output
    assert " ".join(["Examples:\n  ntkwatch", *arguments]) in output.replace("\n    ", "\n  ")


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"ntkwatch \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_a_cut_off_line_is_reported_and_the_rest_is_kept(rich, capsys):
    path = rich / "ntk" / "history.jsonl"
    path.write_text(path.read_text()[:-200])
    assert main(["report", str(rich)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "line 20 of history.jsonl is cut off" in output
    assert "step 900" in output


def test_an_unfinished_run_is_undetermined_and_can_be_gated(tmp_path, capsys):
    early = tuple(replace(o, loss=2.3) for o in lazy_observations()[:4])
    written(tmp_path, early)
    assert main(["report", str(tmp_path), "--fail-on", "undetermined"]) == 3
    assert "undetermined (too early)" in capsys.readouterr().out


# Several runs. ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ("text", "ntkwatch: 2 runs side by side"),
        ("html", "<!doctype html>"),
        ("markdown", "# ntkwatch: 2 runs side by side"),
        ("json", "{"),
    ],
)
def test_runs_are_compared_in_every_form(rich, lazy, capsys, form, begins):
    assert main(["compare", str(rich), str(lazy), "--format", form]) == 0
    output = capsys.readouterr().out.replace("\\", "")
    assert output.startswith(begins)
    assert "version_0" in output  # without the folders that both have in common
    assert str(rich.parent) not in output


def test_unlike_runs_are_refused_and_shown_anyway_where_asked(rich, lazy, capsys):
    path = lazy / "ntk" / "history.jsonl"
    path.write_text(path.read_text().replace('"full"', '"trace"', 1))
    assert main(["compare", str(rich), str(lazy)]) == 1
    assert "outputs: full in version_0, trace in version_1" in capsys.readouterr().err
    assert main(["compare", str(rich), str(lazy), "--anyway", "--json"]) == 0
    assert "outputs: full" in json.loads(capsys.readouterr().out)["caution"][0]


@pytest.mark.parametrize("times", [0, 1, 2])
def test_one_run_is_not_compared_with_itself(rich, capsys, times):
    places = [str(rich), str(rich / "ntk")][:times]
    assert main(["compare", *places]) == 2
    assert "each once" in capsys.readouterr().err
