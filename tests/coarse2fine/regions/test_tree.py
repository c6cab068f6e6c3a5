"""From candidates to the tree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_boxes import painted

from assignnet import Roi
from canvas import Box
from coarse2fine.regions import tree as tree_module
from coarse2fine.regions.search_grid import box_mass
from coarse2fine.regions.tree import build_tree

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
