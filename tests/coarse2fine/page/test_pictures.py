"""Outlines, greys, reductions and close-ups; matplotlib, Pillow and scikit-image are the references."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from PIL import Image
from skimage.transform import downscale_local_mean

from coarse2fine.page.outlines import outline
from coarse2fine.page.pictures import Frame, close_up, png, reduced, scale_for
from coarse2fine.page.thumbnail import thumbnail
from coarse2fine.page.window import BONE, LUNG, SOFT_TISSUE, pick_window


def pixels(url: str) -> np.ndarray:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@given(st.integers(0, 10_000), st.floats(0.2, 3), st.floats(0.2, 3))
@settings(max_examples=60, deadline=None)
def test_outline__any_mask__encloses_the_centres_of_its_pixels_and_no_others(seed: int, dy: float, dx: float) -> None:
    """By the even-odd rule, which browsers apply to holes, as matplotlib's paths see it."""
    mask = np.random.default_rng(seed).random((7, 9)) < 0.4
    inside = np.zeros(mask.shape, bool)
    centres = np.stack(np.meshgrid((np.arange(9) + 0.5) * dx, (np.arange(7) + 0.5) * dy), axis=-1).reshape(-1, 2)
    for part in re.findall(r"M(.*?)Z", outline(mask, (dy, dx))):
        points = [tuple(map(float, pair.split())) for pair in part.split("L")]
        inside ^= Polygon([*points, points[0]]).contains_points(centres).reshape(mask.shape)
    assert np.array_equal(inside, mask)


def test_png__grey_and_coloured__are_read_back() -> None:
    """By Pillow; pixels lie in rows."""
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    coloured = np.random.default_rng(0).integers(0, 255, (2, 3, 4)).astype(np.uint8)
    assert np.array_equal(pixels(png(grey)), grey)
    assert np.array_equal(pixels(png(coloured)), coloured)


def test_reduced__large_slice__is_scikit_images_mean() -> None:
    """A slice of 2100 pixels is shown by squares of three; a small one as it is."""
    slice_ = np.random.default_rng(0).random((2100, 90))
    small, factor = reduced(slice_)
    assert factor == 3
    np.testing.assert_allclose(small, downscale_local_mean(slice_, (3, 3)), rtol=1e-5)
    assert reduced(slice_[:50])[1] == 1
    odd, _ = reduced(np.full((2101, 7), 5.0))
    assert odd.shape == (701, 3)
    assert (odd == 5).all()


@given(st.floats(1e-3, 1e9), st.sampled_from(["mm", "nm"]))
def test_scale_for__any_width__is_a_tenth_to_a_fifth_of_it(width: float, unit: str) -> None:
    """One, two or five times a power of ten, and the words say how long it is."""
    scale = scale_for(width, unit)
    assert width / 12.6 <= scale.length <= width / 4.99
    number, said = scale.words.split()
    assert float(number) * (1000 if said == "um" and unit == "nm" else 1) == pytest.approx(scale.length, rel=1e-4)
    assert f"{scale.length:.0e}"[0] in "125"


@given(st.floats(0, 300), st.floats(0, 200), st.floats(0.5, 200), st.floats(0.5, 100))
def test_close_up__anywhere__holds_what_was_found_and_lies_in_the_slice(
    left: float, top: float, width: float, height: float
) -> None:
    """With the slice's proportions; nothing if it would show most of the slice anyway."""
    frame = Frame(left, top, min(width, 300 - left), min(height, 200 - top))
    close = close_up(frame, (200.0, 300.0), "mm")
    if close is None:
        assert max(frame.width / 300, frame.height / 200) * 1.6 > 0.6
        return
    assert close.width / close.height == pytest.approx(1.5)
    assert 60 <= close.width <= 180.001
    assert -1e-9 <= close.left <= frame.left + 1e-9
    assert frame.left + frame.width <= close.left + close.width + 1e-9 <= 300 + 1e-6
    assert frame.top + frame.height <= close.top + close.height + 1e-9 <= 200 + 1e-6


def test_pick_window__ct__is_that_of_the_surroundings() -> None:
    """Air around it: lung; bone around it: bone; else soft tissue."""
    shown = np.array([-1000.0, 0, 1000])
    assert pick_window(shown, np.full(9, -850), ct=True) is LUNG
    assert pick_window(shown, np.full(9, 40), ct=True) is SOFT_TISSUE
    assert pick_window(shown, np.full(9, 700), ct=True) is BONE


def test_pick_window__no_ct__is_the_range_of_what_is_not_zero() -> None:
    """A background of zeros counts nothing, nor does what is no number; the words say the range."""
    values = np.concatenate([np.zeros(1000), np.arange(1, 1001), [np.nan, np.inf]])
    window = pick_window(values, np.empty(0), ct=False)
    assert window.low == pytest.approx(np.percentile(np.arange(1, 1001), 1))
    assert window.high == pytest.approx(np.percentile(np.arange(1, 1001), 99.5))
    assert window.words == "grey values 10.99 to 995"
    assert window.grey(np.array([0, 10.99, 503, 2000, np.nan])).tolist() == [0, 0, 128, 255, 0]


def test_pick_window__constant_or_empty__is_drawn() -> None:
    """Nothing to spread over a range."""
    assert pick_window(np.zeros(4), np.empty(0), ct=False).grey(np.zeros(4)).tolist() == [0] * 4
    assert pick_window(np.full(4, 7.0), np.empty(0), ct=True).grey(np.full(4, 7.0)).tolist() == [0] * 4


def test_thumbnail__anisotropic_slice__has_its_true_proportions_and_coloured_borders() -> None:
    """The border of the first label is orange, that of the second light blue; what is inside stays grey."""
    labels = np.zeros((50, 100), np.uint8)
    labels[10:40, 10:40], labels[10:40, 60:90] = 4, 9
    image = pixels(thumbnail(np.full((50, 100), 100, np.uint8), labels, (200.0, 100.0), [4, 9]))
    assert image.shape == (128, 64, 3)
    colours = {tuple(colour) for colour in image.reshape(-1, 3).tolist()}
    assert colours == {(100, 100, 100), (0xE6, 0x9F, 0), (0x56, 0xB4, 0xE9)}
    assert image[64, 16].tolist() == [100] * 3
