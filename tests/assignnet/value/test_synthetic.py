"""Made-up instances: shaped like real ones, hard to guess, and with an optimum that can be known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assignnet.learn.observation import still_free
from assignnet.value.instance import Instance, read_instances, write_instances
from assignnet.value.synthetic import synthetic_instance
from canvas import Box

relaxed = settings(deadline=None, max_examples=40)


def draw(seed: int, regions: int, features: int = 0) -> Instance:
    return synthetic_instance(np.random.default_rng(seed), regions, features=features)


MANY = [draw(seed, 60, features=6) for seed in range(30)]
"""Enough to see what holds on average."""


@relaxed
@given(st.integers(0, 1 << 32), st.integers(1, 120), st.integers(0, 3))
def test_synthetic_instance__any_size__has_that_many_regions(seed, regions, features) -> None:
    """The tree has the wanted number of nodes inside its volume, features fit it, and parents have 2 to 8 children."""
    instance = draw(seed, regions, features)
    tree = instance.tree
    assert len(tree.rois) == regions
    assert instance.features.nodes.shape == (regions, features)
    assert all(Box.whole(tree.volume).contains(roi.box) for roi in tree.rois)
    assert all(0 <= roi.score <= 1 and 0 <= roi.mass <= roi.box.volume for roi in tree.rois)
    assert {len(children) for children in tree.children} <= set(range(1, 9))


@relaxed
@given(st.integers(0, 1 << 32), st.integers(1, 120))
def test_synthetic_instance__any_tree__has_disjoint_families_and_siblings(seed, regions) -> None:
    """No voxel lies in two parents, nor in two children."""
    tree = draw(seed, regions).tree
    for boxes in (tree.parents, tree.leaves):
        assert not any(one.box.intersection(other.box) for one, other in combinations(boxes, 2))


@relaxed
@given(st.integers(0, 1 << 32), st.integers(1, 120))
def test_synthetic_instance__any_valid_selection__adds_up(seed, regions) -> None:
    """What a selection yields is the sum of what its regions yield alone, and no more than their boxes hold."""
    instance, random = draw(seed, regions), np.random.default_rng(seed + 1)
    outcomes, tree = instance.outcomes, instance.tree
    chosen = np.zeros(regions, dtype=bool)
    for region in random.permutation(regions)[: random.integers(regions + 1)]:
        chosen[region] = still_free(tree.parent_of, chosen)[region]
    common, found = outcomes.alone(regions)
    confusion = outcomes.confusion(chosen)
    np.testing.assert_array_equal(confusion.common, common[chosen].sum(axis=0))
    np.testing.assert_array_equal(confusion.found, found[chosen].sum(axis=0))
    assert (outcomes.bounds(chosen, "dice")) == (confusion.quality("dice"),) * 2
    assert (found[:, 0] <= [roi.box.volume for roi in tree.rois]).all()
    assert (common >= 0).all()
    assert (common <= found).all()


def test_synthetic_instance__same_generator__gives_the_same_instance(tmp_path) -> None:
    """Same state, same instance, to the last bit of its file; the next draw from the generator is another."""
    files = []
    for run in range(2):
        random = np.random.default_rng(7)
        instances = [synthetic_instance(random, 40, features=3) for _ in range(2)]
        files.append(tmp_path / f"{run}.h5")
        write_instances(files[-1], instances, {})
    first, second = (read_instances(path)[0] for path in files)
    for one, other in zip(first, second, strict=True):
        assert (one.name, one.tree, one.cost_model) == (other.name, other.tree, other.cost_model)
        np.testing.assert_array_equal(one.outcomes.count, other.outcomes.count)
        np.testing.assert_array_equal(one.features.nodes, other.features.nodes)
    assert first[0].case != first[1].case
    assert first[0].tree != first[1].tree


def test_synthetic_instance__many__are_mixed() -> None:
    """Both packings, most regions alone, some parents, some false alarms, objects of very different sizes."""
    assert {instance.cost_model.context is None for instance in MANY} == {True, False}
    families = [len(children) for instance in MANY for children in instance.tree.children]
    assert 0.75 < families.count(1) / len(families) < 0.95
    true = np.concatenate([instance.outcomes.alone(60)[0][:, 0] for instance in MANY])
    assert 0.1 < (true == 0).mean() < 0.6
    assert 0.8 < np.log(true[true > 0]).std() < 2.0


def test_synthetic_instance__parent_larger_than_native__finds_less_and_more_wrongly() -> None:
    """Shrinking costs: beside its children a parent finds fewer right voxels and more wrong ones, on the whole."""
    for context in (None, (8, 8, 8)):
        right, wrong = np.zeros(2), np.zeros(2)
        for instance in (one for one in MANY if one.cost_model.context == context):
            common, found = instance.outcomes.alone(60)
            parent = instance.tree.parent_of
            for row, roi in enumerate(instance.tree.rois):
                children = np.flatnonzero((parent == row) & (np.arange(60) != row))
                if len(children) and instance.cost_model.fidelity(roi.box) < 1:
                    right += common[row, 0], common[children, 0].sum()
                    wrong += (found - common)[row, 0], (found - common)[children, 0].sum()
        assert 0 < right[0] < 0.97 * right[1]
        assert wrong[0] > 1.03 * wrong[1] > 0


def gains(instance: Instance) -> np.ndarray:
    common, found = instance.outcomes.alone(60)
    gain = (2 * common - found)[:, 0]
    return np.sign(gain) * np.log1p(np.abs(gain))


def explained(columns: list[np.ndarray], wanted: np.ndarray) -> float:
    """Share of the variance that a linear model explains."""
    inputs = np.column_stack([*columns, np.ones(len(wanted))])
    rest = wanted - inputs @ np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    return float(1 - rest.var() / wanted.var())


def test_synthetic_instance__heatmap_and_features__hint_at_the_gain_but_do_not_tell() -> None:
    """Score and mass explain a part of what regions are worth, features a part of the rest, and much stays open."""
    wanted = np.concatenate([gains(instance) for instance in MANY])
    rois = [roi for instance in MANY for roi in instance.tree.rois]
    heatmap = [np.array([roi.score for roi in rois]), np.log1p([roi.mass for roi in rois])]
    features = list(np.concatenate([instance.features.nodes for instance in MANY]).T)
    only_heatmap, both = explained(heatmap, wanted), explained([*heatmap, *features], wanted)
    assert 0.15 < only_heatmap < 0.8
    assert only_heatmap + 0.1 < both < 0.98


def test_synthetic_instance__no_region__raises() -> None:
    """A tree needs a node."""
    with pytest.raises(ValueError, match="at least one region, not 0"):
        draw(0, 0)
