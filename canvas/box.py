"""Axis-aligned boxes of voxels and their algebra."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Triple = tuple[int, int, int]


def triple(values: Iterable[int]) -> Triple:
    """Three integers as a tuple (z, y, x).

    >>> triple([1, 2, 3])
    (1, 2, 3)
    """
    z, y, x = (int(value) for value in values)
    return z, y, x


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """Half-open box of voxels, ``start <= voxel < stop``, axes (z, y, x).

    A box may reach outside of the volume (negative start); ``clip`` cuts it.

    Raises:
        ValueError: If ``stop`` lies before ``start`` on an axis.

    >>> Box((0, 0, 0), (2, 3, 4)).volume
    24
    """

    start: Triple
    stop: Triple

    def __post_init__(self) -> None:
        if any(stop < start for start, stop in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"box stops before it starts: {self.start} to {self.stop}")

    @classmethod
    def of(cls, start: Iterable[int], shape: Iterable[int]) -> Self:
        """The box that begins at ``start`` and has the given shape."""
        corner = triple(start)
        return cls(corner, triple(a + b for a, b in zip(corner, shape, strict=True)))

    @classmethod
    def whole(cls, shape: Iterable[int]) -> Self:
        """The box of a whole array of the given shape."""
        return cls((0, 0, 0), triple(shape))

    @property
    def shape(self) -> Triple:
        """Edge lengths in voxels."""
        return triple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def volume(self) -> int:
        """Number of voxels."""
        z, y, x = self.shape
        return z * y * x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index into an array that contains the box; only for boxes with non-negative start."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def shift(self, offset: Iterable[int]) -> Self:
        """The box moved by ``offset`` voxels."""
        return type(self).of((a + o for a, o in zip(self.start, offset, strict=True)), self.shape)

    def turned(self, axes: Iterable[int]) -> Self:
        """The box with other axis order: axis i of the result is ``axes[i]`` of this one.

        >>> Box((0, 1, 2), (4, 5, 6)).turned((2, 0, 1))
        Box(start=(2, 0, 1), stop=(6, 4, 5))
        """
        order = triple(axes)
        return type(self)(triple(self.start[axis] for axis in order), triple(self.stop[axis] for axis in order))

    def relative_to(self, origin: Box) -> Self:
        """The same voxels, counted from the start of ``origin``."""
        return self.shift(-a for a in origin.start)

    def grow(self, margin: Iterable[int]) -> Self:
        """The box with ``margin`` voxels more on both sides of each axis."""
        margins = triple(margin)
        start = triple(a - m for a, m in zip(self.start, margins, strict=True))
        return type(self)(start, triple(b + m for b, m in zip(self.stop, margins, strict=True)))

    def clip(self, bounds: Box) -> Self:
        """The part inside ``bounds``; an empty box at the nearest place if there is none."""
        start = triple(min(max(a, lo), hi) for a, lo, hi in zip(self.start, bounds.start, bounds.stop, strict=True))
        stop = triple(min(max(b, a), hi) for a, b, hi in zip(start, self.stop, bounds.stop, strict=True))
        return type(self)(start, stop)

    def intersection(self, other: Box) -> int:
        """Number of voxels that both boxes hold."""
        edges = (
            max(0, min(b, d) - max(a, c))
            for a, b, c, d in zip(self.start, self.stop, other.start, other.stop, strict=True)
        )
        z, y, x = edges
        return z * y * x

    def hull(self, other: Box) -> Self:
        """The smallest box that holds both."""
        start = triple(min(a, c) for a, c in zip(self.start, other.start, strict=True))
        return type(self)(start, triple(max(b, d) for b, d in zip(self.stop, other.stop, strict=True)))

    def contains(self, other: Box) -> bool:
        """Whether every voxel of ``other`` is a voxel of this box."""
        return all(a <= c for a, c in zip(self.start, other.start, strict=True)) and all(
            d <= b for b, d in zip(self.stop, other.stop, strict=True)
        )

    def fits(self, shape: Iterable[int]) -> bool:
        """Whether no edge is longer than the given shape's."""
        return all(edge <= limit for edge, limit in zip(self.shape, shape, strict=True))

    def iou(self, other: Box) -> float:
        """Intersection over union; 0 for two empty boxes."""
        common = self.intersection(other)
        union = self.volume + other.volume - common
        return common / union if union else 0.0

    def ios(self, other: Box) -> float:
        """Intersection over the smaller of the two; 0 if one is empty."""
        smaller = min(self.volume, other.volume)
        return self.intersection(other) / smaller if smaller else 0.0

    def centred(self, shape: Iterable[int], bounds: Box) -> Self:
        """A box of the given shape around this box's centre, moved inside ``bounds`` where it fits.

        On an axis where ``shape`` is longer than ``bounds`` the result covers the bounds and sticks out evenly.

        >>> Box((0, 4, 4), (2, 6, 6)).centred((4, 4, 4), Box.whole((8, 8, 8)))
        Box(start=(0, 3, 3), stop=(4, 7, 7))
        """
        start = []
        for a, b, edge, low, high in zip(self.start, self.stop, shape, bounds.start, bounds.stop, strict=True):
            if edge > high - low:
                start.append(low - (edge - (high - low)) // 2)
            else:
                start.append(min(max((a + b - edge) // 2, low), high - edge))
        return type(self).of(start, shape)


def to_array(boxes: Iterable[Box]) -> NDArray[np.int64]:
    """Boxes as an array of shape (n, 6): z0, y0, x0, z1, y1, x1."""
    rows = [box.start + box.stop for box in boxes]
    return np.array(rows, dtype=np.int64).reshape(-1, 6)
