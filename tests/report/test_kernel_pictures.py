"""The kernel then and now; oracles: numpy on a matrix written by hand, and plotly's own checker."""

import json
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
from report.made_runs import feature_observations, read_back, run_info
from safetensors.numpy import save_file

from ntkwatch.__main__ import main
from ntkwatch.report.html import render_html
from ntkwatch.report.kept_kernels import KernelPair, read_kernel_pair
from ntkwatch.report.kernel_drawings import kernel_drawings
from ntkwatch.watch.verdict.verdict import judge

N = 64
LABELS = np.arange(N) % 3


def _kernel(seed, n=N):
    half = np.random.default_rng(seed).normal(size=(n, n))
    return half @ half.T


def _keep(folder, step, kernel):
    (folder / "kernels").mkdir(exist_ok=True)
    save_file({"kernel": kernel}, folder / "kernels" / f"step={step:08d}.safetensors")


@pytest.fixture
def run(tmp_path):
    """Kernels of the first step and of step 900; the last observation has none."""
    history = read_back(tmp_path, feature_observations())
    _keep(tmp_path, 0, _kernel(0))
    _keep(tmp_path, 900, _kernel(1))
    save_file({"targets": LABELS}, tmp_path / "probe.safetensors")
    return history


def test_the_first_and_the_last_kernel_come_in_the_order_of_classes(run, tmp_path):
    pair = read_kernel_pair(tmp_path, run)
    order = np.argsort(LABELS, kind="stable")
    assert (pair.start, pair.end) == (0, 900)
    assert pair.classes == tuple(sorted(LABELS.tolist()))
    np.testing.assert_array_equal(pair.then, _kernel(0)[order][:, order])
    np.testing.assert_array_equal(pair.now, _kernel(1)[order][:, order])


@pytest.mark.parametrize("targets", [None, np.ones(N), np.ones((N, 2), int), np.ones(3, int)])
def test_without_classes_the_order_is_that_of_the_probe(run, tmp_path, targets):
    content = {"inputs": np.zeros((N, 2))} | ({} if targets is None else {"targets": targets})
    save_file(content, tmp_path / "probe.safetensors")
    pair = read_kernel_pair(tmp_path, run)
    assert pair.classes is None
    np.testing.assert_array_equal(pair.now, _kernel(1))


@pytest.mark.parametrize(
    "broken",
    [_kernel(0, 5), np.zeros(4), np.full((N, N), np.nan), np.zeros((N, N, 1)), b"", b"\x08" * 400],
)
def test_a_kernel_that_is_none_is_a_picture_that_is_not_there(run, tmp_path, broken):
    if isinstance(broken, bytes):
        (tmp_path / "kernels" / "step=00000900.safetensors").write_bytes(broken)
    else:
        _keep(tmp_path, 900, broken)
    assert read_kernel_pair(tmp_path, run) is None
    assert "kernel-now" not in _drawn(render_html(run, judge(run), title="run"))


def test_kernels_of_fresh_probes_are_not_set_side_by_side(tmp_path):
    info = run_info()
    info = replace(info, probe={**info.probe, "resampled": True})
    history = read_back(tmp_path, feature_observations(), info=info)
    for step in (0, 900):
        _keep(tmp_path, step, _kernel(step))
    assert read_kernel_pair(tmp_path, history) is None


def _pair(then, now, classes=None):
    return KernelPair(start=0, end=9, then=then, now=now, classes=classes)


def test_the_later_kernel_is_shown_without_its_growth_in_the_colours_of_the_start():
    then = _kernel(0)
    first, second, spectrum = kernel_drawings(_pair(then, 7 * then), precision="float64")
    shown = [np.array(d.plot["data"][0]["z"]) for d in (first, second)]
    np.testing.assert_allclose(shown[0], then, rtol=6e-3)
    np.testing.assert_allclose(shown[1], then, rtol=6e-3)
    assert [first.plot["data"][0][key] for key in ("zmin", "zmax")] == [then.min(), then.max()]
    assert first.plot["data"][0]["zmax"] == second.plot["data"][0]["zmax"]
    assert "growth (7.00)" in second.caption
    curves = spectrum.plot["data"]
    wanted = np.linalg.eigvalsh(then)[::-1]
    np.testing.assert_allclose(curves[0]["y"], wanted[: len(curves[0]["y"])], rtol=1e-5)
    np.testing.assert_allclose(curves[1]["y"], 7 * np.array(curves[0]["y"]), rtol=1e-5)
    for drawing in (first, second, spectrum):
        go.Figure(**drawing.plot)


def test_eigenvalues_that_rounding_made_are_left_out():
    flat = np.ones((8, 8))  # of rank one
    *_, spectrum = kernel_drawings(_pair(flat, flat), precision="float32")
    assert [len(curve["y"]) for curve in spectrum.plot["data"]] == [1, 1]


@pytest.mark.parametrize("n", [97, 200, 500])
def test_a_large_kernel_is_drawn_in_means_that_miss_no_entry(n):
    then = _kernel(3, n)
    drawing, *_ = kernel_drawings(_pair(then, then), precision="float64")
    cells = np.array(drawing.plot["data"][0]["z"])
    width = -(-n // 96)
    assert f"the mean of {width} x {width} pairs" in drawing.caption
    assert len(cells) == -(-n // width) <= 96
    corner = then[-1 - (n - 1) % width :, :width]
    assert cells[-1, 0] == pytest.approx(corner.mean(), rel=6e-3)


def test_classes_stand_at_their_middles():
    then = _kernel(0, 6)
    drawing, *_ = kernel_drawings(_pair(then, then, (0, 0, 0, 4, 4, 7)), precision="float64")
    axis = drawing.plot["layout"]["xaxis"]
    assert (axis["tickvals"], axis["ticktext"]) == ([1.0, 3.5, 5.0], ["0", "4", "7"])


def _drawn(page):
    data = page.partition('id="drawings">')[2].partition("</script>")[0]
    return json.loads(data)


def test_the_command_shows_the_kernels_that_lie_beside_the_history(run, tmp_path):
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--format", "html", "-o", str(page)]) == 0
    shown = _drawn(page.read_text(encoding="utf-8"))
    assert {"kernel-then", "kernel-now", "spectrum"} <= set(shown)
    assert {"linearization-error-against-loss", "layer-angle-median-against-loss"} <= set(shown)


def test_drift_is_drawn_against_the_loss_ratio_with_bands(run):
    plot = _drawn(render_html(run, judge(run), title="run"))["linearization-error-against-loss"]
    *_, curve = plot["data"]
    wanted = [o.loss / o.loss_start for o in run if o.linearization_error is not None]
    np.testing.assert_allclose(curve["x"], wanted, rtol=1e-5)
    assert len(plot["layout"]["shapes"]) == 3


def test_one_observation_makes_no_empty_plots(tmp_path):
    history = read_back(tmp_path, feature_observations()[:1])
    page = render_html(history, judge(history), title="run")
    assert _drawn(page) == {}
    assert "One observation makes no curve" in page
    assert "The only observation." in page
