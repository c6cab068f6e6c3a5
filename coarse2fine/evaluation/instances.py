"""How well objects are found one by one: average precision of instance maps, and how many objects a mask touches.

An instance map holds the id of an object in every voxel, 0 for none. Ids may be any positive integers, with gaps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.regions.components import label_components

__all__ = ["IOU_THRESHOLDS", "average_precision", "label_objects", "object_recall"]

Ids = NDArray[np.integer[Any]]

# COCO's: 0.50, 0.55 ... 0.95. Written as fractions, an IoU of 11/20 equals its threshold to the last bit.
IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
# Where COCO reads the curve of precision over recall.
_RECALLS = np.arange(101) / 100


def label_objects(mask: NDArray[np.bool_]) -> Ids:
    """Make an instance map of a mask: each connected component is an object, 26 neighbours.

    Args:
        mask: Boolean, (z, y, x).

    Returns:
        Ids from 1 on, shape (z, y, x).

    Raises:
        ValueError: If the mask is not boolean or does not have three axes.
    """
    if mask.ndim != 3 or mask.dtype != np.bool_:
        raise ValueError(f"only a boolean mask (z, y, x) has objects, not {mask.dtype} of shape {mask.shape}")
    if not mask.size:
        return np.zeros(mask.shape, np.uint16)  # cc3d would return a mask
    return label_components(mask)[tuple(slice(edge) for edge in mask.shape)]


def average_precision(
    prediction_ids: Ids,
    reference_ids: Ids,
    scores: Mapping[int, float] | None = None,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
) -> float:
    """Average precision (AP) of predicted objects, the mean over IoU thresholds.

    At a threshold t, a predicted and a reference object may match if their IoU is at least t. Each matches at most
    once: predictions take their turn by falling score, of equal scores (and without scores) the lower id first, and
    each takes the object of largest IoU among those still free, of equal IoUs the lower id. Only at IoU 0.5 exactly
    can there be a choice, where one object is two others' sum. A prediction that matches is a true positive (TP), any
    other is a false positive (FP), a reference object that nobody matches a false negative (FN).

    Without scores, as segmentations come, AP at t is TP / (TP + FP + FN), as in StarDist, Cellpose and the Data
    Science Bowl 2018.

    With scores, AP at t is COCO's: going through the predictions by falling score, precision TP / (TP + FP) and
    recall TP / reference objects form a curve; a precision is raised to the largest one at the same or higher recall;
    AP is the mean of what is found at recalls 0, 0.01 ... 1, and 0 at a recall that is not reached. All predictions
    count, of any size and not just the first hundred. The two definitions give different numbers, which must not be
    compared with one another.

    No objects on both sides agree perfectly: 1. If only one side has objects, the answer is 0.

    Args:
        prediction_ids: Instance map, any shape.
        reference_ids: Instance map of the same shape.
        scores: How sure each predicted object is, by id; any finite numbers, only their order counts. An id that no
            voxel has is no object.
        thresholds: IoU thresholds t, from 0.5 to 1; below, objects could match several others.

    Returns:
        From 0 (no match) to 1 (equal, up to the names of the objects).

    Raises:
        ValueError: If shapes differ, ids are not integers or are negative, a score is missing or not finite, or
            there is no threshold or one out of range.

    Example:
        >>> average_precision(np.array([1, 1, 1, 0, 5]), np.array([8, 8, 0, 0, 9]), thresholds=[0.6])
        1.0
        >>> average_precision(np.array([1, 1, 1, 0, 5]), np.array([8, 8, 0, 0, 9]), thresholds=[0.7])
        0.3333333333333333
    """
    if not len(thresholds) or not all(0.5 <= threshold <= 1 for threshold in thresholds):
        raise ValueError(f"IoU thresholds must be numbers from 0.5 to 1, not {tuple(thresholds)}")
    common = _common_voxels(prediction_ids, reference_ids)
    predicted, referred = _sizes(common, side=0), _sizes(common, side=1)
    ranked = _ranked(predicted, scores)
    if not predicted or not referred:
        return float(not predicted and not referred)
    partners = _partners(common, predicted, referred)
    found = [_found([partners[name] for name in ranked], threshold) for threshold in thresholds]
    measure = _jaccard if scores is None else _interpolated
    return sum(measure(hits, len(referred)) for hits in found) / len(found)


def object_recall(prediction: NDArray[np.bool_], reference_ids: Ids, min_overlap: float = 0.0) -> float:
    """The share of reference objects that a mask finds, whatever else it covers.

    Args:
        prediction: Boolean, any shape.
        reference_ids: Instance map of the same shape.
        min_overlap: Share of an object's voxels, from 0 to 1, that the mask must cover to find it; at least one voxel
            in any case.

    Returns:
        From 0 (no object found) to 1 (all found, or there is none).

    Raises:
        ValueError: If shapes differ, the mask is not boolean, ids are not integers or are negative, or the share is
            out of range.

    Example:
        >>> object_recall(np.array([True, False, False, False]), np.array([4, 4, 0, 7]))
        0.5
        >>> object_recall(np.array([True, False, False, False]), np.array([4, 4, 0, 7]), min_overlap=0.6)
        0.0
    """
    if prediction.dtype != np.bool_:
        raise ValueError(f"the prediction must be a boolean mask, not {prediction.dtype}")
    if not 0 <= min_overlap <= 1:
        raise ValueError(f"min_overlap must be a share from 0 to 1, not {min_overlap}")
    common = _common_voxels(prediction.view(np.uint8), reference_ids)
    sizes = _sizes(common, side=1)
    covered = {name: common.get((1, name), 0) for name in sizes}
    found = sum(covered[name] > 0 and covered[name] / size >= min_overlap for name, size in sizes.items())
    return found / len(sizes) if sizes else 1.0


def _common_voxels(prediction_ids: Ids, reference_ids: Ids) -> dict[tuple[int, int], int]:
    """Voxels of each pair of ids that meet anywhere; 0 stands for no object, and (0, 0) is left out."""
    if prediction_ids.shape != reference_ids.shape:
        shapes = f"{prediction_ids.shape} and {reference_ids.shape}"
        raise ValueError(f"instance maps of shapes {shapes} cannot be compared")
    for ids in (prediction_ids, reference_ids):
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids of objects must be integers, not {ids.dtype}; label_objects finds those of a mask")
    used = (prediction_ids != 0) | (reference_ids != 0)
    first, second = prediction_ids[used], reference_ids[used]
    # Along a row the ids seldom change: runs of equal voxels are far fewer than voxels.
    starting = np.ones(first.size, bool)
    starting[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    starts = np.flatnonzero(starting)
    firsts, at_first = np.unique(first[starts], return_inverse=True)
    seconds, at_second = np.unique(second[starts], return_inverse=True)
    lowest = min([0, *firsts[:1].tolist(), *seconds[:1].tolist()])
    if lowest < 0:
        raise ValueError(f"ids of objects must not be negative, as {lowest} is")
    pairs, at_pair = np.unique(at_first * seconds.size + at_second, return_inverse=True)
    voxels = np.zeros(pairs.size, np.int64)
    np.add.at(voxels, at_pair, np.diff(starts, append=first.size))
    rows, columns = np.divmod(pairs, seconds.size)
    return dict(zip(zip(firsts[rows].tolist(), seconds[columns].tolist(), strict=True), voxels.tolist(), strict=True))


def _sizes(common: Mapping[tuple[int, int], int], side: int) -> Counter[int]:
    """Voxels of each object of the prediction (side 0) or of the reference (side 1)."""
    sizes: Counter[int] = Counter()
    for pair, voxels in common.items():
        sizes[pair[side]] += voxels
    del sizes[0]
    return sizes


def _ranked(predicted: Mapping[int, int], scores: Mapping[int, float] | None) -> list[int]:
    """Predicted ids in the order in which they take their turn."""
    if scores is None:
        return sorted(predicted)
    missing = [name for name in sorted(predicted) if name not in scores]
    if missing:
        raise ValueError(f"no score for predicted objects {missing[:10]}")
    unclear = {name: scores[name] for name in sorted(predicted) if not math.isfinite(scores[name])}
    if unclear:
        raise ValueError(f"scores must be finite numbers, not {unclear}")
    return sorted(predicted, key=lambda name: (-scores[name], name))


def _partners(
    common: Mapping[tuple[int, int], int], predicted: Mapping[int, int], referred: Mapping[int, int]
) -> Mapping[int, list[tuple[float, int]]]:
    """Reference objects that each predicted one meets, as (-IoU, id): the best first."""
    partners: dict[int, list[tuple[float, int]]] = {name: [] for name in predicted}
    for (first, second), voxels in common.items():
        if first and second:
            partners[first].append((-voxels / (predicted[first] + referred[second] - voxels), second))
    return {name: sorted(found) for name, found in partners.items()}


def _found(ordered: Sequence[Sequence[tuple[float, int]]], threshold: float) -> NDArray[np.bool_]:
    """Which predictions find an object of their own; for each its partners (-IoU, id), in the order of turns."""
    taken: set[int] = set()
    hits = np.zeros(len(ordered), bool)
    for turn, partners in enumerate(ordered):
        free = (name for loss, name in partners if -loss >= threshold and name not in taken)
        partner = next(free, None)
        if partner is not None:
            taken.add(partner)
            hits[turn] = True
    return hits


def _jaccard(hits: NDArray[np.bool_], references: int) -> float:
    """TP / (TP + FP + FN)."""
    true = int(np.count_nonzero(hits))
    return true / (hits.size + references - true)


def _interpolated(hits: NDArray[np.bool_], references: int) -> float:
    """COCO's average precision: the raised curve of precision over recall, read at 101 places."""
    true = np.cumsum(hits)
    precision = true / np.arange(1, hits.size + 1)
    raised = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(true / references, _RECALLS)
    return float(np.append(raised, 0.0)[reached].mean())
