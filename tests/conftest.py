"""What every test gets: a fixed seed, the devices of this machine, checked shapes, no silent skip.

Nothing here knows what ntkwatch computes; slow references are in ``oracles.py``.
"""

import os
from collections.abc import Generator

import pytest
import torch
from _pytest.reports import CollectReport, TestReport
from jaxtyping import install_import_hook

REQUIRE_ALL = "NTKWATCH_REQUIRE_ALL"


# Where tensors' shapes are annotated. What users call is left out: its own refusals are tested.
SHAPED = ["ntkwatch.kernel", "ntkwatch.jacobian.blocks", "ntkwatch.jacobian.outputs"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--typecheck",
        action="store_true",
        help="check the annotated shapes of ntkwatch at each call (jaxtyping, beartype)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--typecheck"):
        # Before any test module imports ntkwatch: modules imported earlier stay unchecked.
        install_import_hook(SHAPED, "beartype.beartype")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, TestReport, TestReport]:
    report = yield
    # pytest reports an expected failure as skipped too; strict xfails are looked at by pytest.
    expected_failure = hasattr(report, "wasxfail")
    if not expected_failure and not item.get_closest_marker("gpu"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, CollectReport, CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: TestReport | CollectReport) -> None:
    """Turn a skip into a failure where the environment says that everything must run."""
    if report.skipped and os.environ.get(REQUIRE_ALL) == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} ({REQUIRE_ALL}=1: only tests marked gpu may be skipped)"


def _devices() -> list[object]:
    """Return this machine's devices as pytest parameters; all but the processor are marked gpu."""
    found: list[object] = ["cpu"]
    if torch.cuda.is_available():
        found.append(pytest.param("cuda", marks=pytest.mark.gpu))
    if torch.backends.mps.is_available():
        found.append(pytest.param("mps", marks=pytest.mark.gpu))
    return found


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
