"""From heatmaps to candidates."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import ceil

import numpy as np
import pytest
from heatmap_examples import VOLUMES, common_grid, heatmaps, spot
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from scipy import ndimage

from canvas import Box, Triple
from coarse2fine.regions.detect import RoiSettings, find_rois

relaxed = settings(deadline=None)


def found(heatmap: np.ndarray, volume: Triple, **changes) -> list[Box]:
    arguments = {"threshold": 0.5, "window": (1000, 1000, 1000)} | changes
    return [roi.box for roi in find_rois(heatmap, volume, RoiSettings(**arguments))]


@given(
    heatmaps(),
    VOLUMES,
    st.builds(
        RoiSettings,
        threshold=st.sampled_from([0.0, 0.125, 0.25]),
        window=st.tuples(*[st.integers(2, 6)] * 3),
        heatmap_voxel=st.none() | st.tuples(*[st.integers(1, 4)] * 3),
        margin=st.tuples(*[st.integers(0, 4)] * 3),
        window_step=st.sampled_from([0.3, 0.5, 1.0]),
    ),
)
@settings(max_examples=200, deadline=None)
def test_find_rois__any_heatmap__loses_no_voxel_and_fits_the_window(heatmap, volume, chosen) -> None:
    """Every part of every heatmap voxel above the threshold lies in a candidate, and no candidate is too large."""
    rois = find_rois(heatmap, volume, chosen)
    held = np.zeros(np.multiply(heatmap.shape, volume), dtype=bool)
    for roi in rois:
        assert roi.box.fits(chosen.window)
        assert Box.whole(volume).contains(roi.box)
        fine, inside = common_grid(heatmap, volume, roi.box)
        assert chosen.threshold < roi.score <= heatmap.max()
        if chosen.heatmap_voxel is None:
            assert roi.score in fine[inside]
        assert roi.mass == pytest.approx(fine[inside & (fine > chosen.threshold)].sum() / heatmap.size, rel=1e-12)
        held |= inside
    fine, _ = common_grid(heatmap, volume, Box.whole(volume))
    assert held[fine > chosen.threshold].all()
    assert find_rois(heatmap, volume, chosen) == rois


@relaxed
@given(heatmaps(), VOLUMES)
def test_find_rois__large_window__finds_the_boxes_of_scipy(heatmap, volume) -> None:
    """Boxes are those of scipy's components with all 26 neighbours, scaled and rounded outwards."""
    labels, _ = ndimage.label(heatmap > 0.25, structure=np.ones((3, 3, 3)))
    scale = [Fraction(edge, count) for edge, count in zip(volume, heatmap.shape, strict=True)]
    expected = set()
    for slices in ndimage.find_objects(labels):
        start = tuple(int(part.start * size) for part, size in zip(slices, scale, strict=True))
        expected.add((start, tuple(ceil(part.stop * size) for part, size in zip(slices, scale, strict=True))))
    assert {(box.start, box.stop) for box in found(heatmap, volume, threshold=0.25)} == expected


def test_find_rois__thousand_components__equals_scipy() -> None:
    """Boxes, scores and masses of about a thousand random components, each computed by scipy."""
    heatmap = np.random.default_rng(0).random((20, 60, 60), dtype=np.float32) ** 8
    volume = (40, 180, 180)
    labels, count = ndimage.label(heatmap > 0.75, structure=np.ones((3, 3, 3)))
    assert count > 700
    peaks = ndimage.maximum(heatmap, labels, np.arange(1, count + 1))
    rois = find_rois(heatmap, volume, RoiSettings(threshold=0.75, window=volume))
    expected = {}
    for slices, peak in zip(ndimage.find_objects(labels), peaks, strict=True):
        block = heatmap[slices].astype(np.float64)
        start, stop = (
            [getattr(part, end) * s for part, s in zip(slices, (2, 3, 3), strict=True)] for end in ("start", "stop")
        )
        expected[*start, *stop, float(peak)] = block[block > 0.75].sum() * 18
    assert {(*roi.box.start, *roi.box.stop, roi.score): roi.mass for roi in rois} == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (1, 7, 1), (99, 1, 1), (3, 3, 3), (1, 31, 35), (5, 5, 6)])
