"""Where voxels of one grid lie in another one of the same axes: by spacing and origin."""

from __future__ import annotations

from math import ceil, floor

from canvas import Box, triple
from coarse2fine.io.volume import Grid

SAME = 1e-3
"""Share of a voxel by which two places may differ and count as one: metadata are rounded."""
MOST_UNCOVERED = 1.0
"""Voxels of a level by which the finest level may reach beyond it: what did not fill a voxel, or half of one."""


def ends(finest: Grid, level: Grid, box: Box) -> list[tuple[float, float]]:
    """Where a box of the finest level begins and ends in a level, in voxels from the outer face of the first one."""
    places = []
    for axis in range(3):
        ratio = finest.spacing[axis] / level.spacing[axis]
        shift = (finest.origin[axis] - level.origin[axis]) / level.spacing[axis]
        low, high = ((edge - 0.5) * ratio + shift + 0.5 for edge in (box.start[axis], box.stop[axis]))
        places.append((low, high))
    return places


def touched(finest: Grid, level: Grid, box: Box) -> Box:
    """The voxels of a level that share space with a box of the finest one, at least one on each axis."""
    start, stop = [], []
    for (low, high), size in zip(ends(finest, level, box), level.shape, strict=True):
        first = min(max(floor(low + SAME), 0), size - 1)
        start.append(first)
        stop.append(min(max(ceil(high - SAME), first + 1), size))
    return Box(triple(start), triple(stop))


def beyond(finest: Grid, level: Grid, box: Box) -> tuple[int, float] | None:
    """The first axis along which a level does not show all of a box of the finest one, and what is missing.

    Returns:
        The axis and a length in the level's unit; None if all is shown.
    """
    for axis, ((low, high), size) in enumerate(zip(ends(finest, level, box), level.shape, strict=True)):
        if low < -MOST_UNCOVERED - SAME or high > size + MOST_UNCOVERED + SAME:
            return axis, max(-low, high - size) * level.spacing[axis]
    return None


def common(finest: Grid, level: Grid) -> Box | None:
    """The voxels of the finest level that lie in a level as a whole; None if there are none."""
    start, stop = [], []
    for (low, high), size in zip(ends(level, finest, Box.whole(level.shape)), finest.shape, strict=True):
        start.append(min(max(ceil(low - SAME), 0), size))
        stop.append(min(max(floor(high + SAME), 0), size))
    return Box(triple(start), triple(stop)) if all(a < b for a, b in zip(start, stop, strict=True)) else None


def extent(grid: Grid) -> str:
    """A grid's place, for people: from outer face to outer face.

    >>> extent(Grid((2, 3, 4), (40.0, 4.0, 4.0), "nm", (20.0, 2.0, 42.0)))
    'z 0 to 80 nm, y 0 to 12 nm, x 40 to 56 nm'
    """
    faces = [
        (first - step / 2, first + (count - 0.5) * step)
        for first, step, count in zip(grid.origin, grid.spacing, grid.shape, strict=True)
    ]
    return ", ".join(f"{axis} {low:g} to {high:g} {grid.unit}" for axis, (low, high) in zip("zyx", faces, strict=True))
