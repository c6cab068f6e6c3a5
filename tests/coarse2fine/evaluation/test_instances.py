"""Average precision against a matcher that tries everything, and against cases worked out by hand."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from coarse2fine.evaluation.instances import IOU_THRESHOLDS, average_precision, label_objects, object_recall

SHAPES = array_shapes(min_dims=3, max_dims=3, max_side=4)
MAPS = SHAPES.flatmap(lambda shape: st.tuples(*[arrays(np.int16, shape, elements=st.sampled_from([0, 1, 2, 7]))] * 2))


def row(*runs: tuple[int, int]) -> np.ndarray:
    """An instance map (1, 1, x) of runs (id, voxels)."""
    return np.concatenate([np.full(voxels, name) for name, voxels in runs])[None, None]


def ious_by_hand(prediction: np.ndarray, reference: np.ndarray) -> tuple[list[int], list[int], dict]:
    """Ids of both sides, and the IoU of every pair as a fraction."""
    firsts, seconds = (sorted(set(ids.ravel().tolist()) - {0}) for ids in (prediction, reference))
    table = {}
    for first, second in itertools.product(firsts, seconds):
        ours, theirs = prediction == first, reference == second
        table[first, second] = Fraction(int((ours & theirs).sum()), int((ours | theirs).sum()))
    return firsts, seconds, table


def most_matches(firsts: list[int], seconds: list[int], allowed: set[tuple[int, int]]) -> int:
    """Of all ways to match, the one with most pairs."""
    if not firsts:
        return 0
    rest = firsts[1:]
    options = [
        1 + most_matches(rest, [s for s in seconds if s != o], allowed) for o in seconds if (firsts[0], o) in allowed
    ]
    return max([most_matches(rest, seconds, allowed), *options])


def coco_by_hand(prediction: np.ndarray, reference: np.ndarray, scores: dict[int, float], threshold: Fraction) -> float:
    """COCO's definition word by word: turns by score, then the best precision at each of 101 recalls or beyond."""
    firsts, seconds, table = ious_by_hand(prediction, reference)
    free, true, curve = set(seconds), 0, []
    for turn, first in enumerate(sorted(firsts, key=lambda name: (-scores[name], name)), 1):
        options = [(-table[first, second], second) for second in free if table[first, second] >= threshold]
        if options:
            free.remove(min(options)[1])
            true += 1
        curve.append((Fraction(true, len(seconds)), Fraction(true, turn)))
    best = [max((p for r, p in curve if r >= Fraction(level, 100)), default=0) for level in range(101)]
    return float(Fraction(sum(best), 101))


@settings(deadline=None)
@given(MAPS, st.sampled_from([50, 55, 60, 75, 100]))
def test_average_precision__without_scores__equals_the_best_matching(
    maps: tuple[np.ndarray, np.ndarray], percent: int
) -> None:
    """TP of the largest matching there is, IoUs compared as fractions; no objects on either side is 1."""
    firsts, seconds, table = ious_by_hand(*maps)
    true = most_matches(firsts, seconds, {pair for pair, iou in table.items() if iou >= Fraction(percent, 100)})
    total = len(firsts) + len(seconds) - true
    assert average_precision(*maps, thresholds=[percent / 100]) == pytest.approx(true / total if total else 1.0)


@settings(deadline=None)
@given(MAPS, st.permutations([0.9, 0.5, 0.5]), st.sampled_from([50, 55, 75]))
def test_average_precision__with_scores__equals_coco_by_hand(
    maps: tuple[np.ndarray, np.ndarray], values: list[float], percent: int
) -> None:
    """Precision over recall as COCO reads it, equal scores included."""
    scores = dict(zip((1, 2, 7), values, strict=True))
    empty = float(not maps[0].any())
    expected = coco_by_hand(*maps, scores, Fraction(percent, 100)) if maps[1].any() else empty
    assert average_precision(*maps, scores, [percent / 100]) == pytest.approx(expected)