def test_find_rois__isolated_voxels_in_a_thin_heatmap__are_all_found(shape) -> None:
    """A lattice of single voxels, for which cc3d alone runs out of labels if an axis is short and odd."""
    heatmap = (np.indices(shape) % 2 == 0).all(axis=0).astype(np.float32)
    expected = [Box.of(start, (1, 1, 1)) for start in np.argwhere(heatmap)]
    assert sorted(found(heatmap, shape)) == expected


def test_find_rois__threshold__is_exclusive() -> None:
    """A voxel exactly at the threshold is not foreground."""
    heatmap = spot((4, 4, 4), ((1, 1, 1), (2, 2, 2), 0.5))
    assert found(heatmap, (4, 4, 4), threshold=0.5) == []
    assert found(heatmap, (4, 4, 4), threshold=0.49) == [Box((1, 1, 1), (2, 2, 2))]


def test_find_rois__voxels_that_share_a_corner__are_one_component() -> None:
    """Diagonal neighbours belong together."""
    heatmap = spot((4, 4, 4), ((0, 0, 0), (1, 1, 1), 0.9), ((1, 1, 1), (2, 2, 2), 0.9))
    assert found(heatmap, (4, 4, 4)) == [Box((0, 0, 0), (2, 2, 2))]


def test_find_rois__min_edge__drops_the_flat_component() -> None:
    """The component of 3 x 16 x 16 working voxels goes, the one of 6 x 16 x 16 stays, and without min_edge both do."""
    heatmap = spot((10, 10, 10), ((0, 0, 0), (1, 1, 1), 0.9), ((4, 4, 4), (6, 5, 5), 0.9))
    flat, tall = Box((0, 0, 0), (3, 16, 16)), Box((12, 64, 64), (18, 80, 80))
    assert found(heatmap, (30, 160, 160)) == [flat, tall]
    assert found(heatmap, (30, 160, 160), min_edge=3.0) == [flat, tall]
    assert found(heatmap, (30, 160, 160), min_edge=4.0) == [tall]
    assert found(heatmap, (30, 160, 160), min_edge=4.0, margin=(2, 0, 0)) == [tall.grow((2, 0, 0))]


def test_find_rois__min_voxels__drops_the_small_component() -> None:
    """Six voxels stay at a minimum of 6, five do not; counted are voxels of the component, not of its box."""
    six = ((0, 0, 0), (1, 2, 3), 0.9)
    heatmap = spot((10, 10, 10), six, ((5, 5, 5), (6, 7, 8), 0.9), ((5, 5, 5), (6, 6, 6), 0.1))
    assert len(found(heatmap, (10, 10, 10))) == 2
    assert found(heatmap, (10, 10, 10), min_voxels=6) == [Box((0, 0, 0), (1, 2, 3))]


def test_find_rois__margin__grows_and_is_clipped_to_the_volume() -> None:
    """The box at the border grows only inwards."""
    heatmap = spot((8, 8, 8), ((0, 3, 6), (2, 5, 8), 0.9))
    assert found(heatmap, (8, 8, 8)) == [Box((0, 3, 6), (2, 5, 8))]
    assert found(heatmap, (8, 8, 8), margin=(1, 2, 3)) == [Box((0, 1, 3), (3, 7, 8))]


def test_find_rois__heatmap_voxel__joins_components_that_are_near() -> None:
    """On voxels of 4, two components with a gap of 3 touch and become one box on the coarser grid."""
    heatmap = spot((8, 8, 16), ((0, 0, 3), (1, 1, 4), 0.9), ((0, 0, 7), (1, 1, 8), 0.7))
    assert len(found(heatmap, (8, 8, 16))) == 2
    rois = find_rois(heatmap, (8, 8, 16), RoiSettings(threshold=0.5, window=(8, 8, 8), heatmap_voxel=(4, 4, 4)))
    assert [roi.box for roi in rois] == [Box((0, 0, 0), (4, 4, 8))]
    assert rois[0].score == np.float32(0.9)
    assert rois[0].mass == pytest.approx(1.6)


@pytest.mark.parametrize("step", [0.5, 0.7, 1.0])
def test_find_rois__dense_component__is_tiled_like_nnunet(step) -> None:
    """Windows over a component that fills the volume start where nnU-Net's sliding window does."""
    volume, window = (20, 31, 50), (8, 16, 24)
    boxes = found(np.ones(volume, dtype=np.float32), volume, window=window, window_step=step)
    expected = product(*compute_steps_for_sliding_window(volume, window, step))
    assert [box.start for box in boxes] == list(expected)
    assert {box.shape for box in boxes} == {window}


