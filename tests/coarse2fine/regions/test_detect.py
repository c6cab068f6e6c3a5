"""From heatmaps to candidates, to the tree, and how much of the heatmap and the volume boxes hold."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import ceil

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from scipy import ndimage

from assignnet import Roi
from canvas import Box, Triple, share_of_volume
from coarse2fine.regions import search_grid as heatmap_module
from coarse2fine.regions import tree as tree_module
from coarse2fine.regions.detect import RoiSettings, find_rois
from coarse2fine.regions.search_grid import box_mass, downsample_max, mass_inside
from coarse2fine.regions.tree import build_tree

SHAPES = st.tuples(*[st.integers(1, 4)] * 3)
VOLUMES = st.tuples(*[st.integers(1, 9)] * 3)
relaxed = settings(deadline=None)


@st.composite
def heatmaps(draw: st.DrawFn) -> np.ndarray:
    """Small heatmaps of multiples of 1/8, whose sums floating point holds exactly."""
    return draw(arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 0.125, 0.375, 0.875])))


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    start = draw(st.tuples(*[st.integers(-3, 9)] * 3))
    return Box.of(start, draw(st.tuples(*[st.integers(0, 9)] * 3)))


def spot(shape: Triple, *filled: tuple[Triple, Triple, float]) -> np.ndarray:
    """A heatmap of zeros with (start, stop, probability) filled in."""
    heatmap = np.zeros(shape, dtype=np.float32)
    for start, stop, value in filled:
        heatmap[Box(start, stop).slices] = value
    return heatmap


def found(heatmap: np.ndarray, volume: Triple, **changes) -> list[Box]:
    arguments = {"threshold": 0.5, "window": (1000, 1000, 1000)} | changes
    return [roi.box for roi in find_rois(heatmap, volume, RoiSettings(**arguments))]


def common_grid(heatmap: np.ndarray, volume: Triple, box_or_voxel: Box) -> tuple[np.ndarray, np.ndarray]:
    """Heatmap and box on the grid whose voxels divide both heatmap and working voxels without remainder."""
    fine = heatmap
    for axis in range(3):
        fine = fine.repeat(volume[axis], axis=axis)
    inside = np.zeros(fine.shape, dtype=bool)
    clipped = box_or_voxel.clip(Box.whole(volume))
    start, stop = (np.multiply(corner, heatmap.shape) for corner in (clipped.start, clipped.stop))
    inside[tuple(slice(*ends) for ends in zip(start, stop, strict=True))] = True
    return fine, inside


# --- downsample_max


@relaxed
@given(heatmaps(), VOLUMES, st.tuples(*[st.integers(1, 6)] * 3))
def test_downsample_max__any_voxel_size__equals_the_maximum_over_each_voxel(heatmap, volume, voxel) -> None:
    """Coarser or finer, whole or fractional: each new voxel holds the maximum of what it overlaps."""
    result = downsample_max(heatmap, volume, voxel)
    assert result.shape == tuple(ceil(edge / size) for edge, size in zip(volume, voxel, strict=True))
    for index in np.ndindex(*result.shape):
        fine, inside = common_grid(heatmap, volume, Box.of(np.multiply(index, voxel), voxel))
        assert result[index] == fine[inside].max()


def test_downsample_max__single_bright_voxel__survives_where_a_mean_would_not() -> None:
    """One bright voxel among 512 stays above the threshold; their mean is far below it."""
    heatmap = spot((8, 8, 8), ((3, 3, 3), (4, 4, 4), 0.9))
    assert downsample_max(heatmap, (8, 8, 8), (8, 8, 8)).item() == np.float32(0.9)
    assert heatmap.mean() < 0.01


# --- find_rois


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


# --- box_mass


@relaxed
@given(heatmaps(), VOLUMES, boxes(), st.sampled_from([0.0, 0.125, 0.5]))
def test_box_mass__fractional_edges__equals_the_sum_on_a_common_grid(heatmap, volume, box, threshold) -> None:
    """Parts of heatmap voxels count with their share, whatever the two grids."""
    fine, inside = common_grid(heatmap, volume, box)
    expected = fine[inside & (fine > threshold)].sum(dtype=np.float64) / heatmap.size
    assert box_mass(heatmap, volume, box, threshold) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_box_mass__many_chunks__is_the_same(monkeypatch) -> None:
    """Summing plane by plane changes nothing."""
    heatmap = np.random.default_rng(0).random((7, 5, 6), dtype=np.float32)
    box = Box((3, 2, 1), (16, 9, 11))
    expected = box_mass(heatmap, (20, 10, 12), box)
    monkeypatch.setattr(heatmap_module, "_CHUNK", 1)
    assert box_mass(heatmap, (20, 10, 12), box) == pytest.approx(expected, rel=1e-12)


# --- build_tree

VOLUME = (8, 8, 32)


def tree_of(*spans: tuple[int, int, float], heatmap: np.ndarray | None = None, **changes):
    """Tree of boxes [0, 8) x [0, 8) x [start, stop) with the given scores over a heatmap of 0.5 everywhere."""
    heatmap = np.full(VOLUME, 0.5, dtype=np.float32) if heatmap is None else heatmap
    arguments = {"threshold": 0.0, "nms_threshold": 0.75, "nmm_threshold": 0.5} | changes
    rois = []
    for start, stop, score in spans:
        box = Box((0, 0, start), (8, 8, stop))
        rois.append(Roi(box, score, box_mass(heatmap, VOLUME, box)))
    return build_tree(rois, heatmap, VOLUME, **arguments)


def spans_of(rois) -> list[tuple[int, int]]:
    return [(roi.box.start[2], roi.box.stop[2]) for roi in rois]


def test_build_tree__overlapping_candidates__become_children_of_their_hull() -> None:
    """Two boxes of 8 that share 4 get a hull of 12 that weighs 12 x 64 / 2; the far box is its own parent."""
    tree = tree_of((0, 8, 0.8), (4, 12, 0.9), (20, 24, 0.7))
    assert spans_of(tree.parents) == [(0, 12), (20, 24)]
    assert [spans_of(children) for children in tree.children] == [[(4, 12), (0, 8)], [(20, 24)]]
    assert [parent.score for parent in tree.parents] == [0.9, 0.7]
    assert tree.parents[0].mass == 384
    assert tree.is_leaf(1)
    assert tree.volume == VOLUME


def test_build_tree__near_copy__is_suppressed() -> None:
    """A candidate that shares 7 of 9 voxels with a better one is dropped; at a higher threshold it is a child."""
    spans = (0, 8, 0.9), (1, 9, 0.8)
    assert spans_of(tree_of(*spans).rois) == [(0, 8)]
    assert spans_of(tree_of(*spans, nms_threshold=0.8).rois) == [(0, 9), (0, 8), (1, 9)]
    assert spans_of(tree_of((0, 8, 0.9), (2, 4, 0.8), nms_overlap="ios").rois) == [(0, 8)]


def test_build_tree__chain__is_one_parent_only_if_merging_is_transitive() -> None:
    """The merging decides whether the end of a chain belongs to the first box's parent."""
    spans = (0, 8, 0.9), (4, 12, 0.8), (8, 16, 0.7)
    assert spans_of(tree_of(*spans).parents) == [(0, 12), (8, 16)]
    assert spans_of(tree_of(*spans, nmm_merging="transitive").parents) == [(0, 16)]
    assert spans_of(tree_of(*spans, nmm_overlap="iou").parents) == [(0, 8), (4, 12), (8, 16)]


