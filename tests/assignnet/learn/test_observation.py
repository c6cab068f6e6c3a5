"""What an agent sees of a tree, region by region, and what it may still choose."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from assign_examples import random_instance, random_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from assignnet.choice.cost_model import CostModel
from assignnet.choice.tree import NO_FEATURES, Features, Roi, RoiTree
from assignnet.learn.observation import observe, still_free
from canvas import Box

relaxed = settings(deadline=None, max_examples=80)
seeds = st.integers(0, 10_000)
cost_models = st.builds(
    CostModel,
    slot=st.tuples(*[st.integers(2, 12)] * 3),
    large=st.sampled_from(["resize", "native"]),
    native=st.none() | st.tuples(*[st.integers(1, 6)] * 3),
    context=st.none() | st.tuples(*[st.integers(0, 3)] * 3),
)


def trees(seed: int) -> RoiTree:
    """A tree of up to eight families; none for some seeds."""
    random = np.random.default_rng(seed)
    return random_tree(random, int(random.integers(0, 9)), side=2)


def relations(tree: RoiTree) -> tuple[list[Roi | None], list[set[Roi]]]:
    """For each region its parent, None if it has none, and its children, by walking the families."""
    above: dict[Roi, Roi] = {}
    below: dict[Roi, set[Roi]] = {}
    for parent, children in zip(tree.parents, tree.children, strict=True):
        for child in children:
            if child != parent:
                above[child] = parent
                below.setdefault(parent, set()).add(child)
    return [above.get(roi) for roi in tree.rois], [below.get(roi, set()) for roi in tree.rois]


# --- observe


@relaxed
@given(seeds, cost_models)
def test_observe__any_tree__describes_every_region(seed, cost_model) -> None:
    """Each row holds its region's features, place, size and score, and what its tree and cost model make of it."""
    tree = trees(seed)
    seen = np.random.default_rng(seed).normal(size=(len(tree.rois), 4)).astype(np.float32)
    volume = np.float32([1.0, 2.0])
    observation = observe(tree, cost_model, Features(seen, volume))
    above, below = relations(tree)
    all_slots = sum(cost_model.slots(leaf.box) for leaf in tree.leaves)
    all_mass = sum(parent.mass for parent in tree.parents)
    assert observation.nodes.shape == (len(tree.rois), 11)
    assert observation.standing.shape == (len(tree.rois), 12)
    for row, roi in enumerate(tree.rois):
        box = roi.box
        axes = range(3)
        assert observation.nodes[row] == pytest.approx(
            [
                *seen[row],
                *((box.start[axis] + box.stop[axis]) / 2 / tree.volume[axis] for axis in axes),
                *((box.stop[axis] - box.start[axis]) / cost_model.largest[axis] for axis in axes),
                roi.score,
            ],
            rel=1e-6,
        )
        assert observation.standing[row] == pytest.approx(
            [
                cost_model.slots(box) / all_slots,
                roi.mass / all_mass,
                cost_model.fidelity(box),
                roi.mass / prod(box.shape),
                float(len(below[row]) > 0),
                float(above[row] is not None),
                *(box.start[axis] / cost_model.largest[axis] for axis in axes),
                *(box.stop[axis] / cost_model.largest[axis] for axis in axes),
            ],
            rel=1e-6,
        )
        assert tree.rois[observation.parent[row]] == (above[row] or roi)
    np.testing.assert_array_equal(observation.volume, volume)
    np.testing.assert_array_equal(observation.cost, observation.standing[:, 0])
    assert observation.cost[[not children for children in below]].sum() == pytest.approx(float(len(tree.rois) > 0))
    assert {observation.nodes.dtype, observation.standing.dtype} == {np.dtype(np.float32)}


def test_observe__no_features__leaves_its_own_numbers() -> None:
    """Boxes alone give seven numbers, the same as behind features."""
    instance = random_instance(1, features=4)
    plain = observe(instance.tree, instance.cost_model, NO_FEATURES)
    np.testing.assert_array_equal(
        plain.nodes, observe(instance.tree, instance.cost_model, instance.features).nodes[:, 4:]
    )


@pytest.mark.parametrize("features", [0, 4])
def test_observe__no_region__keeps_its_shapes(features) -> None:
    """An empty tree is an observation of no rows, as wide as any other."""
    empty = RoiTree((), (), (8, 8, 8))
    observation = observe(empty, CostModel((4, 4, 4)), Features(np.zeros((0, features), np.float32)))
    assert (observation.nodes.shape, observation.standing.shape, observation.parent.shape) == (
        (0, features + 7),
        (0, 12),
        (0,),
    )


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_observe__features_of_other_regions__raises(rows) -> None:
    """Features must have one row per region; no row is repeated or cut off."""
    roi = [Roi(Box.of((0, 0, x), (4, 4, 4)), 0.9, 1.0) for x in (0, 4)]
    tree = RoiTree(tuple(roi), tuple((one,) for one in roi), (8, 8, 8))
    with pytest.raises(ValueError, match=f"{rows} rows of features for 2 regions"):
        observe(tree, CostModel((4, 4, 4)), Features(np.zeros((rows, 4), np.float32)))


def test_observe__no_mass__divides_by_nothing() -> None:
    """Regions on which the heatmap has nothing are seen with shares of 0."""
    roi = Roi(Box.whole((4, 4, 4)), 0.0, 0.0)
    observation = observe(RoiTree((roi,), ((roi,),), (8, 8, 8)), CostModel((4, 4, 4)), NO_FEATURES)
    assert observation.standing.tolist() == [[1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1]]


def test_observe__weight_of_the_cost_model__is_not_seen() -> None:
    """What speed is worth belongs to the moment of choosing, not to the observation."""
    instance = random_instance(2)
    dear = replace(instance.cost_model, weight=0.5)
    first, other = (observe(instance.tree, cost_model, NO_FEATURES) for cost_model in (instance.cost_model, dear))
    np.testing.assert_array_equal(first.nodes, other.nodes)
    np.testing.assert_array_equal(first.standing, other.standing)


# --- still_free


@relaxed
@given(seeds, st.data())
def test_still_free__any_choice_so_far__excludes_it_its_parents_and_its_children(seed, data) -> None:
    """A region is free if neither it, nor its parent, nor one of its children is among those taken."""
    tree = trees(seed)
    above, below = relations(tree)
    taken = data.draw(st.lists(st.booleans(), min_size=len(tree.rois), max_size=len(tree.rois)))
    chosen = {roi for roi, is_taken in zip(tree.rois, taken, strict=True) if is_taken}
    expected = [
        roi not in chosen and above[row] not in chosen and not below[row] & chosen for row, roi in enumerate(tree.rois)
    ]
    assert still_free(tree.parent_of, np.array(taken, dtype=bool)).tolist() == expected
