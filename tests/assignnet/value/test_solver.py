"""The best selection where counts add up, beside a search through all selections that are allowed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from counted_trees import based_tree, is_valid
from hypothesis import given, settings
from hypothesis import strategies as st

from assignnet.value.additive_tree import AdditiveTree
from assignnet.value.solver import solve
from assignnet.value.upper_bound import upper_bound

seeds = st.integers(0, 1 << 32)


@settings(deadline=None, max_examples=150)
@given(seeds, st.integers(1, 9), st.integers(1, 3))
def test_solve__small_tree__is_the_best_of_all(seed, regions, classes) -> None:
    """No allowed selection is worth more, for either metric, with and without a budget."""
    drawn = based_tree(seed, regions, classes)
    chosen = solve(drawn.sums())
    assert chosen.shape == (regions,)
    assert is_valid(drawn.parent, chosen)
    assert drawn.rewards(chosen[None])[0] == pytest.approx(drawn.best, abs=1e-9)


@pytest.mark.long
def test_solve__larger_trees__is_never_far_from_the_best() -> None:
    """Of 100 trees of 13 regions, too large to try all of their exchanges, 99 at least are solved, the last nearly."""
    missed = []
    for seed in range(100):
        drawn = based_tree(seed, 13, 1 + seed % 3)
        short = drawn.best - drawn.rewards(solve(drawn.sums())[None])[0]
        assert -1e-9 <= short < 0.01
        missed.append(short > 1e-9)
    assert sum(missed) <= 1


@pytest.mark.parametrize(
    ("seed", "regions", "classes"), [(54, 7, 1), (918, 7, 1), (357, 9, 1), (1172, 9, 1), (246, 10, 2), (699, 10, 2)]
)
def test_solve__exchange_of_several_regions_needed__is_found(seed, regions, classes) -> None:
    """Where neither tangents nor single exchanges reach the best: two regions make room for a third, and the like."""
    drawn = based_tree(seed, regions, classes, budget=True)
    assert drawn.rewards(solve(drawn.sums())[None])[0] == pytest.approx(drawn.best, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 30), st.integers(1, 3))
def test_solve__budget__is_kept(seed, regions, classes) -> None:
    """No selection costs more than the budget, and it is one of those that are allowed."""
    drawn = based_tree(seed, regions, classes, budget=True)
    chosen = solve(drawn.sums())
    assert is_valid(drawn.parent, chosen)
    assert drawn.cost[chosen].sum() <= drawn.budget + 1e-9


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 30))
def test_solve__budget_for_everything__is_no_limit(seed, regions) -> None:
    """A budget that suffices for all changes nothing, although shares add up with rounding; none at all leaves none."""
    drawn = replace(based_tree(seed, regions, 1, budget=False))
    free = solve(drawn.sums())
    limited = solve(drawn.sums(budget=float(drawn.cost[free].sum())))
    assert drawn.rewards(limited[None])[0] == pytest.approx(drawn.rewards(free[None])[0], abs=1e-12)
    assert not solve(drawn.sums(budget=0.0)).any()


def test_solve__children_follow_no_parent__raises() -> None:
    """Another order than that of RoiTree.rois is refused."""
    drawn = based_tree(0, 3, 1)
    for parent in ([0, 1, 0], [1, 1, 2]):
        with pytest.raises(ValueError, match="must follow"):
            drawn.sums(parent=np.array(parent))


def test_solve__no_region__selects_nothing() -> None:
    """An empty tree has an empty best selection, and its bound is what is there."""
    none = np.zeros((0, 1))
    known = (np.zeros(0, int), none, none, np.array([8.0]), np.zeros(0), 0.1, "dice")
    sums = AdditiveTree.of(*known, base_common=np.array([4.0]), base_found=np.array([8.0]))
    assert solve(sums).shape == (0,)
    assert upper_bound(sums, solve(sums)) == 0.5


def test_solve__class_without_voxels__spares_it_where_that_pays() -> None:
    """A region that spoils an absent class, worth half of the mean, is not worth a tenth of another class."""
    parent, cost = np.array([0, 1]), np.zeros(2)
    common, found = np.array([[90.0, 0.0], [10.0, 0.0]]), np.array([[90.0, 0.0], [10.0, 1.0]])
    true = np.array([100.0, 0.0])
    sums = AdditiveTree.of(parent, common, found, true, cost, 0.0, "iou")
    assert solve(sums).tolist() == [True, False]
    assert upper_bound(sums, solve(sums)) == pytest.approx((0.9 + 1) / 2, abs=1e-3)


def test_solve__many_regions_spoil_a_class__leaves_out_all_of_them() -> None:
    """Half of the regions find a voxel of an absent class; to drop one of them helps only if all are dropped."""
    regions, spoil = 40, np.arange(40) % 2
    common = np.column_stack([3.0 - spoil, np.zeros(regions)])
    found = common + np.column_stack([np.zeros(regions), spoil])
    sums = AdditiveTree.of(np.arange(regions), common, found, np.array([100.0, 0.0]), np.zeros(regions), 0.0, "dice")
    assert solve(sums).tolist() == (spoil == 0).tolist()
    assert upper_bound(sums, solve(sums)) == pytest.approx((120 / 160 + 1) / 2, abs=1e-3)
