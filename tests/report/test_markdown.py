"""Markdown; oracle: markdown-it, which renders it to HTML."""

import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from report.made_runs import HOSTILE, feature_observations, lazy_observations, read_back, renamed

from ntkwatch.report.markdown import escape, render_markdown
from ntkwatch.watch.record.records import Gap
from ntkwatch.watch.verdict.verdict import judge


def _tokens(text):
    return MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(text)


def _inline(tokens):
    return [child for token in tokens for child in token.children or []]


def _page(history):
    return render_markdown(history, judge(history), title="run 1")


@pytest.fixture
def rich(tmp_path):
    return read_back(tmp_path, feature_observations())


def test_the_verdict_is_the_first_paragraph(rich):
    inline = [token.content for token in _tokens(_page(rich)) if token.type == "inline"]
    assert inline[:2] == ["ntkwatch: run 1", "**Verdict: feature-learning**"]


def test_tables_have_as_many_cells_in_every_row(rich):
    tables = re.findall(r"(?:^\|.*\n)+", _page(rich), re.M)
    # numbers, further numbers, anchors, when layers formed, layers, cost, settings
    assert len(tables) == 7
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_a_dollar_sign_opens_no_formula():
    """The oracle below knows no formulas; GitHub and notebooks do."""
    assert escape("$x$") == r"\$x\$"


@pytest.mark.parametrize(
    "name",
    [
        HOSTILE,
        "a|b",
        "*bold* _it_ `code` ~~gone~~",
        "[click](javascript:alert(1))",
        "![x](http://evil/x.png)",
        "# heading",
        "- item",
        "+ item",
        "1. item",
        "<!-- comment",
        "&lt;b&gt;",
        "line\nbreak",
        "$x^2$",
        "\\",
    ],
)
def test_a_name_is_shown_letter_by_letter_and_never_as_markup(name):
    (_, inline, _) = _tokens(f"{escape(name)}\n")
    assert {child.type for child in inline.children} <= {"text", "text_special"}
    assert "".join(child.content for child in inline.children) == name.replace("\n", " ")


def test_no_hostile_name_of_a_run_becomes_html(tmp_path):
    observations = tuple(
        replace(renamed(o, {"features.0": HOSTILE}), notes=(HOSTILE,)) for o in lazy_observations()
    )
    history = read_back(tmp_path, observations, gaps=(Gap(step=2, reason=HOSTILE),))
    tokens = _tokens(_page(history))
    assert [t.type for t in (*tokens, *_inline(tokens)) if t.type.startswith("html")] == []
    assert [t.type for t in _inline(tokens) if t.type in ("link_open", "image")] == []


def test_gaps_problems_and_reasons_are_on_the_page(tmp_path):
    history = read_back(tmp_path, lazy_observations(), gaps=(Gap(step=3, reason="no memory"),))
    history.problems = ("line 4 was cut off",)
    page = _page(history)
    assert "step 3: no memory" in page
    assert "line 4 was cut off" in page
