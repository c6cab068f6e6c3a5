"""Overlap measures against set arithmetic and scikit-learn."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from coarse2fine.metrics import Metric, dice, iou, mean_over_labels

SHAPES = array_shapes(min_dims=1, max_dims=3, max_side=5)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))


def voxels(mask: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(index) for index in np.argwhere(mask).tolist()}


@given(PAIRS)
def test_dice_and_iou__any_masks__equal_set_arithmetic(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Counting voxel by voxel gives the same numbers; two empty masks are a perfect match."""
    first, second = (voxels(mask) for mask in pair)
    total, union = len(first) + len(second), len(first | second)
    assert dice(*pair) == pytest.approx(2 * len(first & second) / total if total else 1.0)
    assert iou(*pair) == pytest.approx(len(first & second) / union if union else 1.0)


def test_dice_and_iou__random_masks__equal_scikit_learn() -> None:
    """scikit-learn's F1 and Jaccard scores are the same measures."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is only needed as an oracle")
    rng = np.random.default_rng(0)
    for share in (0.01, 0.3, 0.9):
        first, second = rng.random((2, 6, 30, 20)) < share
        assert dice(first, second) == pytest.approx(metrics.f1_score(second.ravel(), first.ravel()))
        assert iou(first, second) == pytest.approx(metrics.jaccard_score(second.ravel(), first.ravel()))


@pytest.mark.parametrize("metric", [dice, iou])
def test_dice_and_iou__empty_masks__have_a_defined_answer(metric: Metric) -> None:
    """Both empty is 1, one empty is 0, on either side; voxels there are none of count as empty."""
    empty, full = np.zeros((2, 3, 4), bool), np.ones((2, 3, 4), bool)
    assert metric(empty, empty) == 1.0
    assert metric(empty, full) == 0.0
    assert metric(full, empty) == 0.0
    assert metric(np.zeros((0, 3), bool), np.zeros((0, 3), bool)) == 1.0


@pytest.mark.parametrize("metric", [dice, iou])
def test_dice_and_iou__views__are_read_where_they_lie(metric: Metric) -> None:
    """Transposed and strided masks give what their copies give."""
    rng = np.random.default_rng(1)
    first, second = rng.random((2, 8, 10, 12)) < 0.4
    assert metric(first.T, second.T) == metric(first, second)
    assert metric(first[::2, 1:], second[::2, 1:]) == metric(first[::2, 1:].copy(), second[::2, 1:].copy())


def test_dice__shapes_that_broadcast__are_refused() -> None:
    """A mask of one slice is not silently compared with every slice."""
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(3, 4\)"):
        dice(np.ones((1, 4), bool), np.ones((3, 4), bool))


def test_dice__label_maps__are_refused() -> None:
    """Labels 1 and 2 have no bit in common, so label maps would score 0 however well they overlap."""
    with pytest.raises(ValueError, match="boolean, not uint8 and bool"):
        dice(np.ones(4, np.uint8), np.ones(4, bool))


def test_dice__large_masks__take_one_byte_per_voxel() -> None:
    """No 64-bit copy of a volume is made: the peak stays below two masks."""
    first = np.zeros((50, 200, 200), bool)
    first[10:20, 50:100, 50:100] = True
    second = np.roll(first, 3, axis=1)
    tracemalloc.start()
    try:
        dice(first, second)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * first.nbytes


def test_mean_over_labels__several_labels__is_their_mean() -> None:
    """Label 1: 2 of 2 and 2 voxels in common, label 2: 1 of 1 and 2; the background does not count."""
    prediction, reference = np.array([0, 1, 1, 2, 0, 0]), np.array([0, 1, 1, 2, 2, 0])
    assert mean_over_labels(dice, prediction, reference, (1, 2)) == pytest.approx((1 + 2 / 3) / 2)
    assert mean_over_labels(iou, prediction, reference, [1, 2]) == pytest.approx((1 + 1 / 2) / 2)


def test_mean_over_labels__absent_labels__count_as_empty_masks() -> None:
    """A label that nobody has is a match, one that only one side has is a miss."""
    labels = np.array([0, 1, 1])
    assert mean_over_labels(dice, labels, labels, (1, 7)) == 1.0
    assert mean_over_labels(dice, labels, np.zeros(3, int), (1,)) == 0.0


def test_mean_over_labels__no_labels__is_refused() -> None:
    """There is no mean of nothing."""
    with pytest.raises(ValueError, match="no labels"):
        mean_over_labels(dice, np.zeros(3, int), np.zeros(3, int), ())


def test_mean_over_labels__shapes_that_broadcast__are_refused() -> None:
    """The check of the metric is reached also for label maps."""
    with pytest.raises(ValueError, match="cannot be compared"):
        mean_over_labels(dice, np.ones((1, 4), int), np.ones((3, 4), int), (1,))
