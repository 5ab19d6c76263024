"""The benchmarks run and print what they say, whatever a library does; nothing here is timed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from versions import needs

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"

sys.path.insert(0, str(BENCHMARKS))

from bench import summary  # noqa: E402
from peers import Cell, show  # noqa: E402
from turns import FailedError, Measured, Process, take_turns  # noqa: E402

# A library in a few lines: its ways are what libraries have been seen to do.
LIBRARY = """
import os, time
import numpy as np
from worker import serve

def load(request):
    way = request["way"]
    def kernel():
        if way == "refuses":
            raise ValueError("I do not know this layer. Please write to us.")
        if way == "dies":
            os._exit(7)
        if way == "hangs":
            time.sleep(60)
        if way == "hoards":
            np.ones(2**29)
        print("a library may print")
        return np.eye(2)
    return lambda: kernel

serve(load)
"""


def _start(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments],
        env=os.environ | path | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _run(name: str, *arguments: str) -> str:
    done = _start(name, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def library(tmp_path):
    """Return a maker of processes that compute kernels with the library above."""
    script = tmp_path / "library.py"
    script.write_text(LIBRARY)
    made = []

    def start():
        path = {"PYTHONPATH": str(BENCHMARKS)}
        command = [sys.executable, str(script)]
        made.append(Process(command, path, memory=2**31, patience=120))
        return made[-1]

    yield start
    for process in made:
        process.end()


def test_processes_take_turns_and_leave_their_kernels(library, tmp_path):
    found = take_turns({"a": library(), "b": library()}, tmp_path, rounds=3, patience=10)
    for name in ("a", "b"):
        assert found[name].failed is None
        assert len(found[name].later) == 3
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), np.eye(2))


def test_a_library_that_fails_is_a_reason_and_the_others_go_on(library, tmp_path):
    processes = {way: library() for way in ("refuses", "dies", "hoards", "fine")}
    found = take_turns(processes, tmp_path, rounds=1, patience=10)
    assert found["refuses"].failed == "ValueError: I do not know this layer."
    assert found["dies"].failed.startswith("the process ended with 7")
    assert found["hoards"].failed == "more than 2 GiB"
    assert found["fine"].failed is None
    assert len(found["fine"].later) == 1


def test_nobody_waits_for_a_library_longer_than_was_said(library, tmp_path):
    process = library()
    process.ask("load", way="hangs")
    process.ask("prepare")
    process.patience = 1
    with pytest.raises(FailedError, match="longer than 1 s"):
        process.ask("first", save=str(tmp_path / "kernel.npy"))


def _cell(theirs: float) -> Cell:
    """Return a kernel that ntkwatch computes in 2 s, one library not at all, another in so many."""
    times = {"ntkwatch": 2.0, "autogram": theirs}
    seen = {
        way: Measured(prepared=0.0, first=9.0, later=[s, s], bytes=2**20)
        for way, s in times.items()
    }
    seen["gram"] = Measured(failed="more than 2 GiB")
    return Cell(
        title="MLP, N = 2",
        outputs="full",
        seen=seen,
        difference={"autogram": 3e-8},
        floor={"forward": 0.5, "passes": 0.5},
        error=1e-8,
    )


def test_the_page_says_in_words_where_another_library_is_faster():
    assert "In none of these 2 kernels is another" in summary([_cell(2.5), _cell(3.0)])
    said = summary([_cell(2.5), _cell(1.0)])
    assert "Another library is faster in 1 of 2: MLP, N = 2 (full): TorchJD, autogram." in said
    assert "| MLP, full | 2.000 | 1.000 | TorchJD, autogram | 0.50 |" in said


def test_a_library_without_a_kernel_has_the_reason_in_its_line():
    lines = show(_cell(3.0)).splitlines()
    assert "| nngeometry, GramMatrix | fails: more than 2 GiB | | | | | |" in lines
    assert "| TorchJD, autogram | 3.000 | 1.50 |  | 9.00 | 1 | 3e-08 |" in lines


@pytest.mark.slow
def test_the_page_of_results_has_a_line_for_every_way(tmp_path):
    page, ways = (
        tmp_path / "page.md",
        ("ntkwatch", "one-sided", "products", "gram", "nt-structured"),
    )
    settings = ("--quick", "--rounds", "2", "--problems", "mlp", "--outputs", "trace")
    _run("bench.py", *settings, "--ways", *ways, "-o", str(page))
    lines = page.read_text().splitlines()
    labels = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ")}
    for label in (
        "PyTorch tutorial, contraction of one side",
        "PyTorch tutorial, NTK-vector products",
    ):
        assert float(labels[label].split(" | ")[-1].strip(" |")) < 1e-6
    for label in ("nngeometry, GramMatrix", "neural-tangents, structured derivatives"):
        assert "fails: not installed" in labels[label] or "e-0" in labels[label]
    for axis in ("N", "C", "width", "depth", "T"):
        assert any(line.startswith(f"{axis} ") for line in lines)


@pytest.mark.slow
def test_without_a_gpu_the_command_says_so_and_fails(tmp_path):
    page = tmp_path / "page.md"
    done = _start("gpu.py", "-o", str(page), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "There is no GPU here" in done.stderr
    assert not page.exists()


@pytest.mark.slow
def test_the_findings_on_a_device_are_held_against_the_processor(tmp_path):
    page = tmp_path / "page.md"
    _run("gpu.py", "--device", "cpu", "--quick", "--no-tests", "-o", str(page))
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 8
    assert all(float(row.split(" | ")[-1].strip(" |")) < 1e-5 for row in rows)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_soak_prints_lines_and_slopes():
    said = _run("soak.py", "--minutes", "0.05")
    assert "per 1,000 observations:" in said
    for name in ("MiB resident", "objects", "MiB of history.jsonl", "ms each", "cpu ms"):
        assert name in said
    assert "observations" in said.splitlines()[-1]


@pytest.mark.slow
def test_the_memory_of_observations_is_held_against_the_budget():
    said = _run(
        "memory.py", "--models", "mlp", "--outputs", "trace", "--budgets", "64MiB", "--watched"
    )
    line = next(line for line in said.splitlines() if line.startswith("trace"))
    assert line.split()[:2] == ["trace", "64MiB"]
    assert "FAILED" not in line


def test_a_large_model_is_counted_beside_what_paper_says():
    said = _run("large.py", "--shape", "64", "2", "2", "500", "--steps", "1", "--threads", "1")
    lines = [line.split() for line in said.splitlines()]
    head = next(i for i, words in enumerate(lines) if words[:2] == ["step", "training"])
    assert [words[0] for words in lines[head + 1 : head + 3]] == ["0", "1"]
    counted, told = (float(word) for word in said.split("a later observation")[1].split()[:2])
    assert abs(told - counted) < 0.5 * counted  # small shapes: norms and attention are not so small


@needs("transformers", "5.20")  # older ones reckon with values while they are built
def test_a_model_without_weights_is_priced_on_paper():
    said = _run("paper.py", "--depth", "1", "--probes", "2x16", "--budgets", "1").splitlines()
    assert said[0].startswith("LLaMA's shape, 0.46G parameters")
    assert [line.split()[:3] for line in said[-2:]] == [["2x16", "1", "8"], ["2x16", "1", "64"]]
