"""The page of promises names tests that are there; oracle: the test files themselves."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGES = sorted((TESTS.parent / "docs").glob("promise*.md"))


def _functions() -> set[str]:
    found = set()
    for path in TESTS.rglob("test_*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        found |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_promise_names_a_test_that_exists(page):
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))
    assert len(named) > 0
    assert named - _functions() == set()
