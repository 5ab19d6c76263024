"""The safety net of the test run itself, tried on throw-away test files in an inner pytest."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).parent / "conftest.py"

THREE_FATES = """
    import pytest

    def test_that_runs():
        pass

    @pytest.mark.{marker}
    @pytest.mark.skipif(True, reason="no such thing here")
    def test_that_is_skipped():
        pass

    @pytest.mark.xfail(reason="known", strict=True)
    def test_that_fails_as_expected():
        assert False
"""


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with our conftest, in which nothing is required unless a test says so."""
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers =\n    gpu: needs an accelerator\n    slow: slow\n")
    monkeypatch.delenv("NTKWATCH_REQUIRE_ALL", raising=False)
    return pytester


def test_a_skip_is_an_error_that_names_test_and_reason_when_all_is_required(inner, monkeypatch):
    monkeypatch.setenv("NTKWATCH_REQUIRE_ALL", "1")
    inner.makepyfile(THREE_FATES.format(marker="slow"))
    result = inner.runpytest_inprocess("-ra")
    result.assert_outcomes(passed=1, errors=1, xfailed=1)
    result.stdout.fnmatch_lines(["*no such thing here*", "ERROR *::test_that_is_skipped*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_skip_inside_a_test_is_a_failure_when_all_is_required(inner, monkeypatch):
    monkeypatch.setenv("NTKWATCH_REQUIRE_ALL", "1")
    inner.makepyfile("import pytest\ndef test_it(): pytest.skip('changed my mind')")
    result = inner.runpytest_inprocess("-ra")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*changed my mind*", "FAILED *::test_it*"])


def test_a_gpu_test_may_be_skipped_when_all_is_required(inner, monkeypatch):
    monkeypatch.setenv("NTKWATCH_REQUIRE_ALL", "1")
    inner.makepyfile(THREE_FATES.format(marker="gpu"))
    result = inner.runpytest_inprocess()
    result.assert_outcomes(passed=1, skipped=1, xfailed=1)
    assert result.ret == pytest.ExitCode.OK


def test_a_skip_is_a_skip_when_nothing_is_required(inner):
    inner.makepyfile(THREE_FATES.format(marker="slow"))
    result = inner.runpytest_inprocess()
    result.assert_outcomes(passed=1, skipped=1, xfailed=1)
    assert result.ret == pytest.ExitCode.OK


def test_a_module_that_skips_itself_is_an_error_when_all_is_required(inner, monkeypatch):
    monkeypatch.setenv("NTKWATCH_REQUIRE_ALL", "1")
    inner.makepyfile("import pytest\npytest.skip('no such module', allow_module_level=True)")
    result = inner.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no such module*"])
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_each_test_starts_from_the_same_random_state(inner):
    inner.makepyfile(
        """
        import pytest, torch
        drawn = set()

        @pytest.mark.parametrize("turn", range(3))
        def test_draw(turn):
            drawn.add(torch.rand(1).item())
            assert len(drawn) == 1
        """
    )
    inner.runpytest_inprocess().assert_outcomes(passed=3)


def test_typecheck_refuses_a_kernel_that_is_not_square(inner):
    """Tried on a package of the same name beside the test, in a process that has not met ours."""
    package = inner.mkpydir("ntkwatch") / "kernel"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tiny.py").write_text(
        "from jaxtyping import Float\n"
        "from torch import Tensor\n"
        'def trace(kernel: Float[Tensor, "n n"]) -> Float[Tensor, ""]:\n'
        "    return kernel.diagonal().sum()\n"
    )
    inner.makepyfile(
        """
        import pytest, torch
        from ntkwatch.kernel.tiny import trace

        def test_a_square_passes():
            trace(torch.zeros(3, 3))

        def test_a_rectangle_is_refused():
            with pytest.raises(TypeError, match="ype-check"):
                trace(torch.zeros(2, 3))
        """
    )
    command = [sys.executable, "-m", "pytest", "--typecheck"]
    done = subprocess.run(command, cwd=inner.path, capture_output=True, text=True, timeout=300)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
