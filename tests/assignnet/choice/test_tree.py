"""The tree of regions, and which selections it allows."""

from __future__ import annotations

import pytest
from tree_examples import LONE, PARTS, SLOT, VOLUME, WIDE, roi

from assignnet import RoiTree, check_selection

# --- tree


def test_roi_tree__parent_and_leaf__lists_every_node_once() -> None:
    """A parent that is its own child counts as one node."""
    tree = RoiTree((WIDE, LONE), (PARTS, (LONE,)), VOLUME)
    assert tree.rois == (WIDE, *PARTS, LONE)
    assert tree.leaves == (*PARTS, LONE)
    assert [tree.is_leaf(0), tree.is_leaf(1)] == [False, True]
    assert tree.mass == 110.0


def test_roi_tree__no_region__is_empty() -> None:
    """An empty heatmap gives a tree without nodes."""
    tree = RoiTree((), (), VOLUME)
    assert (tree.rois, tree.leaves, tree.mass) == ((), (), 0)


@pytest.mark.parametrize(
    ("parents", "children", "message"),
    [
        ((WIDE,), (), "children of 0"),
        ((WIDE,), ((),), "has no child"),
        ((WIDE,), ((PARTS[0],),), "must be the same region"),
        ((WIDE,), ((PARTS[0], LONE),), "reaches out of its parent"),
        ((WIDE,), ((PARTS[0], PARTS[0]),), "more than one node"),
        ((LONE, LONE), ((LONE,), (LONE,)), "more than one node"),
    ],
)
def test_roi_tree__inconsistent_nodes__raises(parents, children, message) -> None:
    """A tree in which a choice would be ambiguous cannot be built."""
    with pytest.raises(ValueError, match=message):
        RoiTree(parents, children, VOLUME)


# --- check_selection


def test_check_selection__valid__accepts() -> None:
    """Children together, a leaf once, and leaving something out are all allowed."""
    tree = RoiTree((WIDE, LONE), (PARTS, (LONE,)), VOLUME)
    for selection in ((), (WIDE,), (LONE, WIDE), (*PARTS, LONE), (PARTS[1],)):
        check_selection(tree, selection)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ((LONE, LONE), "more than once"),
        ((PARTS[0], PARTS[1], PARTS[0]), "more than once"),
        ((WIDE, PARTS[1]), "together with its parent"),
        ((PARTS[0], LONE, WIDE), "together with its parent"),
        ((roi((1, 1, 1), SLOT),), "not a node"),
    ],
)
def test_check_selection__invalid__raises(selection, message) -> None:
    """A node listed twice, together with its parent, or from elsewhere is refused."""
    with pytest.raises(ValueError, match=message):
        check_selection(RoiTree((WIDE, LONE), (PARTS, (LONE,)), VOLUME), selection)