def test_build_tree__probabilities_below_threshold__weigh_nothing() -> None:
    """The parent's mass counts what the candidates' masses count."""
    heatmap = np.full(VOLUME, 0.25, dtype=np.float32)
    heatmap[:, :, 5:7] = 0.5
    assert tree_of((0, 8, 0.5), (4, 12, 0.5), heatmap=heatmap, threshold=0.3).parents[0].mass == 64
    assert tree_of((0, 8, 0.5), (4, 12, 0.5), heatmap=heatmap, threshold=0.0).parents[0].mass == 64 + 160


def test_build_tree__suppression_switched_off__keeps_the_better_of_two_equal_boxes() -> None:
    """Without NMS, copies of a box still form one node, with the best score."""
    tree = tree_of((0, 8, 0.5), (0, 8, 0.9), nms_threshold=1.5)
    assert [(roi.box.shape, roi.score) for roi in tree.rois] == [((8, 8, 8), 0.9)]


def test_build_tree__child_fills_the_hull__is_the_parent() -> None:
    """A box that holds the other members of its group replaces them and takes the best score."""
    tree = tree_of((2, 4, 0.9), (0, 8, 0.8), (20, 24, 0.1))
    assert spans_of(tree.rois) == [(0, 8), (20, 24)]
    assert tree.parents[0].score == 0.9