# name: (prediction, reference, AP at 0.5, mean AP over COCO's ten thresholds), without scores
BY_HAND = {
    "perfect, other names": (row((3, 4), (0, 2), (1, 4)), row((1, 4), (0, 2), (9, 4)), 1.0, 1.0),
    # IoU 6/10 with the larger part: TP 1, FP 1, FN 0 at 0.50, 0.55 and 0.60; then nothing.
    "one split into 6 and 4": (row((1, 6), (2, 4)), row((1, 10)), 1 / 2, 3 / 20),
    # IoU exactly 1/2 with each half: one of them matches, at 0.50 only.
    "one split into halves": (row((1, 5), (2, 5)), row((1, 10)), 1 / 2, 1 / 20),
    "two merged, 8 and 2": (row((1, 10)), row((1, 8), (2, 2)), 1 / 2, 7 / 20),
    "two halves merged": (row((1, 10)), row((1, 5), (2, 5)), 1 / 2, 1 / 20),
    # 9 of 11 voxels: 0.818, so the seven thresholds up to 0.80.
    "shifted by 1 of 10": (row((0, 1), (1, 10)), row((1, 10), (0, 1)), 1.0, 7 / 10),
    "shifted by 4 of 10": (row((0, 4), (1, 10)), row((1, 10), (0, 4)), 0.0, 0.0),
    "one of two missed": (row((1, 4), (0, 6)), row((1, 4), (0, 2), (2, 4)), 1 / 2, 1 / 2),
    "one too many": (row((1, 4), (0, 2), (2, 4)), row((1, 4), (0, 6)), 1 / 2, 1 / 2),
    "both empty": (row((0, 9)), row((0, 9)), 1.0, 1.0),
    "no prediction": (row((0, 9)), row((1, 9)), 0.0, 0.0),
    "no reference": (row((1, 9)), row((0, 9)), 0.0, 0.0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_average_precision__cases_by_hand__are_as_worked_out(name: str) -> None:
    """Splits and merges count once, and near misses at the thresholds that they reach."""
    prediction, reference, at_half, mean = BY_HAND[name]
    assert average_precision(prediction, reference, thresholds=[0.5]) == pytest.approx(at_half)
    assert average_precision(prediction, reference) == pytest.approx(mean)
    assert average_precision(reference, prediction) == pytest.approx(mean), "sides may be exchanged without scores"


def test_average_precision__iou_on_a_threshold__counts() -> None:
    """An IoU of 11/20, 12/20 ... matches at 0.55, 0.60 ..., although such numbers are not exact in binary."""
    for number, threshold in enumerate(IOU_THRESHOLDS):
        reference, prediction = row((1, 20)), row((1, 10 + number), (0, 10 - number))
        assert average_precision(prediction, reference, thresholds=[threshold]) == 1.0
        assert average_precision(prediction, reference) == pytest.approx((number + 1) / 10)


def test_average_precision__sure_of_what_is_right__is_better() -> None:
    """A false positive at the end costs nothing, at the front it halves every precision; scores tell them apart."""
    reference, prediction = row((1, 4), (0, 6)), row((1, 4), (0, 2), (2, 4))
    assert average_precision(prediction, reference, {1: 0.9, 2: 0.1}) == 1.0
    assert average_precision(prediction, reference, {1: 0.1, 2: 0.9}) == pytest.approx(0.5)
    assert average_precision(prediction, reference) == pytest.approx(0.5)
    # Half the objects are found: 51 of COCO's 101 recalls, 0 to 0.50.
    assert average_precision(reference, prediction, {1: 0.9}) == pytest.approx(51 / 101)


def test_average_precision__no_objects__has_a_defined_answer_with_scores() -> None:
    """The answers are those without scores."""
    empty, full = row((0, 5)), row((1, 5))
    assert average_precision(empty, empty, {}) == 1.0
    assert average_precision(empty, full, {}) == 0.0
    assert average_precision(full, empty, {1: 1.0}) == 0.0


def test_average_precision__thousands_of_objects__takes_no_time_per_pair() -> None:
    """8000 objects beside 8000 others; looking at every pair of masks would take hours."""
    ids = np.arange(1, 8001, dtype=np.uint64).reshape(20, 20, 20).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    start = time.perf_counter()
    assert average_precision(ids, ids[::-1, ::-1] + np.uint64(2**60)) == 1.0
    assert average_precision(ids, np.roll(ids, 1, axis=2)) == pytest.approx(3 / 10), "IoU is 3/5"
    assert time.perf_counter() - start < 5


@settings(deadline=None)
@given(MAPS, st.sampled_from([0, 1, 50, 100]))
def test_object_recall__any_maps__equals_counting_object_by_object(
    maps: tuple[np.ndarray, np.ndarray], percent: int
) -> None:
    """One object after the other: is a voxel of it covered, and a large enough share."""
    mask, reference = maps[0] != 0, maps[1]
    objects = [reference == name for name in sorted(set(reference.ravel().tolist()) - {0})]
    hits = [(mask & it).any() and Fraction(int((mask & it).sum()), int(it.sum())) * 100 >= percent for it in objects]
    assert object_recall(mask, reference, percent / 100) == (sum(hits) / len(hits) if hits else 1.0)


def test_object_recall__default__is_one_voxel() -> None:
    """Touching an object is enough unless a share is asked for; what else is covered does not count."""
    reference = row((1, 10), (0, 5), (2, 10), (3, 5))
    mask = row((0, 9), (1, 7), (0, 9), (0, 5)) != 0
    assert object_recall(mask, reference) == pytest.approx(2 / 3)
    assert object_recall(mask, reference, 0.1) == pytest.approx(2 / 3)
    assert object_recall(mask, reference, 0.2) == 0.0
    assert object_recall(~mask, reference, 0.9) == 1.0


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (8, 8, 8), (0, 2, 2)])
def test_label_objects__odd_and_even_shapes__equals_scipy(shape: tuple[int, ...]) -> None:
    """Components that touch by a corner are one object; the map is as large as the mask."""
    mask = np.random.default_rng(0).random(shape) < 0.15
    expected, number = ndimage.label(mask, np.ones((3, 3, 3)))
    found = label_objects(mask)
    assert found.shape == mask.shape
    assert len(set(found[mask].tolist())) == number
    assert average_precision(found, expected, thresholds=[1]) == 1.0, "voxel by voxel the same objects"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((1, 4), int), np.ones((3, 4), int)), r"\(1, 4\) and \(3, 4\)"),
        ((np.ones(4, int), np.ones(4, bool)), "integers, not bool; label_objects"),
        ((np.ones(4), np.ones(4, int)), "integers, not float64"),
        ((np.array([-7, 1]), np.ones(2, int)), "negative, as -7"),
        ((np.ones(2, int), np.array([3, -1])), "negative, as -1"),
        ((np.array([1, 2]), np.ones(2, int), {1: 0.5}), r"no score for predicted objects \[2\]"),
        ((np.ones(2, int), np.ones(2, int), {1: np.nan}), "finite numbers, not {1: nan}"),
        ((np.ones(2, int), np.ones(2, int), None, []), r"from 0.5 to 1, not \(\)"),
        ((np.ones(2, int), np.ones(2, int), None, [0.5, 0.4]), r"from 0.5 to 1, not \(0.5, 0.4\)"),
        ((np.ones(2, int), np.ones(2, int), None, [np.nan]), "from 0.5 to 1, not .*nan"),
    ],
)
def test_average_precision__impossible_input__is_refused(arguments: tuple, message: str) -> None:
    """What would give a wrong answer names itself."""
    with pytest.raises(ValueError, match=message):
        average_precision(*arguments)


def test_object_recall__impossible_input__is_refused() -> None:
    """Masks must be masks, shares must be shares, shapes must be equal."""
    mask, reference = np.ones(4, bool), np.ones(4, int)
    with pytest.raises(ValueError, match="boolean mask, not int64"):
        object_recall(reference, reference)
    with pytest.raises(ValueError, match=r"from 0 to 1, not 1.5"):
        object_recall(mask, reference, 1.5)
    with pytest.raises(ValueError, match="cannot be compared"):
        object_recall(mask, reference[:2])
    with pytest.raises(ValueError, match="integers, not bool"):
        object_recall(mask, mask)


@pytest.mark.parametrize("mask", [np.ones((2, 2), bool), np.ones((2, 2, 2), np.uint8)])
def test_label_objects__no_mask_of_three_axes__is_refused(mask: np.ndarray) -> None:
    """In 2D, 26 neighbours have no meaning; labels are no mask."""
    with pytest.raises(ValueError, match=f"not {mask.dtype}"):
        label_objects(mask)
