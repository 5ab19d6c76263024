"""Pictures of kernels and layers; the oracle is their pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from report.made_runs import HOSTILE, LAYERS, feature_observations, lazy_observations, renamed

from ntkwatch.integrations.dashboard.layer_map import layer_picture
from ntkwatch.integrations.dashboard.pictures import kernel_picture, spectrum_picture
from ntkwatch.watch.verdict.bands import Bands

CLASSES = [2, 0, 1] * 8


def _kernel(n=24, seed=0):
    rows = torch.randn(n, 60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows @ rows.T + 20


def _with_block(kernel, label, size):
    """The kernel with its samples of one class grown alike."""
    members = torch.tensor([name == label for name in CLASSES]).double()
    return kernel + size * torch.outer(members, members)


def _colours(picture):
    """Reddish and bluish pixels of the right half, which shows the change."""
    half = picture[60:360, 415:708].astype(int)
    red, blue = half[..., 0] - half[..., 2], half[..., 2] - half[..., 0]
    return (red > 25), (blue > 25)


def test_growth_alone_leaves_the_change_blank_and_the_matrix_as_it_was():
    kernel = _kernel()
    start = kernel_picture(kernel, kernel, step=0, classes=CLASSES)
    grown = kernel_picture(7.5 * kernel, kernel, step=0, classes=CLASSES)
    np.testing.assert_array_equal(grown[70:350, 50:335], start[70:350, 50:335])
    assert not any(mask.any() for mask in _colours(grown))


def test_a_class_that_moved_together_is_one_square_on_the_diagonal():
    kernel = _kernel()
    picture = kernel_picture(_with_block(kernel, 1, 60.0), kernel, step=9, classes=CLASSES)
    red, _ = _colours(picture)
    rows, columns = np.nonzero(red)
    # Classes in the order 0, 1, 2: the middle third, though its samples lie scattered.
    assert rows.min() > 0.28 * len(red)
    assert rows.max() < 0.72 * len(red)
    assert (rows.min(), rows.max()) == pytest.approx((columns.min(), columns.max()), abs=15)
    assert red[110:190, 110:185].mean() > 0.8


def test_the_same_change_has_the_same_colours_at_every_step():
    kernel, moved = _kernel(), _with_block(_kernel(), 1, 60.0)
    early = kernel_picture(moved, kernel, step=2, classes=CLASSES)
    late = kernel_picture(3 * moved, kernel, step=2, classes=CLASSES)
    np.testing.assert_array_equal(early[60:360, 415:708], late[60:360, 415:708])


@pytest.mark.parametrize(
    ("kernel", "reference"),
    [
        (torch.zeros(3, 3), torch.zeros(3, 3)),
        (torch.eye(3), torch.zeros(3, 3)),
        (-torch.eye(3), torch.eye(3)),
        (torch.full((3, 3), 1e-30), torch.full((3, 3), 1e30)),
        (torch.ones(1, 1), torch.ones(1, 1)),
    ],
    ids=["zero", "from zero", "turned round", "tiny", "one point"],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_any_kernel_can_be_drawn(kernel, reference, labelled):
    classes = [5] * len(kernel) if labelled else None
    picture = kernel_picture(kernel.double(), reference.double(), step=1, classes=classes)
    assert picture.shape == (400, 760, 3)


def test_hundreds_of_classes_are_named_sparsely():
    kernel = torch.eye(300, dtype=torch.float64)
    picture = kernel_picture(kernel, kernel, step=1, classes=list(range(300)))
    assert picture[356:375, 40:340].min() > 50, "names do not run into each other"
    assert (picture[356:375, 40:340] < 160).mean() < 0.15


def test_the_spectrum_now_covers_the_start_where_nothing_moved():
    spectrum = torch.logspace(3, 0, 64, dtype=torch.float64)
    still = spectrum_picture(spectrum, spectrum, step=5, start=0, precision=torch.float32)
    risen = spectrum_picture(9 * spectrum, spectrum, step=5, start=0, precision=torch.float32)
    assert still.shape == (420, 600, 3)
    line = [
        np.nonzero(np.abs(p[70:330].astype(int) - [0xD1, 0x57, 0x1B]).sum(axis=2) < 40)
        for p in (still, risen)
    ]
    broad = [
        np.nonzero(np.abs(p[70:330].astype(int) - [0xB9, 0xC1, 0xCA]).sum(axis=2) < 20)
        for p in (still, risen)
    ]
    middle = [(rows[0].mean(), under[0].mean()) for rows, under in zip(line, broad, strict=True)]
    assert middle[0][0] == pytest.approx(middle[0][1], abs=12)
    assert middle[1][0] < middle[1][1] - 40, "the higher line is higher up"


def test_eigenvalues_that_are_rounding_are_left_out():
    spectrum = torch.tensor([1.0, 1e-2, 1e-9], dtype=torch.float64)
    known = spectrum_picture(spectrum, spectrum, step=1, start=0, precision=torch.float64)
    rounded = spectrum_picture(spectrum, spectrum, step=1, start=0, precision=torch.float32)
    without = spectrum_picture(
        spectrum * torch.tensor([1, 1, 0]),
        spectrum * torch.tensor([1, 1, 0]),
        step=1,
        start=0,
        precision=torch.float64,
    )
    assert not np.array_equal(known, rounded)
    np.testing.assert_array_equal(rounded, without)


@pytest.mark.parametrize("spectrum", [torch.zeros(4), torch.tensor([2.0]), -torch.ones(3)])
def test_any_spectrum_can_be_drawn(spectrum):
    wide = spectrum.double()
    spectrum_picture(wide, wide, step=1, start=0, precision=torch.float32)


# Layers. ------------------------------------------------------------------------------------------


def _angles(rows, bands=None):
    """A picture of layers whose angles are the rows, over as many observations as columns."""
    first, *_ = feature_observations()
    observations = [
        replace(
            first, step=step, layer_angle={f"layer {i}": row[step] for i, row in enumerate(rows)}
        )
        for step in range(len(rows[0]))
    ]
    return layer_picture(observations, bands or Bands())


def _inside(picture):
    """The pixels of the map, which is the widest coloured rectangle."""
    coloured = np.ptp(picture.astype(int), axis=2) > 12
    rows = np.nonzero(coloured.mean(axis=1) > 0.3)[0]
    columns = np.nonzero(coloured[rows].mean(axis=0) > 0.5)[0]
    left = columns[: 1 + np.argmax(np.append(np.diff(columns) > 1, True))]
    return picture[rows[0] : rows[-1] + 1, left[0] : left[-1] + 1].astype(int)


def test_layers_are_rows_and_observations_are_columns():
    heat = _inside(_angles([[0.0, 0.001, 1.0], [0.0, 1.0, 1.0]]))
    height, width = heat.shape[:2]
    seen = [
        [heat[int((r + 0.5) * height / 2), int((c + 0.5) * width / 3)] for c in range(3)]
        for r in range(2)
    ]
    is_red = [[pixel[0] > pixel[2] for pixel in row] for row in seen]
    assert is_red == [[False, False, True], [False, True, True]]


def test_an_angle_that_is_not_known_is_grey():
    heat = _inside(_angles([[1.0, 1.0, 1.0], [0.001, 0.001, None], [1.0, float("nan"), 1.0]]))
    height, width = heat.shape[:2]
    pixels = [heat[int(r * height), int(c * width)] for r, c in ((0.5, 5 / 6), (5 / 6, 0.5))]
    assert [pixel.tolist() for pixel in pixels] == [[0xE3, 0xE6, 0xEA]] * 2


def test_one_of_five_hundred_layers_that_moved_is_seen():
    still, moved = [[0.001] * 3 for _ in range(500)], 317
    still[moved] = [0.001, 0.001, 1.2]
    heat = _inside(_angles(still))
    red = heat[:, int(heat.shape[1] * 5 / 6)]
    found = np.nonzero(red[:, 0] - red[:, 2] > 60)[0] / len(red)
    assert len(found)
    assert found.min() - 1 / 40 <= moved / 500 <= found.max() + 1 / 40


def test_a_run_of_thousands_of_observations_keeps_its_largest_angle():
    row = [0.001] * 3000
    row[1234] = 1.2
    heat = _inside(_angles([row, [0.001] * 3000]))
    top = heat[heat.shape[0] // 4]
    assert (top[:, 0] - top[:, 2] > 60).any()


@pytest.mark.parametrize("name", [HOSTILE, "", r"$\frac{$", "_hidden", "x" * 400, "行列\n\x1b[31m"])
def test_any_name_can_stand_beside_a_row(name):
    observations = [renamed(o, {LAYERS[0]: name}) for o in lazy_observations()]
    picture = layer_picture(observations, Bands())
    assert picture is not None
    assert picture.shape[1] == 760


def test_without_any_angle_there_is_no_picture():
    first, *_ = lazy_observations()
    assert layer_picture([], Bands()) is None
    assert layer_picture([replace(first, layer_angle={})], Bands()) is None
    assert layer_picture([replace(first, layer_angle={"a": None})], Bands()) is None


def test_bands_that_do_not_hold_are_not_named():
    observations = feature_observations()
    judged = layer_picture(observations, Bands())
    batch = [replace(o, unjudged="differentiated batch statistics") for o in observations]
    unjudged = layer_picture(batch, Bands())
    np.testing.assert_array_equal(judged[:, :650], unjudged[:, :650])
    assert (unjudged[:, 680:] < 128).sum() < (judged[:, 680:] < 128).sum()


def test_pictures_leave_the_user_s_backend_and_figures_alone():
    import sys

    kernel_picture(_kernel(), _kernel(), step=1)
    assert "matplotlib.pyplot" not in sys.modules or not (
        sys.modules["matplotlib.pyplot"].get_fignums()
    )