def test_build_tree__hull_equals_a_child_of_another_group__joins_the_groups(monkeypatch) -> None:
    """A cross whose hull is a candidate that merged with its neighbour would put that box into the tree twice."""
    heatmap = np.full((1, 20, 20), 0.5, dtype=np.float32)
    corners = {  # (y0, x0, y1, x1): score
        (0, 0, 14, 14): 0.9,
        (5, 5, 9, 9): 0.8,  # centre of the cross
        (0, 6, 14, 8): 0.7,
        (6, 0, 8, 14): 0.6,
        (0, 4, 14, 20): 0.5,  # matches the first only
    }
    rois = [Roi(Box((0, y0, x0), (1, y1, x1)), score, 1.0) for (y0, x0, y1, x1), score in corners.items()]
    arguments = {"threshold": 0.0, "nms_threshold": 0.75, "nmm_threshold": 0.2, "nmm_overlap": "iou"}
    tree = build_tree(rois, heatmap, heatmap.shape, **arguments)
    assert [roi.box for roi in tree.parents] == [Box((0, 0, 0), (1, 14, 20))]
    assert tree.leaves == tuple(rois)
    monkeypatch.setattr(tree_module, "_without_repeats", lambda groups: groups)
    with pytest.raises(ValueError, match="more than one node"):
        build_tree(rois, heatmap, heatmap.shape, **arguments)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(0, 6), st.integers(1, 6)), max_size=14),
    st.sampled_from([0.2, 0.5, 1.0, 1.5]),
    st.sampled_from([0.2, 0.5, 0.8]),
    st.sampled_from(["iou", "ios"]),
    st.sampled_from(["iou", "ios"]),
    st.sampled_from(["greedy", "transitive"]),
)
@settings(max_examples=300, deadline=None)
def test_build_tree__any_candidates__is_a_valid_tree_that_covers_the_survivors(spans, nms, nmm, one, two, how) -> None:
    """Parents and leaves both hold everything that NMS kept, and every node's mass is that of its box."""
    heatmap = np.random.default_rng(0).random((1, 12, 12), dtype=np.float32)
    volume = (1, 12, 12)
    boxes = [Box.of((0, y, x), (1, height, width)) for y, height, x, width in spans]
    rois = [Roi(box, 1 - index / 16, box_mass(heatmap, volume, box)) for index, box in enumerate(boxes)]
    arguments = {"threshold": 0.0, "nms_overlap": one, "nmm_overlap": two, "nmm_merging": how}
    tree = build_tree(rois, heatmap, volume, nms_threshold=nms, nmm_threshold=nmm, **arguments)
    kept = tree_module.suppress(tree_module.to_array(boxes), [roi.score for roi in rois], nms, one)
    held = painted([boxes[index] for index in kept], volume)
    assert (painted([roi.box for roi in tree.leaves], volume) == held).all()
    assert not (held & ~painted([roi.box for roi in tree.parents], volume)).any()
    for roi in tree.rois:
        assert roi.mass == pytest.approx(heatmap[roi.box.slices].sum(dtype=np.float64))
    assert [roi.score for roi in tree.parents] == sorted((roi.score for roi in tree.parents), reverse=True)


