"""Suppression and merging against brute force and against SAHI."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coarse2fine.regions import nms
from coarse2fine.regions.nms import merge, overlapping_pairs, suppress

try:
    from sahi.postprocess.backends import set_postprocess_backend
    from sahi.postprocess.combine import greedy_nmm as sahi_greedy_nmm
    from sahi.postprocess.combine import nmm as sahi_nmm
    from sahi.postprocess.combine import nms as sahi_nms
except ImportError as error:
    # SAHI needs opencv-python, whose wheel needs libGL, libglib and libxcb from the system.
    SAHI_MISSING = f"SAHI 0.12 cannot be imported: {error}"
else:
    SAHI_MISSING = ""
    set_postprocess_backend("numpy")
needs_sahi = pytest.mark.skipif(bool(SAHI_MISSING), reason=SAHI_MISSING)

relaxed = settings(deadline=None)
THRESHOLDS = [Fraction(1, 5), Fraction(7, 20), Fraction(1, 2), Fraction(11, 20), Fraction(3, 4), Fraction(1)]
OVERLAPS = ["iou", "ios"]
MERGINGS = ["greedy", "transitive"]

# A chain along x: each box shares half of its 4 voxels with the next one.
CHAIN = [[0, 0, 0, 1, 1, 4], [0, 0, 2, 1, 1, 6], [0, 0, 4, 1, 1, 8]]


@st.composite
def boxes(draw: st.DrawFn, thick: int | None = None) -> list[list[int]]:
    """Boxes in a space of 12 voxels, some flat, some large; ``thick`` fixes the z axis to [0, thick)."""
    rows = []
    for _ in range(draw(st.integers(0, 14))):
        starts = [draw(st.integers(0, 10)) for _ in range(3)]
        stops = [draw(st.integers(start, 12)) for start in starts]
        if thick:
            starts[0], stops[0] = 0, thick
        rows.append(starts + stops)
    return rows


def voxels(box: list[int]) -> set[tuple[int, ...]]:
    return {tuple(index) for index in np.argwhere(np.ones(np.subtract(box[3:], box[:3]))) + box[:3]}


def brute_overlap(first: list[int], second: list[int], overlap: str) -> Fraction:
    a, b = voxels(first), voxels(second)
    reference = len(a | b) if overlap == "iou" else min(len(a), len(b))
    return Fraction(len(a & b), reference) if reference else Fraction(0)


def brute_merge(rows, scores, threshold, overlap, merging) -> tuple[tuple[int, ...], ...]:
    order = sorted(range(len(rows)), key=lambda index: (-scores[index], index))
    groups: dict[int, list[int]] = {}
    leader_of: dict[int, int] = {}
    for position, index in enumerate(order):
        if index not in leader_of:
            leader_of[index] = index
            groups[index] = [index]
        elif merging == "greedy":
            continue
        for worse in order[position + 1 :]:
            if worse not in leader_of and brute_overlap(rows[index], rows[worse], overlap) >= threshold:
                leader_of[worse] = leader_of[index]
                groups[leader_of[index]].append(worse)
    return tuple((leader, *sorted(rest, key=order.index)) for leader, (_, *rest) in groups.items())


def few_scores(count: int):
    return st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=count, max_size=count)


# --- overlapping_pairs


@relaxed
@given(boxes())
def test_overlapping_pairs__any_boxes__equals_brute_force(rows) -> None:
    """All pairs that share a voxel, and no other, in order."""
    expected = [(i, j) for i, j in combinations(range(len(rows)), 2) if voxels(rows[i]) & voxels(rows[j])]
    first, second = overlapping_pairs(np.array(rows, dtype=np.int32).reshape(-1, 6))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected


def test_overlapping_pairs__mixed_sizes__equals_all_against_all() -> None:
    """Exact on 400 boxes whose edges differ a thousandfold and whose coordinates exceed 32 bits."""
    random = np.random.default_rng(0)
    edges = np.exp(random.uniform(0, np.log(1000), (400, 3))).astype(np.int64)
    starts = random.integers(0, 2000, (400, 3)) + 2**40
    rows = np.concatenate([starts, starts + edges], axis=1)
    separate = np.zeros((400, 400), dtype=bool)
    for axis in range(3):
        separate |= rows[:, None, axis] >= rows[None, :, axis + 3]
    expected = np.argwhere(np.triu(~(separate | separate.T), k=1))
    assert len(expected) > 100
    np.testing.assert_array_equal(np.stack(overlapping_pairs(rows), axis=1), expected)


def test_overlapping_pairs__one_giant_box__does_not_compare_all_with_all(monkeypatch) -> None:
    """Size classes keep the candidates near the true pairs; in one class, all pairs would be candidates."""
    random = np.random.default_rng(1)
    starts = random.integers(0, 1000, (1000, 3))
    rows = np.concatenate([starts, starts + 5], axis=1)
    rows[0] = (0, 0, 0, 1005, 1005, 1005)
    everything = np.arange(1000)
    assert len(nms._close_pairs(rows, everything, everything)) > 400_000
    counts, search = [], nms._close_pairs

    def counted(*args):
        pairs = search(*args)
        counts.append(len(pairs))
        return pairs

    monkeypatch.setattr(nms, "_close_pairs", counted)
    first, _ = overlapping_pairs(rows)
    assert (first == 0).sum() == 999
    assert sum(counts) < len(first) + 1000


@pytest.mark.parametrize("wrong", [[[0, 0, 0, 1, 1]], [[0.5, 0, 0, 1, 1, 1]], [[0, 0, 2, 1, 1, 1]], [0, 0, 0, 1, 1, 1]])
def test_overlapping_pairs__not_boxes__raises(wrong) -> None:
    """Wrong shapes, fractions and boxes that stop before they start are refused."""
    with pytest.raises(ValueError, match=r"boxes must be|stops before"):
        overlapping_pairs(wrong)


# --- suppress


@relaxed
@given(st.data(), boxes(), st.sampled_from(THRESHOLDS), st.sampled_from(OVERLAPS))
def test_suppress__any_boxes__equals_brute_force(data, rows, threshold, overlap) -> None:
    """A box is kept if and only if it matches no better box that is kept; exact also at equality."""
    scores = data.draw(few_scores(len(rows)))
    kept: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: (-scores[index], index)):
        if all(brute_overlap(rows[index], rows[better], overlap) < threshold for better in kept):
            kept.append(index)
    assert suppress(rows, scores, float(threshold), overlap).tolist() == kept


def test_suppress__overlap_equals_threshold__drops() -> None:
    """An overlap of exactly 7/25 reaches a threshold of 0.28, although 0.28 * 25 exceeds 7 in floating point."""
    rows = [[0, 0, 0, 1, 1, 25], [0, 0, 0, 1, 1, 7]]
    assert suppress(rows, [0.9, 0.8], 0.28, "iou").tolist() == [0]
    assert suppress(rows, [0.9, 0.8], 0.2801, "iou").tolist() == [0, 1]


def test_suppress__small_box_inside_large__depends_on_the_overlap() -> None:
    """Intersection over the smaller box sees a box inside another as a copy; over the union it is a detail."""
    rows = [[0, 0, 0, 8, 8, 8], [2, 2, 2, 4, 4, 4]]
    assert suppress(rows, [0.9, 0.8], 0.75, "ios").tolist() == [0]
    assert suppress(rows, [0.9, 0.8], 0.75, "iou").tolist() == [0, 1]


def test_suppress__equal_scores__lower_index_wins() -> None:
    """Ties are broken by position, whatever the coordinates."""
    assert suppress([CHAIN[1], CHAIN[0]], [0.5, 0.5], 0.3, "iou").tolist() == [0]
    assert suppress([CHAIN[0], CHAIN[1]], [0.5, 0.5], 0.3, "iou").tolist() == [0]


def test_suppress__no_boxes__keeps_none() -> None:
    """An empty list is no error."""
    assert suppress([], [], 0.5, "iou").tolist() == []


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": 0.0}, {"threshold": float("nan")}, {"overlap": "dice"}, {"scores": [1.0]}, {"scores": [np.nan] * 3}],
)
def test_suppress__argument_out_of_range__raises(wrong) -> None:
    """Thresholds of 0, at which all boxes match, unknown overlaps and scores that do not fit are refused."""
    arguments = {"boxes": CHAIN, "scores": [0.9, 0.8, 0.7], "threshold": 0.5, "overlap": "iou"}
    with pytest.raises(ValueError):
        suppress(**arguments | wrong)


# --- merge


@relaxed
@given(st.data(), boxes(), st.sampled_from(THRESHOLDS), st.sampled_from(OVERLAPS), st.sampled_from(MERGINGS))
def test_merge__any_boxes__equals_brute_force(data, rows, threshold, overlap, merging) -> None:
    """The groups, their leaders and all orders are those of a literal, quadratic implementation."""
    scores = data.draw(few_scores(len(rows)))
    expected = brute_merge(rows, scores, threshold, overlap, merging)
    assert merge(rows, scores, float(threshold), overlap, merging) == expected


@relaxed
@given(st.data(), boxes(), st.sampled_from(THRESHOLDS), st.sampled_from(OVERLAPS))
def test_merge__greedy__is_led_by_what_suppress_keeps(data, rows, threshold, overlap) -> None:
    """Greedy merging and suppression agree on the best boxes."""
    scores = data.draw(few_scores(len(rows)))
    groups = merge(rows, scores, float(threshold), overlap, "greedy")
    assert [group[0] for group in groups] == suppress(rows, scores, float(threshold), overlap).tolist()


def test_merge__chain__joins_only_if_transitive() -> None:
    """The last box of a chain overlaps the second, not the first, so only transitive merging takes it."""
    assert merge(CHAIN, [0.9, 0.8, 0.7], 0.5, "ios", "greedy") == ((0, 1), (2,))
    assert merge(CHAIN, [0.9, 0.8, 0.7], 0.5, "ios", "transitive") == ((0, 1, 2),)


def test_merge__two_leaders_share_a_worse_box__stay_apart() -> None:
    """Transitive merging follows chains from better to worse only: the middle box goes to the better leader."""
    assert merge(CHAIN, [0.9, 0.7, 0.8], 0.5, "ios", "transitive") == ((0, 1), (2,))


def test_merge__unknown_merging__raises() -> None:
    """A misspelt merging is refused."""
    with pytest.raises(ValueError, match="merging"):
        merge(CHAIN, [0.9, 0.8, 0.7], 0.5, "ios", "all")


# --- SAHI

# Computed with SAHI 0.12.8, on boxes and scores from numpy.random.default_rng(7):
#   predictions = [[x0, y0, x1, y1, score, 0], ...]; nms(predictions, "IOU", 0.2), greedy_nmm(predictions, "IOS", 0.2),
#   nmm(predictions, "IOS", 0.2) of sahi.postprocess.combine.
FLAT = [
    [0, 13, 8, 1, 18, 14], [0, 9, 12, 1, 15, 18], [0, 8, 10, 1, 14, 18], [0, 11, 3, 1, 18, 10], [0, 0, 4, 1, 7, 10],
    [0, 3, 12, 1, 8, 20], [0, 12, 0, 1, 17, 4], [0, 6, 11, 1, 14, 14], [0, 1, 11, 1, 9, 17], [0, 1, 6, 1, 4, 9],
    [0, 11, 4, 1, 16, 7], [0, 4, 3, 1, 7, 9], [0, 10, 3, 1, 18, 8], [0, 13, 6, 1, 20, 14],
]  # fmt: skip
FLAT_SCORES = [0.35, 0.55, 0.15, 0.05, 0.6, 0.7, 0.5, 0.4, 0.65, 0.2, 0.3, 0.25, 0.45, 0.1]
SAHI_NMS_IOU = [5, 4, 1, 6, 12, 0]
SAHI_GREEDY_IOS = {5: [8], 4: [11, 9], 1: [7, 2], 6: [12, 3], 0: [13], 10: []}
SAHI_NMM_IOS = {5: [8, 7], 4: [9, 11], 1: [2], 6: [3, 12, 10, 13], 0: []}


def as_sets(groups) -> dict[int, set[int]]:
    return {leader: set(rest) for leader, *rest in groups}


def test_suppress__recorded_flat_boxes__equals_sahi() -> None:
    """Boxes one voxel thick give SAHI's recorded result."""
    assert suppress(FLAT, FLAT_SCORES, 0.2, "iou").tolist() == SAHI_NMS_IOU


