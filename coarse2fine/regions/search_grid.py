"""The heatmap of the coarse network on the working grid: where its voxels lie, and sums over boxes.

A heatmap is an array (z, y, x) of foreground probabilities over the same physical extent as the working grid of shape
``volume``: heatmap voxel i covers ``[i * volume / n, (i + 1) * volume / n)`` of an axis with n heatmap voxels. All
positions are computed in integers, so no rounding error can move a box off its object.

Of a heatmap too large for memory there may be a part only. Its ``Place`` says where it lies, and everything else counts
voxels as if the whole were there: in what a part shows, the same regions are found at the same positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canvas.box import Box, Triple, triple

Heatmap = NDArray[np.float32]
Indices = NDArray[np.int64]

_CHUNK = 1 << 20  # voxels that a sum over a box copies at a time


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a heatmap lies.

    Attributes:
        start: Its first voxel in the whole heatmap.
        whole: Shape of the whole heatmap.
    """

    start: Triple
    whole: Triple


@dataclass(frozen=True, slots=True)
class SearchGrid:
    """Edges of voxels on the working grid: edge i lies at i * ``above`` / ``below``, at most at ``volume``.

    Attributes:
        volume: Shape of the working grid.
        above, below: Their quotient is a voxel's size in working-grid voxels.
        start: Voxel that an array's first voxel is; indices count from there.
    """

    volume: Triple
    above: Triple
    below: Triple
    start: Triple = (0, 0, 0)

    @classmethod
    def of(cls, shape: Sequence[int], volume: Triple, place: Place | None = None) -> SearchGrid:
        """The grid of a heatmap of this shape, or of a part of one."""
        place = place or Place((0, 0, 0), triple(shape))
        return cls(volume, volume, place.whole, place.start)

    @property
    def whole(self) -> Triple:
        """Voxels of the whole grid; the last one may reach over the volume's end."""
        sizes = zip(self.volume, self.above, self.below, strict=True)
        return triple(-(-edge * below // above) for edge, above, below in sizes)

    def boxes(self, starts: Indices, stops: Indices) -> Indices:
        """Working-grid boxes (..., 6) that hold the heatmap voxels ``starts <= index < stops``, each (..., 3)."""
        low = (starts + self.start) * self.above // self.below
        high = -(-(stops + self.start) * self.above // self.below)
        return np.minimum(np.concatenate([low, high], axis=-1), np.tile(self.volume, 2))

    def touched(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        """First heatmap voxel, and the one after the last, that working-grid voxels ``start`` to ``stop`` touch."""
        above, below, offset = self.above[axis], self.below[axis], self.start[axis]
        return start * below // above - offset, -(-stop * below // above) - offset

    def inside(self, box: Box) -> tuple[slice, slice, slice]:
        """The heatmap voxels whose centres lie in a working-grid box."""
        axes = zip(box.start, box.stop, self.above, self.below, self.start, strict=True)
        z, y, x = (
            slice(*(max((2 * voxel * below + above - 1) // (2 * above) - first, 0) for voxel in (a, b)))
            for a, b, above, below, first in axes
        )
        return z, y, x

    def lengths(self, axis: int, start: int, stop: int) -> NDArray[np.float64]:
        """Working-grid voxels of a non-empty interval that lie in each of the heatmap voxels ``touched`` by it."""
        first, last = self.touched(axis, start, stop)
        size, offset = self.above[axis] / self.below[axis], self.start[axis]
        lengths = np.full(last - first, size)
        lengths[0] -= start - (first + offset) * size
        lengths[-1] -= (last + offset) * size - stop
        return lengths


def downsample_max(heatmap: Heatmap, volume: Triple, voxel: Triple) -> Heatmap:
    """Bring a heatmap to another voxel size, keeping every maximum.

    Each new voxel takes the highest value of all the heatmap voxels that it overlaps, however little, so nothing
    above a threshold disappears. New voxels may be larger or smaller than the old ones.

    Args:
        heatmap: Probabilities (z, y, x).
        volume: Shape (z, y, x) of the working grid that the heatmap covers.
        voxel: New voxel size (z, y, x) in working-grid voxels.

    Returns:
        Array of shape ``ceil(volume / voxel)``. Voxel i of an axis covers ``[i * voxel, (i + 1) * voxel)``; the last
        one is cut off at the end of the volume.

    >>> downsample_max(np.float32([[[0, 5, 1, 2]]]), (1, 1, 8), (1, 1, 3)).tolist()
    [[[5.0, 5.0, 2.0]]]
    """
    return downsample_part(heatmap, volume, voxel, Place((0, 0, 0), triple(heatmap.shape)))[0]


def downsample_part(heatmap: Heatmap, volume: Triple, voxel: Triple, place: Place) -> tuple[Heatmap, Triple]:
    """The new voxels of which a part of a heatmap shows all, and the first of them."""
    result, begin = heatmap, [0, 0, 0]
    for axis, (held, old, edge, size) in enumerate(zip(heatmap.shape, place.whole, volume, voxel, strict=True)):
        starts = np.arange(0, edge, size)
        stops = np.minimum(starts + size, edge)
        first, last = starts * old // edge - place.start[axis], -(-stops * old // edge) - 1 - place.start[axis]
        shown = np.flatnonzero((first >= 0) & (last < held))
        begin[axis], first, last = int(shown[0]) if len(shown) else 0, first[shown], last[shown]
        source = result
        result = source.take(first, axis=axis)
        for offset in range(1, int((last - first).max(initial=0)) + 1):
            np.maximum(result, source.take(np.minimum(first + offset, last), axis=axis), out=result)
    return result, triple(begin)


def box_mass(heatmap: Heatmap, volume: Triple, box: Box, threshold: float = 0.0, place: Place | None = None) -> float:
    """Sum of the probabilities above the threshold inside a box, counted in voxels of the working grid.

    Exact for fractional edges: a heatmap voxel of which the box holds a part counts with that part.

    Args:
        heatmap: Probabilities (z, y, x); see the module's docstring.
        volume: Shape (z, y, x) of the working grid.
        box: Box in working-grid voxels; what lies outside of the volume counts nothing.
        threshold: Heatmap voxels at or below it count nothing.
        place: Where the heatmap lies, if it is a part of one; what it does not show counts nothing.

    >>> box_mass(np.full((1, 1, 2), 0.5, np.float32), (4, 4, 8), Box((0, 0, 0), (2, 2, 3)))
    6.0
    """
    grid = SearchGrid.of(heatmap.shape, volume, place)
    spans = [(axis, max(box.start[axis], 0), min(box.stop[axis], volume[axis])) for axis in range(3)]
    if any(start >= stop for _, start, stop in spans):
        return 0.0
    touched = [grid.touched(*span) for span in spans]
    held = [(max(a, 0), min(b, size)) for (a, b), size in zip(touched, heatmap.shape, strict=True)]
    if any(a >= b for a, b in held):
        return 0.0
    block = heatmap[tuple(slice(a, b) for a, b in held)]
    depth, rows, columns = (
        grid.lengths(*span)[a - first : b - first]
        for span, (first, _), (a, b) in zip(spans, touched, held, strict=True)
    )
    step = max(1, _CHUNK // (len(rows) * len(columns)))
    mass = 0.0
    for top in range(0, len(depth), step):
        values = block[top : top + step]
        counted = np.where(values > threshold, values, np.float32(0)) * columns
        mass += float(((counted.sum(axis=2) * rows).sum(axis=1) * depth[top : top + step]).sum())
    return mass


def mass_inside(heatmap: Heatmap, volume: Triple, boxes: Iterable[Box], threshold: float = 0.0) -> float:
    """Share of the heatmap's mass in the union of the boxes, 0 to 1; a voxel is in it if its centre is.

    Args:
        heatmap: Probabilities (z, y, x); see the module's docstring.
        volume: Shape (z, y, x) of the working grid, of which the boxes count voxels.
        boxes: May overlap and reach out of the volume.
        threshold: Heatmap voxels at or below it belong to neither sum; 0 for the whole heatmap.

    Returns:
        The share; 1 if no voxel is above the threshold, for then nothing was missed.
    """
    grid = SearchGrid.of(heatmap.shape, volume)
    inside = np.zeros(heatmap.shape, dtype=bool)
    for box in boxes:
        inside[grid.inside(box.clip(Box.whole(volume)))] = True
    above = heatmap > threshold
    total = float(heatmap.sum(where=above, dtype=np.float64))
    np.logical_and(inside, above, out=inside)
    return float(heatmap.sum(where=inside, dtype=np.float64)) / total if total > 0 else 1.0
