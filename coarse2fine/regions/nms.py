"""Exact non-maximum suppression (NMS) and non-maximum merging (NMM) of 3D boxes.

Boxes are integer arrays of shape (n, 6), ``z0, y0, x0, z1, y1, x1``, half-open, in voxels. Two boxes match if their
overlap reaches the threshold (``>=``), where the overlap is

- ``"iou"``: intersection over union, or
- ``"ios"``: intersection over the smaller of the two; 1 if one box lies inside the other.

The rules are those of SAHI (``sahi.postprocess.combine``: ``nms``, ``greedy_nmm``, ``nmm``; release 0.12), carried
over from rectangles to boxes: on boxes that are one voxel thick the results are the same. Differences: volumes are
integers and their quotient is rounded once, in double precision, so that ``7/25 >= 0.28`` holds (SAHI works in
single precision); equal scores are ranked by index (SAHI: by coordinates); a threshold of 0, at which all boxes match
all others, is refused.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

Overlap = Literal["iou", "ios"]
Merging = Literal["greedy", "transitive"]
Indices = NDArray[np.int64]


def overlapping_pairs(boxes: ArrayLike) -> tuple[Indices, Indices]:
    """All pairs of boxes that share at least one voxel.

    A k-d tree finds pairs whose centres are close. How close they must be depends on the largest boxes searched, so
    boxes are searched by size class (powers of two of the longest edge, each axis in units of its median edge): a
    single giant box then costs no more than the pairs that it is part of.

    Args:
        boxes: (n, 6) integers, see the module's docstring.

    Returns:
        Indices ``i < j`` of the two boxes of each pair, sorted by i, then by j.

    Raises:
        ValueError: If the array has another shape, holds fractions, or a box stops before it starts.

    >>> i, j = overlapping_pairs([[0, 0, 0, 4, 4, 4], [4, 0, 0, 8, 4, 4], [3, 3, 3, 5, 5, 5]])
    >>> list(zip(i.tolist(), j.tolist()))
    [(0, 2), (1, 2)]
    """
    corners = _as_boxes(boxes)
    edges = corners[:, 3:] - corners[:, :3]
    solid = np.flatnonzero((edges > 0).all(axis=1))
    if len(solid) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    longest = (edges[solid] / np.median(edges[solid], axis=0)).max(axis=1)
    size_class = np.floor(np.log2(longest))
    classes = [solid[size_class == value] for value in np.unique(size_class)]
    found = []
    for group, other in combinations_with_replacement(classes, 2):
        close = _close_pairs(corners, group, other)
        found.append(close[_intersection(corners, close[:, 0], close[:, 1]) > 0])
    pairs = np.concatenate(found)
    keys = np.sort(pairs.min(axis=1) * len(corners) + pairs.max(axis=1))
    first, second = np.divmod(keys, len(corners))
    return first, second


def suppress(boxes: ArrayLike, scores: ArrayLike, threshold: float, overlap: Overlap) -> Indices:
    """Keep the best box of each crowd: drop every box that matches a better one that is kept.

    Args:
        boxes: (n, 6) integers, see the module's docstring.
        scores: (n,) numbers; the better box has the higher score, of equal ones the one with the lower index.
        threshold: Overlap from which on two boxes match, above 0. Above 1, no two boxes match.
        overlap: ``"iou"`` or ``"ios"``.

    Returns:
        Indices of the boxes kept, best first.

    Raises:
        ValueError: If an argument is not as described.

    >>> suppress([[0, 0, 0, 1, 1, 4], [0, 0, 1, 1, 1, 4], [0, 0, 3, 1, 1, 7]], [0.5, 0.9, 0.7], 0.75, "iou").tolist()
    [1, 2]
    """
    order, leaders = _leaders(boxes, scores, threshold, overlap, "greedy")
    return order[leaders == np.arange(len(order))]


def merge(
    boxes: ArrayLike, scores: ArrayLike, threshold: float, overlap: Overlap, merging: Merging
) -> tuple[tuple[int, ...], ...]:
    """Group boxes that belong together. The leading boxes of greedy merging are those that ``suppress`` keeps.

    Boxes are visited from the best to the worst. One that no group has claimed leads a new group; then

    - ``"greedy"``: the leader claims all unclaimed boxes that match the leader;
    - ``"transitive"``: every visited box, leader or not, claims for its group all unclaimed worse boxes that match
      it. This follows chains downhill only: two groups whose leaders both match a worse box stay apart, so a group
      is not always a whole connected component.

    Args:
        boxes: (n, 6) integers, see the module's docstring.
        scores: (n,) numbers; the better box has the higher score, of equal ones the one with the lower index.
        threshold: Overlap from which on two boxes match, above 0. Above 1, no two boxes match.
        overlap: ``"iou"`` or ``"ios"``.
        merging: ``"greedy"`` or ``"transitive"``.

    Returns:
        Groups of indices, every box in one of them; leading box first, the others from best to worst, and the
        groups in the order of their leaders.

    Raises:
        ValueError: If an argument is not as described.

    >>> chain = [[0, 0, 0, 1, 1, 4], [0, 0, 2, 1, 1, 6], [0, 0, 4, 1, 1, 8]]
    >>> merge(chain, [0.9, 0.8, 0.7], 0.5, "ios", "greedy")
    ((0, 1), (2,))
    >>> merge(chain, [0.9, 0.8, 0.7], 0.5, "ios", "transitive")
    ((0, 1, 2),)
    """
    order, leaders = _leaders(boxes, scores, threshold, overlap, merging)
    by_group = np.argsort(leaders, kind="stable")
    bounds = np.flatnonzero(np.diff(leaders[by_group])) + 1
    groups = np.split(order[by_group], bounds) if len(order) else []
    return tuple(tuple(group.tolist()) for group in groups)


def _leaders(
    boxes: ArrayLike, scores: ArrayLike, threshold: float, overlap: Overlap, merging: Merging
) -> tuple[Indices, Indices]:
    """Rank the boxes and find the leader of each one's group.

    Returns:
        Indices of the boxes from best to worst, and for each rank the rank of the box that leads its group.
    """
    corners, values = _as_boxes(boxes), np.asarray(scores, dtype=np.float64)
    if values.shape != (len(corners),) or np.isnan(values).any():
        raise ValueError(f"{len(corners)} boxes need as many scores, none of them NaN; got shape {values.shape}")
    if not threshold > 0:
        raise ValueError(f"threshold {threshold} is not above 0")
    if merging not in ("greedy", "transitive"):
        raise ValueError(f"merging can be 'greedy' or 'transitive', not {merging!r}")
    order = np.argsort(-values, kind="stable")
    better, worse = _matches(corners[order], threshold, overlap)
    claims = np.searchsorted(better, np.arange(len(order) + 1))
    leaders = np.full(len(order), -1, dtype=np.int64)
    for rank in np.flatnonzero(np.diff(claims)).tolist():
        leader = leaders[rank]
        if leader < 0:
            leader = leaders[rank] = rank
        elif merging == "greedy":
            continue
        matching = worse[claims[rank] : claims[rank + 1]]
        leaders[matching[leaders[matching] < 0]] = leader
    return order, np.where(leaders < 0, np.arange(len(order)), leaders)


def _matches(corners: Indices, threshold: float, overlap: Overlap) -> tuple[Indices, Indices]:
    """Pairs of boxes whose overlap reaches the threshold, sorted as by ``overlapping_pairs``."""
    first, second = overlapping_pairs(corners)
    common = _intersection(corners, first, second)
    volumes = np.prod(corners[:, 3:] - corners[:, :3], axis=1)
    if overlap == "iou":
        reference = volumes[first] + volumes[second] - common
    elif overlap == "ios":
        reference = np.minimum(volumes[first], volumes[second])
    else:
        raise ValueError(f"overlap can be 'iou' or 'ios', not {overlap!r}")
    matching = common / reference >= threshold
    return first[matching], second[matching]


def _close_pairs(corners: Indices, group: Indices, other: Indices) -> Indices:
    """Pairs (m, 2) of one box of each group that may overlap; each pair once if the groups are the same."""
    edges = corners[:, 3:] - corners[:, :3]
    # Twice the centre is an integer, and two boxes overlap only if twice the centres differ by less than both edges.
    reach = edges[group].max(axis=0) + edges[other].max(axis=0)
    centres = (corners[:, :3] + corners[:, 3:]) / reach
    tree = _tree(centres[group])
    if group is other:
        pairs: Indices = group[tree.query_pairs(1.0, p=np.inf, output_type="ndarray")]
        return pairs
    near = tree.sparse_distance_matrix(_tree(centres[other]), 1.0, p=np.inf, output_type="ndarray")
    return np.stack([group[near["i"]], other[near["j"]]], axis=1)


def _tree(points: NDArray[np.float64]) -> cKDTree:
    # Sliding midpoints are faster to build, and boxes in a volume are spread evenly enough for them.
    return cKDTree(points, balanced_tree=False, compact_nodes=False)


def _intersection(corners: Indices, first: Indices, second: Indices) -> Indices:
    """Number of voxels that box ``first[k]`` shares with box ``second[k]``."""
    common = np.ones(len(first), dtype=np.int64)
    for axis in range(3):
        start = np.maximum(corners[first, axis], corners[second, axis])
        stop = np.minimum(corners[first, axis + 3], corners[second, axis + 3])
        common *= np.maximum(stop - start, 0)
    return common


def _as_boxes(boxes: ArrayLike) -> Indices:
    array = np.asarray(boxes)
    if array.size == 0:
        return np.empty((0, 6), dtype=np.int64)
    if array.ndim != 2 or array.shape[1] != 6 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"boxes must be integers of shape (n, 6), not {array.dtype} of shape {array.shape}")
    corners = array.astype(np.int64)
    if (corners[:, 3:] < corners[:, :3]).any():
        raise ValueError(f"box {int(np.argmax((corners[:, 3:] < corners[:, :3]).any(axis=1)))} stops before it starts")
    return corners
