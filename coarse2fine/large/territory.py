"""Which of the regions around a cell are its own.

Every region belongs to exactly one cell as a whole: the one that holds the middle of its bounding box. All cells that
see a region see it whole, and so agree, if it is no longer than their common reach. A longer one may show each cell
another part of it; then each cell takes what lies in itself.

Whether a region is too small is judged by all of it, before it is given to anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple
from coarse2fine.regions.components import label_components
from coarse2fine.regions.detect import Components, RoiSettings, component_bounds, is_large

Names = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Territory:
    """Regions around a cell, as names of components.

    Attributes:
        own: Those that the cell segments.
        others: Those that other cells are known to segment.
    """

    own: Names
    others: Names


Holds = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
"""Whether the cell holds components, given their first voxels and the ones after the last (n, 3)."""


def divide(found: Components, core: Box, reach: Triple, settings: RoiSettings, holds: Holds | None = None) -> Territory:
    """Tell a cell's own regions from those of others, and from what is too small for anybody.

    Args:
        found: What is seen in the cell and around it.
        core: The cell, in voxels of the whole grid on which components were searched.
        reach: How many of these voxels around it are seen, up to the volume's end.
        settings: Say what is too small.
        holds: Which components the cell holds; None for those of which it holds the middle.
    """
    grid, shape = found.grid, found.labels.shape
    _, starts, stops, counts = component_bounds(found.labels)
    inner = core.relative_to(Box.of(grid.start, shape))
    cut = ((starts == 0) & (np.array(grid.start) > 0)) | ((stops == shape) & (np.add(grid.start, shape) < grid.whole))
    truncated = cut.any(axis=1)
    long = ((stops - starts) > np.array(reach)).any(axis=1)
    large = is_large(grid, starts, stops, counts, settings)
    mine = holds(starts, stops) if holds else _central(inner, starts, stops)
    # Of a region that is cut off here, enough may lie elsewhere. The part in the cell itself makes it a long one.
    shared = long & (large | truncated)
    own = _named(found.labels, large & ~long & mine, shared, inner, inside=True)
    others = _named(found.labels, large & ~long & ~mine, shared & large, inner, inside=False)
    return Territory(own, others)


def _central(inner: Box, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the middles of components lie in a box."""
    middle = (starts + stops) // 2
    found: NDArray[np.bool_] = np.all((middle >= np.array(inner.start)) & (middle < np.array(inner.stop)), axis=1)
    return found


def _named(labels: Names, whole: NDArray[np.bool_], shared: NDArray[np.bool_], inner: Box, *, inside: bool) -> Names:
    """Components of which all is wanted, and of shared ones the part inside of the cell, or outside; named anew."""
    wanted = np.concatenate([[False], whole])[labels]
    part = np.concatenate([[False], shared])[labels]
    place = np.zeros(labels.shape, bool)
    place[inner.slices] = True
    return label_components(wanted | (part & (place if inside else ~place)))
