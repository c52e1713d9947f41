"""Pictures: overlays, panels, sheets."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from litcam.explain.figures import GAP, LINE, enlarge, overlay, panel, sheet, shorten

RNG = np.random.default_rng(0)


@pytest.fixture
def photo():
    root = Path(os.environ.get("LITCAM_TEST_DATA", "/nowhere"), "pets/val/cat")
    file = next(iter(sorted(root.glob("*.jpg"))), None)
    if file is None:
        return RNG.integers(0, 256, (60, 80, 3), np.uint8)
    return np.asarray(Image.open(file).convert("RGB").resize((80, 60)))


def test_an_overlay_is_warm_where_the_map_is(photo):
    heatmap = np.zeros((60, 80), np.float32)
    heatmap[:30] = 1
    blended = overlay(photo, heatmap)
    assert blended.shape == photo.shape
    assert blended.dtype == np.uint8
    assert not np.array_equal(blended, photo)
    assert blended.mean() > 20, "black"
    red, blue = blended[..., 0].astype(int), blended[..., 2].astype(int)
    assert (red - blue)[:30].mean() > (red - blue)[30:].mean() + 100


def test_nothing_to_see_leaves_a_grey_photo(photo):
    grey = overlay(photo, np.zeros((60, 80), np.float32))
    assert grey.dtype == np.uint8
    assert np.array_equal(grey[..., 0], grey[..., 2])
    assert np.abs(grey[..., 0] - photo.mean(-1)).max() < 1
    assert not np.array_equal(grey, photo)


def test_a_black_photo_can_be_overlaid():
    black = np.zeros((8, 8, 3), np.uint8)
    assert overlay(black, np.eye(8, dtype=np.float32)).any()


def test_small_pictures_are_enlarged_and_large_ones_left(photo):
    assert enlarge(photo, 120).shape == (120, 160, 3)
    assert enlarge(photo, 60) is photo


def test_a_panel_has_gaps_between_its_pictures(photo):
    joined = panel([photo, photo, photo])
    assert joined.shape == (60, 3 * 80 + 2 * GAP, 3)
    assert np.array_equal(joined[:, :80], photo)
    assert (joined[:, 80 : 80 + GAP] == 255).all()
    assert np.array_equal(panel([photo]), photo)


def test_a_sheet_has_a_title_over_each_picture(photo):
    wide = RNG.integers(0, 256, (60, 200, 3), np.uint8)
    picture = sheet([[photo, wide], [photo]], [["cat", "a title far too long " * 9], ["x"]])
    height, width = 2 * (60 + GAP + LINE) + GAP, 2 * (80 + GAP) + GAP
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[GAP + LINE : GAP + LINE + 60, GAP : GAP + 80], photo)
    assert (picture[GAP : GAP + LINE, GAP : GAP + 80] < 128).any(), "no title"
    assert (picture[-GAP:] == 255).all()


def test_titles_of_two_lines_and_empty_cells(photo):
    rows = [[photo, photo, None], [photo, None, photo]]
    titles = [["cat\nphoto.jpg", "x", ""], ["dog", "", "y\nz"]]
    picture = sheet(rows, titles)
    top = 2 * LINE
    assert picture.shape == (2 * (60 + GAP + top) + GAP, 3 * (80 + GAP) + GAP, 3)
    assert np.array_equal(picture[GAP + top : GAP + top + 60, GAP : GAP + 80], photo)
    assert (picture[: 60 + GAP + top, 2 * (80 + GAP) + GAP :] == 255).all()
    second_line = picture[GAP + LINE : GAP + top, GAP : GAP + 80]
    assert (second_line < 128).any()


@pytest.mark.parametrize("line", ["short", "swin_base_patch4_window7_224", "wheaten terrier 0.12"])
def test_a_line_that_is_too_long_loses_its_middle(line):
    font = ImageFont.load_default(12)
    shown = shorten(line, 90, font)
    assert font.getlength(shown) <= 90
    assert (shown == line) == (font.getlength(line) <= 90)
    start, _, rest = shown.partition("…")
    assert line.startswith(start)
    assert line.endswith(rest)
    assert rest or shown == line