def test_merge__recorded_flat_boxes__equals_sahi() -> None:
    """Both mergings give SAHI's recorded groups; greedy members even in its order."""
    greedy = merge(FLAT, FLAT_SCORES, 0.2, "ios", "greedy")
    assert {leader: list(rest) for leader, *rest in greedy} == SAHI_GREEDY_IOS
    transitive = merge(FLAT, FLAT_SCORES, 0.2, "ios", "transitive")
    assert as_sets(transitive) == {leader: set(rest) for leader, rest in SAHI_NMM_IOS.items()}


@needs_sahi
@relaxed
@given(boxes(thick=1), st.randoms(use_true_random=False), st.sampled_from(THRESHOLDS), st.sampled_from(OVERLAPS))
def test_nms__flat_boxes_with_different_scores__agrees_with_sahi(rows, shuffler, threshold, overlap) -> None:
    """On boxes one voxel thick, SAHI's three functions give the same indices and groups."""
    scores = [0.05 * (index + 1) for index in range(len(rows))]
    shuffler.shuffle(scores)
    if not rows:
        return
    predictions = np.array(
        [[x0, y0, x1, y1, score, 0] for (_, y0, x0, _, y1, x1), score in zip(rows, scores, strict=True)]
    )
    arguments = (overlap.upper(), float(threshold))
    ours = (rows, scores, float(threshold), overlap)
    assert suppress(*ours).tolist() == sahi_nms(predictions, *arguments)
    assert as_sets(merge(*ours, "greedy")) == as_sets(
        (k, *v) for k, v in sahi_greedy_nmm(predictions, *arguments).items()
    )
    assert as_sets(merge(*ours, "transitive")) == as_sets((k, *v) for k, v in sahi_nmm(predictions, *arguments).items())


@needs_sahi
def test_nms__thousands_of_flat_boxes__agrees_with_sahi() -> None:
    """The same on 3,000 boxes, where SAHI too uses a spatial index."""
    random = np.random.default_rng(3)
    starts, edges = random.integers(0, 600, (3000, 2)), random.integers(4, 40, (3000, 2))
    scores = random.permutation(3000) / 3000
    plane = np.concatenate([starts, starts + edges], axis=1)
    rows = np.insert(plane, [0, 2], [0, 1], axis=1)
    predictions = np.column_stack([plane[:, [1, 0, 3, 2]], scores, np.zeros(3000)])
    assert suppress(rows, scores, 0.35, "iou").tolist() == sahi_nms(predictions, "IOU", 0.35)
    for merging, oracle in (("greedy", sahi_greedy_nmm), ("transitive", sahi_nmm)):
        groups = as_sets(merge(rows, scores, 0.5, "ios", merging))
        assert groups == as_sets((k, *v) for k, v in oracle(predictions, "IOS", 0.5).items())
        assert any(groups.values())
