"""The picture; oracle: the PNG read back by pillow."""

import numpy as np
import pytest
from PIL import Image
from report.made_runs import HOSTILE, feature_observations, lazy_observations, read_back

from ntkwatch.report.colours import STRENGTH_COLOURS
from ntkwatch.report.picture import save_comparison_png
from ntkwatch.watch.verdict.verdict import Strength, judge


def _runs(tmp_path, *names):
    made = (lazy_observations(), feature_observations())
    histories = [read_back(tmp_path / str(i), o) for i, o in enumerate(made)]
    return [(n, h, judge(h)) for n, h in zip(names, histories, strict=True)]


def _pixels_of(picture, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture.astype(int) - wanted).sum(axis=2) < 12).sum())


def test_the_picture_is_1800_pixels_wide_and_shows_each_run_in_its_colour(tmp_path):
    path = tmp_path / "compared.png"
    save_comparison_png(_runs(tmp_path, "lazy", "rich"), path)
    with Image.open(path) as image:
        assert image.size == (1800, 840)
        picture = np.asarray(image.convert("RGB"))
    for strength in (Strength.LAZY, Strength.FEATURE_LEARNING):
        assert _pixels_of(picture, STRENGTH_COLOURS[strength]) > 2000


@pytest.mark.parametrize("name", [HOSTILE, r"$\frac{$", "_hidden", "100 % $"])
def test_any_name_can_stand_in_the_legend(tmp_path, name):
    path = tmp_path / "compared.png"
    save_comparison_png(_runs(tmp_path, name, "rich"), path)
    with Image.open(path) as image:
        legend = np.asarray(image.convert("RGB"))[:70]
    for strength in (Strength.LAZY, Strength.FEATURE_LEARNING):
        assert _pixels_of(legend, STRENGTH_COLOURS[strength]) > 100


def test_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run was given"):
        save_comparison_png([], tmp_path / "x.png")
