"""Overlap measures against set arithmetic and scikit-learn, surface distances against brute force and MONAI."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from scipy import ndimage

from coarse2fine.evaluation.masks import Metric, Surfaces, dice, hd95, iou, leave_out, mean_over_labels, surface_dice

SHAPES = array_shapes(min_dims=1, max_dims=3, max_side=5)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))


SMALL_3D = array_shapes(min_dims=3, max_dims=3, max_side=4).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)
SPACINGS = st.tuples(*[st.sampled_from([0.1, 0.7, 1.0, 2.5, 45.0])] * 3)
SPACING = (2.5, 0.7, 1.1)


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


def surface_by_hand(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels with a direct neighbour that is not in the mask, or not in the volume."""
    inside = voxels(mask)
    steps = [tuple(sign * (axis == other) for other in range(3)) for axis in range(3) for sign in (-1, 1)]
    return [v for v in sorted(inside) if any(tuple(np.add(v, step)) not in inside for step in steps)]


def distances_by_hand(
    first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...]
) -> tuple[list[float], list[float]]:
    """Surface distances of all pairs, the nearest of each voxel, in both directions."""
    ours, theirs = surface_by_hand(first), surface_by_hand(second)

    def nearest(points: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> list[float]:
        steps = [
            [math.hypot(*((a - b) * s for a, b, s in zip(p, o, spacing, strict=True))) for o in others] for p in points
        ]
        return [min(row, default=math.inf) for row in steps]

    return nearest(ours, theirs), nearest(theirs, ours)


def percentile_by_hand(values: list[float], share: float) -> float:
    """Linear between the two values next to the place."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def blobs(seed: int, shape: tuple[int, ...] = (12, 30, 22)) -> tuple[np.ndarray, np.ndarray]:
    """Two masks with much in common, which touch the border."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.random(shape), 2)
    other = field + ndimage.gaussian_filter(rng.random(shape), 2)
    return field > np.quantile(field, 0.8), other > np.quantile(other, 0.8)


@settings(deadline=None)
@given(SMALL_3D, SPACINGS, st.sampled_from([0.0, 0.7, 1.0, 1.4, 3.0]))
def test_surfaces__tiny_masks__equal_brute_force(
    pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, ...], tolerance: float
) -> None:
    """All distances between all surface voxels give the same numbers; no surface has a defined answer."""
    both = distances_by_hand(*pair, spacing)
    if all(both):
        assert hd95(*pair, spacing) == pytest.approx(max(percentile_by_hand(way, 0.95) for way in both))
    else:
        assert hd95(*pair, spacing) == (math.inf if any(both) else 0.0)
    joined = both[0] + both[1]
    near = sum(distance < tolerance or math.isclose(distance, tolerance) for distance in joined)
    assert surface_dice(*pair, spacing, tolerance) == pytest.approx(near / len(joined) if joined else 1.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (45.0, 4.6, 4.6)])
def test_surfaces__random_masks__equal_monai(seed: int, spacing: tuple[float, ...]) -> None:
    """MONAI computes the same in single precision; another percentile, axis order or tolerance differs."""
    monai = pytest.importorskip("monai.metrics", reason="MONAI is only needed as an oracle")
    pair = blobs(seed)
    batches = [torch.from_numpy(mask)[None, None] for mask in pair]
    expected = monai.compute_hausdorff_distance(*batches, include_background=True, percentile=95, spacing=spacing)
    assert hd95(*pair, spacing) == pytest.approx(expected.item(), rel=1e-5)
    assert hd95(*pair, spacing) < Surfaces.between(*pair, spacing).to_reference.max(), "it is not the maximum"
    for tolerance in (0.0, spacing[2], 2 * spacing[0]):
        expected = monai.compute_surface_dice(*batches, [tolerance], include_background=True, spacing=spacing)
        assert surface_dice(*pair, spacing, tolerance) == pytest.approx(expected.item(), rel=1e-6)


def test_surfaces__sides_exchanged__give_the_same() -> None:
    """Neither measure knows which mask is the reference, although the two directions differ."""
    pair = blobs(5)
    there, back = Surfaces.between(*pair, SPACING), Surfaces.between(*pair[::-1], SPACING)
    assert np.percentile(there.to_reference, 95) != np.percentile(there.to_prediction, 95)
    assert there.hd95() == back.hd95() == max(np.percentile(d, 95) for d in (there.to_reference, there.to_prediction))
    assert there.surface_dice(1.5) == back.surface_dice(1.5)


@pytest.mark.parametrize("place", itertools.product((0, 1, 2), repeat=3))
def test_surfaces__masks_moved_together__give_the_same(place: tuple[int, ...]) -> None:
    """The place in the volume does not count, nor does its border: place 0 and 2 of an axis touch it."""
    pair = blobs(6, (7, 9, 8))
    apart = tuple(slice(step, step + edge) for step, edge in zip(place, (7, 9, 8), strict=True))
    moved = np.zeros((2, 9, 11, 10), bool)
    moved[:, *apart] = pair
    assert hd95(*moved, SPACING) == pytest.approx(hd95(*pair, SPACING))
    assert surface_dice(*moved, SPACING, 1.1) == surface_dice(*pair, SPACING, 1.1)


