"""The most that any selection can be worth, beside a search through all selections that are allowed."""

from __future__ import annotations

import numpy as np
import pytest
from counted_trees import BasedTree, based_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from assignnet.value.additive_tree import AdditiveTree
from assignnet.value.oracle import oracle
from assignnet.value.solver import solve
from assignnet.value.synthetic import synthetic_instance
from assignnet.value.upper_bound import upper_bound

seeds = st.integers(0, 1 << 32)


def bound_of(tree: BasedTree) -> float:
    return upper_bound(tree.sums(), solve(tree.sums()))


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 8), st.integers(1, 3))
def test_upper_bound__small_tree__is_exceeded_by_no_selection(seed, regions, classes) -> None:
    """The best of all allowed selections is worth no more, for either metric, with and without a budget."""
    drawn = based_tree(seed, regions, classes)
    assert bound_of(drawn) >= drawn.best - 1e-9


@pytest.mark.long
def test_upper_bound__one_class__is_tight() -> None:
    """Without a budget the bound of one class is next to the best; with one, or with several classes, not far."""
    above = {name: [] for name in ("one class", "budget", "three classes")}
    for seed in range(30):
        for name, drawn in zip(
            above,
            (
                based_tree(seed, 12, 1, budget=False),
                based_tree(seed, 12, 1, budget=True),
                based_tree(seed, 12, 3, budget=False),
            ),
            strict=True,
        ):
            reached = drawn.rewards(solve(drawn.sums())[None])[0]
            above[name].append(bound_of(drawn) - reached)
    assert min(map(min, above.values())) >= -1e-9
    assert max(above["one class"]) < 0.01
    assert np.mean(above["one class"]) < 0.001
    assert np.mean(above["budget"]) < 0.05
    assert np.mean(above["three classes"]) < 0.05


@pytest.mark.parametrize("budget", [None, 0.3])
@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_upper_bound__hundred_regions__proves_the_selection_nearly_optimal(metric, budget) -> None:
    """What is found for made-up volumes cannot be improved by more than a thousandth, with a budget a hundredth."""
    for seed in range(4):
        instance = synthetic_instance(np.random.default_rng(seed), 100)
        choice = oracle(instance, metric, 0.1, budget)
        assert 0 < choice.reward <= choice.bound
        assert choice.bound - choice.reward < (0.001 if budget is None else 0.01)


def test_upper_bound__class_without_voxels__allows_to_spoil_it() -> None:
    """Where two classes are worth more than the absent third, the bound is no less than what spoiling it brings."""
    common, found = np.array([[9.0, 9.0, 0.0]]), np.array([[9.0, 9.0, 1.0]])
    sums = AdditiveTree.of(np.array([0]), common, found, np.array([9.0, 9.0, 0.0]), np.zeros(1), 0.0, "dice")
    assert solve(sums).tolist() == [True]
    assert upper_bound(sums, solve(sums)) == pytest.approx(2 / 3, abs=1e-3)
