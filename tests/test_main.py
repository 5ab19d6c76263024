"""The process around the command line; oracle: a second process, its streams and its exit code."""

import os
import signal
import subprocess
import sys
import time

import pytest
from report.made_runs import HOSTILE, feature_observations, lazy_observations, renamed, written

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


@pytest.mark.slow
def test_an_interrupted_run_ends_with_130_and_no_traceback(rich, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # writing waits here for a reader who never comes
    process = subprocess.Popen(
        [*COMMAND, "report", str(rich), "-o", str(pipe)],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores the signal, and hands that on to all it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert message.strip() == "Interrupted."


# Terminals and pipes. -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "html"])
def test_a_reader_who_stops_early_sees_no_traceback(rich, form):
    with subprocess.Popen(
        [*COMMAND, "report", str(rich), "--format", form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        message = process.stderr.read()
    assert (process.returncode, message) == (0, b"")


def test_a_gate_holds_although_nobody_reads(rich):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, "report", str(rich), "--fail-on", "feature-learning"],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (3, b"")


def _on_a_terminal(*arguments, **environment):
    """What the command writes when its standard output is a terminal."""
    pty = pytest.importorskip("pty", reason="pseudo-terminals need a Unix")
    reader, writer = pty.openpty()
    settings = {**os.environ, "TERM": "xterm", "NO_COLOR": "", **environment}
    process = subprocess.Popen([*COMMAND, *arguments], stdout=writer, env=settings)
    os.close(writer)
    output = b""
    while True:
        try:
            chunk = os.read(reader, 65536)
        except OSError:  # how Linux says that the other side has closed
            break
        if not chunk:
            break
        output += chunk
    os.close(reader)
    assert process.wait(timeout=60) == 0
    return output


def test_a_terminal_gets_colours(rich):
    assert b"\x1b[" in _on_a_terminal("report", str(rich))


@pytest.mark.parametrize(
    ("options", "environment"),
    [(["--no-color"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})],
)
def test_colours_can_be_refused(rich, options, environment):
    assert b"\x1b" not in _on_a_terminal("report", str(rich), *options, **environment)


@pytest.mark.parametrize(("columns", "widest"), [("72", 72), ("300", 100)])
def test_a_report_is_as_wide_as_the_terminal_and_never_wider_than_reads_well(rich, columns, widest):
    output = _on_a_terminal("report", str(rich), "--no-color", COLUMNS=columns).decode()
    assert max(len(line) for line in output.splitlines()) in range(widest - 12, widest + 1)


def test_a_pipe_gets_no_colours(rich):
    assert "\x1b" not in _run("report", rich).stdout


def test_a_terminal_without_unicode_gets_a_report_and_no_traceback(rich):
    done = _run("report", rich, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "Verdict: feature-learning" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.parametrize("form", ["text", "html", "markdown", "json"])
def test_a_name_that_cannot_be_encoded_breaks_no_form(tmp_path, form):
    names = {"features.0": "\ud800" + HOSTILE}
    written(tmp_path, tuple(renamed(o, names) for o in lazy_observations()))
    page = tmp_path / "page"
    done = _run("report", tmp_path, "--format", form, "-o", page)
    assert (done.returncode, done.stderr) == (0, f"Wrote {page}\n")
    assert page.read_text(encoding="utf-8")


# Start-up. ----------------------------------------------------------------------------------------


HEAVY = ("torch", "lightning", "pytorch_lightning", "plotly", "matplotlib", "jinja2", "numpy")


def _modules_after(*arguments):
    code = (
        "import sys; from ntkwatch.__main__ import main; "
        f"code = main({list(map(str, arguments))!r}); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stderr.strip()


COMMANDS = [[], ["check"], ["compare"], ["demo"], ["report"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    assert _modules_after(*command, "--help") == "[]"


def test_a_comparison_as_text_imports_nothing_heavy(rich, tmp_path):
    written(tmp_path / "other" / "ntk", lazy_observations())
    assert _modules_after("compare", rich, tmp_path / "other") == "[]"


def test_a_text_report_imports_nothing_heavy(rich):
    assert _modules_after("report", rich) == "[]"


def test_a_page_is_drawn_without_torch_and_lightning(rich, tmp_path):
    output = _modules_after("report", rich, "--format", "html", "-o", tmp_path / "page.html")
    assert "plotly" in output  # so the list sees what is imported
    assert "torch" not in output
    assert "lightning" not in output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_there_within_half_a_second(command):
    taken = []
    while len(taken) < 5 and min(taken, default=1) >= 0.5:  # other work may share this machine
        start = time.perf_counter()
        assert _run(*command, "--help").returncode == 0
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.5