@pytest.mark.parametrize("axis", range(3))
def test_surfaces__shift_along_an_axis__is_as_far_as_the_spacing_says(axis: int) -> None:
    """A plane two voxels off is twice that axis' spacing away; a tolerance of exactly that finds all of it."""
    planes = np.zeros((2, 9, 9, 9), bool)
    np.moveaxis(planes[0], axis, 0)[3] = True
    np.moveaxis(planes[1], axis, 0)[5] = True
    away = 2 * SPACING[axis]
    assert hd95(*planes, SPACING) == pytest.approx(away)
    assert surface_dice(*planes, SPACING, away) == 1.0
    assert surface_dice(*planes, SPACING, 0.99 * away) == 0.0
    assert surface_dice(*planes, tuple(np.float32(SPACING).tolist()), away) == 1.0, "files round to single precision"


def test_surfaces__few_voxels_far_apart__take_no_memory_of_the_volume() -> None:
    """The box around both is the whole volume, but only the surfaces are worked with."""
    first, second = np.zeros((2, 60, 300, 300), bool)
    first[0, 0, 0], second[59, 299, 299] = True, True
    tracemalloc.start()
    try:
        surfaces = Surfaces.between(first, second, SPACING)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert surfaces.hd95() == pytest.approx(math.hypot(59 * 2.5, 299 * 0.7, 299 * 1.1))
    assert peak < first.nbytes / 10


@pytest.mark.parametrize(
    ("spacing", "tolerance", "message"),
    [
        ((1.0, 1.0), 1.0, r"3 positive numbers, not \(1.0, 1.0\)"),
        ((1.0, 0.0, 1.0), 1.0, "positive numbers, not .*0.0"),
        ((1.0, -2.0, 1.0), 1.0, "positive numbers, not .*-2.0"),
        ((1.0, math.nan, 1.0), 1.0, "positive numbers, not .*nan"),
        ((1.0, math.inf, 1.0), 1.0, "positive numbers, not .*inf"),
        (SPACING, -0.5, "not negative, not -0.5"),
        (SPACING, math.nan, "finite number .* not nan"),
        (SPACING, math.inf, "finite number .* not inf"),
    ],
)
def test_surface_dice__impossible_numbers__are_refused(
    spacing: tuple[float, ...], tolerance: float, message: str
) -> None:
    """What would give a wrong answer names itself."""
    mask = np.ones((2, 3, 4), bool)
    with pytest.raises(ValueError, match=message):
        surface_dice(mask, mask, spacing, tolerance)


def test_hd95__what_cannot_be_compared__is_refused() -> None:
    """The checks of the overlap measures hold here too."""
    mask = np.ones((2, 3, 4), bool)
    with pytest.raises(ValueError, match="boolean, not int64 and bool"):
        hd95(mask.astype(np.int64), mask, SPACING)
    with pytest.raises(ValueError, match="cannot be compared"):
        hd95(mask[:1], mask, SPACING)


class InMemory:
    """Stands for nnU-Net's reader: files are arrays."""

    def read_seg(self, file: np.ndarray) -> tuple[np.ndarray, dict[str, object]]:
        return file, {}


@given(SHAPES.flatmap(lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, 3))] * 2)))
def test_leave_out__label_ignore__scores_are_those_of_nnunet(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """Voxels with the ignore label are in no mask; labels that neither side has are NaN for nnU-Net, and 1 here."""
    prediction, reference = pair
    expected = compute_metrics(reference, prediction, InMemory(), [1, 2], ignore_label=3)["metrics"]
    found, true = (leave_out(labels, reference, 3) for labels in (prediction, reference))
    for label, scores in expected.items():
        for metric, name in ((dice, "Dice"), (iou, "IoU")):
            assert metric(found == label, true == label) == pytest.approx(np.nan_to_num(scores[name], nan=1.0))
    assert leave_out(prediction, reference, None) is prediction


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


def test_mean_over_labels__distances__are_averaged_or_infinite() -> None:
    """Arguments bound beforehand reach the metric; a label that one side misses makes the mean infinite."""
    prediction, reference = np.array([[0, 1, 0, 2, 2]]), np.array([[0, 0, 1, 2, 2]])
    distance = partial(hd95, spacing=(5, 0.5))
    assert mean_over_labels(distance, prediction, reference, (1, 2)) == pytest.approx((0.5 + 0) / 2)
    assert mean_over_labels(distance, prediction, reference % 2, (1, 2)) == math.inf
    share = partial(surface_dice, spacing=(5, 0.5), tolerance=0.1)
    assert mean_over_labels(share, prediction, reference, (1, 2)) == pytest.approx((0 + 1) / 2)
