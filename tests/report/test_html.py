"""The pages; oracle: Python's own HTML parser, and hashes computed from what it finds."""

import base64
import hashlib
import itertools
import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report.made_runs import (
    HOSTILE,
    LAYERS,
    feature_observations,
    lazy_observations,
    observation,
    read_back,
    renamed,
    run_info,
)

from ntkwatch.report.html import render_comparison_html, render_html
from ntkwatch.watch.record.history import History, read_history
from ntkwatch.watch.record.records import Gap
from ntkwatch.watch.verdict.verdict import judge

PAGE_LIMIT = 6_000_000
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Elements, texts and scripts of a page, as a browser would find them."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self.scripts, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == [], "an element was left open"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def _html(history, title="run 1"):
    return render_html(history, judge(history), title=title)


def _page(history, title="run 1"):
    return Page(_html(history, title))


def _compared(runs, facts=None):
    return Page(
        render_comparison_html(
            [(name, history, judge(history)) for name, history in runs], title="Two", facts=facts
        )
    )


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    return read_back(tmp_path_factory.mktemp("rich"), feature_observations())


@pytest.fixture(scope="module")
def lazy(tmp_path_factory):
    return read_back(tmp_path_factory.mktemp("lazy"), lazy_observations())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run in which every text that a model, a data set or an error can set is markup."""
    observations = tuple(
        replace(
            renamed(o, {"features.0": HOSTILE, "features.2": "'\"><svg onload=window.pwned=1>"}),
            notes=(HOSTILE,),
            batchnorm=HOSTILE,
            target_alignment=None,
            left_out={**o.left_out, "target_alignment": HOSTILE, f"layer_angle/{HOSTILE}": HOSTILE},
        )
        for o in feature_observations()
    )
    info = replace(
        run_info(),
        spec={HOSTILE: HOSTILE, "outputs": HOSTILE},
        probe={"classes": {HOSTILE: 3}},
        model={"class": HOSTILE},
        reference=HOSTILE,
        versions={HOSTILE: HOSTILE},
        created=HOSTILE,
    )
    folder = tmp_path_factory.mktemp("hostile")
    return read_back(folder, observations, info=info, gaps=(Gap(step=2, reason=HOSTILE),))


def test_verdict_reason_evidence_and_next_step_come_before_the_first_plot(rich):
    verdict, text = judge(rich), _page(rich).text
    plots = text.index("Over training")
    for sentence in (verdict.label, verdict.reason, verdict.next_step, *verdict.evidence):
        assert 0 <= text.index(" ".join(sentence.split())) < plots


def test_every_layer_gap_reason_floor_and_setting_is_on_the_page(tmp_path):
    observations = tuple(
        replace(o, target_alignment=None, left_out={**o.left_out, "target_alignment": "no targets"})
        for o in lazy_observations()
    )
    history = read_back(tmp_path, observations, gaps=(Gap(step=40, reason="out of memory"),))
    text = _page(history).text
    expected = [
        "no targets",
        "never measured",
        "out of memory",
        "N = 64 probe points",
        "9f2c41d07be3",
    ]
    for said in (
        *LAYERS,
        *expected,
        "fitted on 72 small trainings",
        "Noise floors",
        "1.40e-07",
        "4.37 s",
    ):
        assert said in text


def test_a_line_that_was_cut_off_is_reported_on_the_page(tmp_path):
    history = read_back(tmp_path, lazy_observations())
    with history.path.open("a") as file:
        file.write('{"record": "observation", "step": 13')
    text = _page(read_history(history.path)).text
    assert "line 21 of history.jsonl is cut off" in text


def test_the_page_asks_for_nothing_but_itself(rich, lazy):
    for page in (_page(rich), _compared([("a", rich), ("b", lazy)])):
        for tag, attributes in page.elements:
            assert "src" not in attributes, tag
            for value in attributes.values():
                assert not re.match(r"\s*(https?:)?//", value or ""), (tag, value)
        assert {a["href"] for t, a in page.elements if "href" in a} == {"#verdict", "data:,"}


def test_the_style_loads_nothing(rich):
    outside_scripts = re.sub(r"<script.*?</script>", "", _html(rich), flags=re.S)
    (style,) = re.findall(r"<style>(.*?)</style>", outside_scripts, re.S)
    assert re.findall(r"url\(|@import", style) == []


def test_the_policy_forbids_the_network_and_every_script_but_the_page_s_own(rich):
    page = _page(rich)
    (policy,) = [a["content"] for a in page.all("meta") if "Content-Security" in str(a)]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    data, *scripts = page.scripts
    json.loads(data)
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    allowed = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    assert rules["script-src"].split() == allowed
    assert len(allowed) == 2


def test_hostile_names_stay_text_wherever_they_can_stand(hostile):
    page = _page(hostile, title=HOSTILE)
    assert len(page.scripts) == 3  # the data, plotly, ours
    assert page.all("img") == page.all("svg") == page.all("b") == []
    handlers = [(t, k) for t, attributes in page.elements for k in attributes if k.startswith("on")]
    assert handlers == []
    assert page.text.count(HOSTILE) > 10


def test_hostile_names_cannot_end_the_element_that_carries_the_data(hostile):
    (carried,) = re.findall(
        r'<script type="application/json" id="drawings">(.*?)</script>', _html(hostile), re.S
    )
    assert not set(carried) & set("<>&")
    names = [trace["name"] for trace in json.loads(carried)["layer-angles"]["data"]]
    assert [name for name in names if "<" in name] == []


def test_a_comparison_keeps_hostile_runs_and_facts_as_text(hostile, lazy):
    page = _compared([(HOSTILE, hostile), ("b", lazy)], {HOSTILE: {HOSTILE: HOSTILE}})
    assert len(page.scripts) == 3
    assert page.all("img") == page.all("b") == []
    assert page.text.count(HOSTILE) >= 4


def test_headings_step_down_one_level_at_a_time(rich, lazy):
    for page in (_page(rich), _compared([("a", rich), ("b", lazy)])):
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_every_table_header_has_a_scope_and_every_figure_a_name(rich, lazy):
    for page in (_page(rich), _compared([("a", rich), ("b", lazy)])):
        assert {header.get("scope") for header in page.all("th")} == {"col", "row"}
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        for figure in page.all("figure"):
            assert figure["aria-labelledby"] in ids
        plots = [a for a in page.all("div") if a.get("class") == "plot"]
        assert len(plots) == len(page.all("figure")) >= 8
        assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)


def test_every_plot_of_the_data_has_its_place_on_the_page(rich):
    page = _page(rich)
    places = {a["id"] for a in page.all("div") if a.get("class") == "plot"}
    assert {f"plot-{name}" for name in json.loads(page.scripts[0])} == places


def test_one_observation_makes_a_page_that_says_what_is_missing(tmp_path):
    page = _page(read_back(tmp_path, lazy_observations()[:1]))
    assert "undetermined (one observation)" in page.text
    assert "after 1 observation of" in page.text


def test_nothing_observed_makes_a_page():
    assert "undetermined" in _page(History()).text


def test_ten_thousand_observations_make_a_page_under_6_mb_within_seconds():
    steps = range(0, 100_000, 10)
    observations = tuple(observation(s, error=0.7, angle=0.6, end=100_000) for s in steps)
    spike = replace(observations[4321], loss=99.5)
    history = History(run_info(), (*observations[:4321], spike, *observations[4322:]))
    start = time.perf_counter()
    text = _html(history)
    assert time.perf_counter() - start < 15  # about 1 s on an idle core
    assert len(text.encode()) < PAGE_LIMIT
    page = Page(text)
    assert 99.5 in json.loads(page.scripts[0])["loss"]["data"][0]["y"]
    assert "99.5" in page.text  # the table keeps the extreme too


def test_a_comparison_shows_every_run_with_its_verdict_and_facts(rich, lazy):
    facts = {"lazy CNN": {"test accuracy": "93 %"}, "rich CNN": {"test accuracy": "98 %"}}
    page = _compared([("lazy CNN", lazy), ("rich CNN", rich)], facts)
    assert page.text.index("lazy CNN") < page.text.index("rich CNN")
    for said in ("93 %", "98 %", judge(lazy).reason, judge(rich).reason):
        assert said in page.text


def test_runs_at_equal_loss_need_no_caution(rich, lazy):
    assert "Before comparing" not in _compared([("a", lazy), ("b", rich)]).text


def test_runs_at_different_losses_are_to_be_read_at_equal_loss(rich, tmp_path):
    early = read_back(tmp_path, lazy_observations()[:12])
    ratio = early[-1].loss / early[-1].loss_start
    text = _compared([("early", early), ("late", rich)]).text
    assert "should be compared at equal loss" in text
    assert f"early: {ratio:.3f}" in text


def test_a_run_without_a_loss_ratio_is_named_before_comparing(rich, tmp_path):
    unknown = read_back(tmp_path, tuple(replace(o, loss=None) for o in lazy_observations()))
    text = _compared([("no loss here", unknown), ("b", rich)]).text
    assert "There is no loss ratio for no loss here" in text


def test_probes_of_different_size_are_named_before_comparing(rich, tmp_path):
    small = read_back(tmp_path, tuple(replace(o, probe_size=32) for o in feature_observations()))
    assert "N = 32, 64" in _compared([("a", rich), ("b", small)]).text


def test_kernels_of_another_kind_are_named_before_comparing(rich, tmp_path):
    about = {"sketch_columns": 64, "unjudged": "there are no bands for coupled ones"}
    other = read_back(tmp_path, tuple(replace(o, **about) for o in feature_observations()))
    text = _compared([("a", rich), ("b", other)]).text
    assert "not of one kind (b: there are no bands for coupled ones): do not compare" in text
    assert "Before comparing" not in _compared([("b", other), ("c", other)]).text


def test_a_page_says_what_the_intervals_of_a_sketch_are_over(rich, tmp_path):
    sketched = tuple(replace(o, sketch_columns=64) for o in feature_observations())
    said = "sketch of 64 random columns: their intervals hold 95 % over the choice of columns"
    assert said in _page(read_back(tmp_path, sketched)).text
    assert said not in _page(rich).text


def test_the_final_numbers_are_those_of_the_last_observation(rich, lazy):
    text = _compared([("a", lazy), ("b", rich)]).text
    row = f"top eigenvalue {lazy[-1].top_eigenvalues[0]:.0f} {rich[-1].top_eigenvalues[0]:.0f}"
    assert row in text
