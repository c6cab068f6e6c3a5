"""Counting outcomes: what a selection yields is what painting its labels into a volume gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from assignnet.value.voxel_counts import Confusion, VoxelCounts, count_outcomes
from canvas import Box

SHAPE = (3, 5, 6)
CLASSES = (1, 3)
relaxed = settings(deadline=None)
seeds = st.integers(0, 1 << 32)


@dataclass(frozen=True)
class Scenario:
    """True labels, labels outside, boxes that may overlap with their labels, and which of them are selected."""

    truth: NDArray[np.uint8]
    outside: NDArray[np.uint8]
    boxes: list[Box]
    labels: list[NDArray[np.uint8]]
    chosen: NDArray[np.bool_]

    @property
    def outcomes(self) -> VoxelCounts:
        results = [(box.slices, labels) for box, labels in zip(self.boxes, self.labels, strict=True)]
        return count_outcomes(self.truth, self.outside, results, CLASSES)

    def votes(self) -> NDArray[np.float64]:
        """Share of each label 0 to 3 in every voxel, if all selected boxes that hold it have the same say."""
        votes = np.zeros((4, *SHAPE))
        for box, labels, taken in zip(self.boxes, self.labels, self.chosen, strict=True):
            if taken:
                votes[(slice(None), *box.slices)] += np.arange(4)[:, None, None, None] == labels
        covers = votes.sum(axis=0)
        return np.where(covers > 0, votes / np.maximum(covers, 1), np.arange(4)[:, None, None, None] == self.outside)


def scenario(seed: int, *, agree: bool = False) -> Scenario:
    random = np.random.default_rng(seed)
    truth, outside, field = (random.choice([0, 0, 1, 2, 3], SHAPE).astype(np.uint8) for _ in range(3))
    boxes, labels = [], []
    for _ in range(random.integers(0, 6)):
        start = random.integers(0, SHAPE)
        box = Box(tuple(start.tolist()), tuple((random.integers(start, SHAPE) + 1).tolist()))
        boxes.append(box)
        labels.append(field[box.slices] if agree else random.integers(0, 4, box.shape).astype(np.uint8))
    return Scenario(truth, outside, boxes, labels, random.random(len(boxes)) < 0.7)


def score(truth: NDArray[np.uint8], painted: NDArray[np.uint8], metric: str) -> float:
    """Mean over classes of Dice or IoU, by sets of voxels."""
    scores = []
    for name in CLASSES:
        ours, theirs = set(np.flatnonzero(painted == name)), set(np.flatnonzero(truth == name))
        if not ours | theirs:
            scores.append(1.0)
        elif metric == "dice":
            scores.append(2 * len(ours & theirs) / (len(ours) + len(theirs)))
        else:
            scores.append(len(ours & theirs) / len(ours | theirs))
    return sum(scores) / len(scores)


def winners(votes: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.uint8]:
    """In every voxel one of the labels that have a vote."""
    return np.argmax((votes > 0) * random.random(votes.shape), axis=0).astype(np.uint8)


@pytest.mark.parametrize("metric", ["dice", "iou"])
@relaxed
@given(seeds)
def test_quality__selected_results_agree__equals_painting(metric, seed) -> None:
    """Where all boxes hold cuts of the same labels, painting them in any order gives the counted quality, exactly."""
    given_ = scenario(seed, agree=True)
    painted = given_.outside.copy()
    for box, labels, taken in zip(given_.boxes, given_.labels, given_.chosen, strict=True):
        if taken:
            painted[box.slices] = labels
    expected = pytest.approx(score(given_.truth, painted, metric), abs=1e-12)
    assert given_.outcomes.quality(given_.chosen, metric) == expected
    assert given_.outcomes.bounds(given_.chosen, metric) == (expected, expected)


@relaxed
@given(seeds)
def test_tally__results_disagree__shares_voxels_equally(seed) -> None:
    """Each selected label counts for an equal part of the voxel, as summed up voxel by voxel."""
    given_ = scenario(seed)
    confusion, votes = given_.outcomes.confusion(given_.chosen), given_.votes()
    for index, name in enumerate(CLASSES):
        assert confusion.found[index] == pytest.approx(votes[name].sum(), abs=1e-9)
        assert confusion.common[index] == pytest.approx(votes[name][given_.truth == name].sum(), abs=1e-9)
        assert confusion.true[index] == np.count_nonzero(given_.truth == name)


@pytest.mark.parametrize("metric", ["dice", "iou"])
@relaxed
@given(seeds)
def test_bounds__results_disagree__enclose_every_blend(metric, seed) -> None:
    """Whichever selected label wins each voxel, the quality lies within the bounds; so does the one that shares."""
    given_ = scenario(seed)
    low, high = given_.outcomes.bounds(given_.chosen, metric)
    votes, random = given_.votes(), np.random.default_rng(seed)
    for _ in range(5):
        assert low - 1e-12 <= score(given_.truth, winners(votes, random), metric) <= high + 1e-12
    assert low - 1e-12 <= given_.outcomes.quality(given_.chosen, metric) <= high + 1e-12


@pytest.mark.parametrize("metric", ["dice", "iou"])
@relaxed
@given(seeds)
def test_bounds__results_disagree__upper_one_is_reached_by_the_best_blend(metric, seed) -> None:
    """Taking the right label wherever it has a vote, and else the background if it has one, gives the upper bound."""
    given_ = scenario(seed)
    votes = given_.votes()
    votes[0] = (votes[0] > 0) | ((votes > 0).sum(axis=0) > 1)  # a class that loses a disputed voxel leaves nothing
    best = np.argmax(votes > 0, axis=0).astype(np.uint8)
    right = np.take_along_axis(votes, given_.truth[None].astype(np.int64), axis=0)[0] > 0
    best[right] = given_.truth[right]
    assert given_.outcomes.bounds(given_.chosen, metric)[1] == pytest.approx(score(given_.truth, best, metric))


@relaxed
@given(seeds)
def test_alone__each_region__is_the_difference_to_nothing(seed) -> None:
    """What a region adds alone is the count with only it, less the count with none."""
    given_ = scenario(seed)
    outcomes, regions = given_.outcomes, len(given_.boxes)
    common, found = outcomes.alone(regions)
    nothing = outcomes.confusion(np.zeros(regions, dtype=bool))
    for region in range(regions):
        only = outcomes.confusion(np.arange(regions) == region)
        np.testing.assert_allclose(common[region], only.common - nothing.common, atol=1e-9)
        np.testing.assert_allclose(found[region], only.found - nothing.found, atol=1e-9)


@relaxed
@given(seeds)
def test_count_outcomes__any_volume__has_one_row_for_each_kind_of_voxel(seed) -> None:
    """Rows are the distinct voxels, each with its true label and all that regions make of it; none is lost."""
    given_ = scenario(seed)
    kinds: dict[tuple[object, ...], int] = {}
    for index in np.ndindex(SHAPE):
        held = tuple(
            (node, int(labels[tuple(np.subtract(index, box.start))]))
            for node, (box, labels) in enumerate(zip(given_.boxes, given_.labels, strict=True))
            if box.contains(Box.of(index, (1, 1, 1)))
        )
        kind = (int(given_.truth[index]), int(given_.outside[index]), held)
        if kind[:2] != (0, 0) or any(label for _, label in held):
            kinds[kind] = kinds.get(kind, 0) + 1
    outcomes = given_.outcomes
    rows = {}
    for row, count in enumerate(outcomes.count.tolist()):
        held_by = slice(outcomes.start[row], outcomes.start[row + 1])
        held = tuple(zip(outcomes.node[held_by].tolist(), outcomes.label[held_by].tolist(), strict=True))
        rows[(int(outcomes.truth[row]), int(outcomes.outside[row]), held)] = count
    assert rows == kinds
    assert len(outcomes.count) == len(rows)


@pytest.mark.parametrize(("metric", "expected"), [("dice", (2 / 3 + 1) / 2), ("iou", (1 / 2 + 1) / 2)])
def test_tally_quality__class_that_neither_side_has__is_perfect(metric, expected) -> None:
    """A class without any voxel counts as 1 in the mean."""
    confusion = Confusion(np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    assert confusion.quality(metric) == pytest.approx(expected)


def test_tally_quality__class_that_only_one_side_has__is_zero() -> None:
    """Found where there is none, or missed altogether."""
    confusion = Confusion(np.array([0.0, 0.0]), np.array([3.0, 0.0]), np.array([0.0, 3.0]))
    assert confusion.quality("dice") == confusion.quality("iou") == 0.0
