"""How much of a volume boxes cover together."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from canvas.box import Box, Triple, to_array

Indices = NDArray[np.int64]


def share_of_volume(boxes: Iterable[Box], volume: Triple) -> float:
    """Share of the volume's voxels that lie in at least one box, 0 to 1; exact, without an array of the volume.

    Boxes may reach out of the volume (z, y, x). It is halved at their edges until few boxes are left in each part
    and painted on a grid of their own edges (after Overmars and Yap, "New upper bounds in Klee's measure problem").

    >>> share_of_volume([Box((0, 0, 0), (2, 2, 2)), Box((0, 0, 1), (2, 2, 4))], (2, 2, 8))
    0.5
    """
    whole = Box.whole(volume)
    corners = np.unique(to_array(box.clip(whole) for box in boxes), axis=0)
    return _union(corners, np.array((0, 0, 0, *volume))) / whole.volume if whole.volume else 0.0


def _union(corners: Indices, region: Indices) -> int:
    """Voxels of the region (6,) in at least one of the boxes (n, 6), which may reach out of it."""
    low, high = np.maximum(corners[:, :3], region[:3]), np.minimum(corners[:, 3:], region[3:])
    solid = (low < high).all(axis=1)
    low, high = low[solid], high[solid]
    if not len(low):
        return 0
    if ((low == region[:3]) & (high == region[3:])).all(axis=1).any():
        return int(np.prod(region[3:] - region[:3]))
    if len(low) <= 16:
        return _painted(low, high)
    edges = np.concatenate([low, high]).T
    inner = [line[(line > a) & (line < b)] for line, a, b in zip(edges, region[:3], region[3:], strict=True)]
    axis = int(np.argmax([len(column) for column in inner]))
    middle = int(np.sort(inner[axis])[len(inner[axis]) // 2])
    left, right = region.copy(), region.copy()
    left[axis + 3] = right[axis] = middle
    clipped = np.concatenate([low, high], axis=1)
    return _union(clipped, left) + _union(clipped, right)


def _painted(low: Indices, high: Indices) -> int:
    """Voxels in the union of few boxes (n, 3), on the grid of their edges."""
    lines = [np.unique([low[:, axis], high[:, axis]]) for axis in range(3)]
    first, last = (np.stack([*map(np.searchsorted, lines, ends.T)], axis=1) for ends in (low, high))
    inside = np.zeros([len(line) - 1 for line in lines], dtype=bool)
    for start, stop in zip(first.tolist(), last.tolist(), strict=True):
        inside[start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]] = True
    depth, rows, columns = map(np.diff, lines)
    return int(inside @ columns @ rows @ depth)