def test_find_rois__window__cuts_only_what_does_not_fit() -> None:
    """Eight voxels in a row are one candidate in a window of 8 and two in a window of 4."""
    heatmap = spot((4, 4, 16), ((0, 0, 2), (1, 1, 10), 0.9))
    assert found(heatmap, (4, 4, 16), window=(4, 4, 8)) == [Box((0, 0, 2), (1, 1, 10))]
    halves = [Box((0, 0, 2), (1, 1, 6)), Box((0, 0, 6), (1, 1, 10))]
    assert found(heatmap, (4, 4, 16), window=(4, 4, 4)) == halves
    assert len(found(heatmap, (4, 4, 16), window=(4, 4, 4), window_step=0.5)) == 3


def test_find_rois__step_below_a_voxel__gives_each_window_once() -> None:
    """Windows of 2 at steps of 0.6 voxels round to the same places, which are listed once."""
    starts = [
        box.start[2] for box in found(np.ones((1, 1, 5), np.float32), (1, 1, 5), window=(1, 1, 2), window_step=0.3)
    ]
    assert starts == [0, 1, 2, 3]
    assert len(compute_steps_for_sliding_window((5, 5, 5), (2, 2, 2), 0.3)[0]) == 6


def test_find_rois__window_of_another_component__belongs_to_that_one_only() -> None:
    """An L-shaped component leaves the quarter of its box that holds only another component to that one."""
    arms = ((0, 0, 0), (1, 16, 2), 0.6), ((0, 0, 0), (1, 2, 16), 0.7)
    heatmap = spot((1, 16, 16), *arms, ((0, 12, 12), (1, 14, 14), 0.9))
    rois = find_rois(heatmap, (1, 16, 16), RoiSettings(threshold=0.5, window=(1, 8, 8)))
    assert [(roi.box, round(roi.score, 3)) for roi in rois] == [
        (Box((0, 0, 0), (1, 8, 8)), 0.7),
        (Box((0, 0, 8), (1, 2, 16)), 0.7),
        (Box((0, 8, 0), (1, 16, 2)), 0.6),
        (Box((0, 12, 12), (1, 14, 14)), 0.9),
    ]


def test_find_rois__cut_component_with_margin__stays_within_its_windows() -> None:
    """The margin widens the shrunk candidate, but never beyond the window."""
    heatmap = spot((1, 16, 16), ((0, 0, 0), (1, 1, 16), 0.9))
    plain = found(heatmap, (1, 16, 16), window=(1, 8, 8))
    assert plain == [Box((0, 0, 0), (1, 1, 8)), Box((0, 0, 8), (1, 1, 16))]
    wide = found(heatmap, (1, 16, 16), window=(1, 8, 8), margin=(0, 3, 3))
    assert wide == [Box((0, 0, 0), (1, 4, 8)), Box((0, 0, 8), (1, 4, 16))]


def test_find_rois__nothing_above_threshold__finds_nothing() -> None:
    """An empty heatmap is no error here; the pipeline decides what it means."""
    assert found(spot((4, 4, 4)), (8, 8, 8)) == []


@pytest.mark.parametrize(
    "heatmap", [np.zeros((4, 4), np.float32), np.zeros((0, 4, 4), np.float32), np.full((2, 2, 2), np.nan)]
)
def test_find_rois__no_valid_heatmap__raises(heatmap) -> None:
    """NaN would compare as background and hide objects, so it is refused, as are other than 3D arrays."""
    with pytest.raises(ValueError, match="heatmap"):
        find_rois(heatmap, (8, 8, 8), RoiSettings(threshold=0.5, window=(8, 8, 8)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.0},
        {"threshold": -0.1},
        {"window": (0, 1, 1)},
        {"heatmap_voxel": (1, 0, 1)},
        {"margin": (0, -1, 0)},
        {"window_step": 0.0},
        {"window_step": 1.5},
    ],
)
def test_roi_settings__value_out_of_range__raises(wrong) -> None:
    """Settings with which no candidate could be found, or windows would leave gaps, are refused."""
    with pytest.raises(ValueError):
        RoiSettings(**{"threshold": 0.5, "window": (8, 8, 8)} | wrong)