def test_without_repeats__group_touches_two_others__joins_all_three() -> None:
    """Joining goes on until no box is left in two groups, which here takes a second pass."""
    left, right = (Roi(Box.of((0, 0, x), (1, 1, 1)), 0.5, 1.0) for x in (0, 5))
    assert tree_module._without_repeats([[left], [right], [left, right]]) == [[left, right]]


def test_build_tree__no_candidates__is_empty() -> None:
    """An empty list gives an empty tree."""
    assert tree_of().rois == ()


# --- mass_inside and share_of_volume


def painted(boxes: list[Box], volume: Triple) -> np.ndarray:
    inside = np.zeros(volume, dtype=bool)
    for box in boxes:
        inside[box.clip(Box.whole(volume)).slices] = True
    return inside


@relaxed
@given(heatmaps(), VOLUMES, st.lists(boxes(), max_size=5), st.sampled_from([0.0, 0.25]))
def test_mass_inside__any_boxes__sums_voxels_whose_centres_they_hold(heatmap, volume, boxes, threshold) -> None:
    """Compared voxel by voxel with exact fractions; overlapping boxes count once."""
    assume((heatmap > threshold).any())
    total = held = 0.0
    for index in np.ndindex(*heatmap.shape):
        if heatmap[index] <= threshold:
            continue
        total += heatmap[index]
        sizes = [Fraction(edge, count) for edge, count in zip(volume, heatmap.shape, strict=True)]
        centre = [(2 * position + 1) * size / 2 for position, size in zip(index, sizes, strict=True)]
        held += heatmap[index] * any(
            all(a <= at < b for a, at, b in zip(box.start, centre, box.stop, strict=True)) for box in boxes
        )
    assert mass_inside(heatmap, volume, boxes, threshold) == pytest.approx(held / total, rel=1e-12)


def test_mass_inside__threshold__leaves_the_background_out() -> None:
    """Faint background outside of the box counts only without the threshold."""
    heatmap = spot((1, 1, 10), ((0, 0, 0), (1, 1, 10), 0.125), ((0, 0, 0), (1, 1, 2), 0.5))
    boxes = [Box((0, 0, 0), (1, 1, 2))]
    assert mass_inside(heatmap, (1, 1, 10), boxes) == 0.5
    assert mass_inside(heatmap, (1, 1, 10), boxes, threshold=0.25) == 1.0


def test_mass_inside__empty_heatmap__misses_nothing() -> None:
    """Nothing above the threshold means that nothing was missed."""
    assert mass_inside(spot((2, 2, 2)), (4, 4, 4), []) == 1.0


@relaxed
@given(VOLUMES, st.lists(boxes(), max_size=8))
def test_share_of_volume__few_boxes__equals_painting(volume, boxes) -> None:
    """The share of painted voxels, for boxes that overlap, repeat and reach out of the volume."""
    assert share_of_volume(boxes, volume) == pytest.approx(painted(boxes, volume).mean(), rel=1e-12)


@pytest.mark.parametrize(("seed", "edge"), [(0, 4), (1, 12), (2, 40)])
def test_share_of_volume__hundreds_of_boxes__equals_painting(seed, edge) -> None:
    """The same for so many boxes that the volume is halved again and again."""
    random = np.random.default_rng(seed)
    starts, shapes = random.integers(-5, 60, (500, 3)), random.integers(1, edge, (500, 3))
    boxes = [Box.of(start, shape) for start, shape in zip(starts, shapes, strict=True)]
    assert share_of_volume(boxes, (50, 55, 60)) == painted(boxes, (50, 55, 60)).mean()


def test_share_of_volume__volume_too_large_to_allocate__is_exact() -> None:
    """A lattice of 1,000 cubes in a volume of 10^15 voxels, each present twice and once shifted by half."""
    cubes = [Box.of((1000 * z, 1000 * y, 1000 * x), (100, 100, 100)) for z, y, x in product(range(10), repeat=3)]
    shifted = [cube.shift((0, 0, 50)) for cube in cubes]
    assert share_of_volume(cubes + cubes + shifted, (100_000, 100_000, 100_000)) == 1000 * 1_500_000 / 10**15
