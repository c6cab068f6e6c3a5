"""Outlines of labels as SVG paths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours


def outline(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> str:
    """The border of a mask as data of an SVG path.

    Args:
        mask: (rows, columns).
        spacing: Of rows and columns; the path has their unit, counted from the corner of the first pixel.

    >>> outline(np.array([[False, False], [False, True]]), (1.0, 2.0))
    'M3 2L2 1.5L3 1L4 1.5Z'
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return ""
    top, left = int(rows[0]), int(columns[0])
    part = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1).astype(np.float32)
    # Pixel 0 of the padded part is pixel -1 of the part, and a pixel's centre lies half a pixel from its corner.
    corner = np.array([top, left]) - 0.5
    return "".join(_path((points + corner) * spacing) for points in find_contours(part, 0.5))


def _path(points: NDArray[np.float64]) -> str:
    """A closed line; its last point is its first."""
    return "M" + "L".join(f"{_short(x)} {_short(y)}" for y, x in points[:-1]) + "Z"


def _short(value: Any) -> str:
    """With as many digits as a screen can show."""
    return f"{value:.5g}"
