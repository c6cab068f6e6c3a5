"""Cells on the networks' grids, and the tiles around them, against counting every voxel and tile."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from random_boxes import boxes_in

from canvas import Box, Triple
from coarse2fine.large.window import window_of
from coarse2fine.nnunet.sliding_window import tiles_touching
from coarse2fine.regions.detect import search_grid

Edges = tuple[int, int]
sizes = st.tuples(*[st.integers(1, 40)] * 3)


def overlapping(grid: int, other: int, edges: Edges) -> Edges:
    """First, and one after the last, of the voxels of a grid that share space with some voxels of another grid."""
    step = Fraction(other, grid)
    hit = [index for index in range(grid) if index * step < edges[1] and (index + 1) * step > edges[0]]
    return hit[0], hit[-1] + 1


@settings(deadline=None, max_examples=100)
@given(
    sizes, sizes, sizes, st.tuples(*[st.integers(0, 9)] * 3), st.none() | st.tuples(*[st.integers(1, 9)] * 3), st.data()
)
def test_window_of__any_grids__equals_counting_voxels(
    native: Triple, working: Triple, coarse: Triple, halo: Triple, voxel: Triple | None, data: st.DataObject
) -> None:
    """Halo and heatmap are rounded outwards; the core holds those voxels whose centres lie in the cell."""
    cell = data.draw(boxes_in(native))
    start, stop = cell.start, cell.stop
    grid = search_grid(coarse, working, voxel)
    window = window_of(cell, halo, native, coarse, grid)
    for axis in range(3):
        around = max(start[axis] - halo[axis], 0), min(stop[axis] + halo[axis], native[axis])
        assert (window.working.start[axis], window.working.stop[axis]) == overlapping(
            working[axis], native[axis], around
        )
        # The last voxel of a coarser search grid may reach over the volume's end, which its centre then counts as.
        size = Fraction(grid.above[axis], grid.below[axis]) * Fraction(native[axis], working[axis])
        centres = [
            min((index + Fraction(1, 2)) * size, native[axis] - Fraction(1, 9999)) for index in range(grid.whole[axis])
        ]
        inner = [index for index, centre in enumerate(centres) if start[axis] <= centre < stop[axis]]
        assert list(range(window.core.start[axis], window.core.stop[axis])) == inner
        # All that voxels of the search grid within reach of the core touch, and one more for interpolation.
        known = [
            max(window.core.start[axis] - window.reach[axis], 0) * size,
            min((window.core.stop[axis] + window.reach[axis]) * size, native[axis]),
        ]
        unit = Fraction(native[axis], coarse[axis])
        low, high = window.coarse.start[axis], window.coarse.stop[axis]
        assert low == 0 or low + 1 <= known[0] / unit
        assert high == coarse[axis] or high - 1 >= known[1] / unit
        assert (window.reach[axis] - 1) * size >= halo[axis]


@settings(deadline=None)
@given(sizes, st.tuples(*[st.integers(6, 50)] * 3), st.sampled_from([0.3, 0.5, 1.0]), st.data())
def test_tiles_touching__any_window__are_those_of_nnunets_list(
    size: Triple, tile: Triple, step: float, data: st.DataObject
) -> None:
    """Same tiles, same order; a volume smaller than a tile lies in its middle."""
    window = data.draw(boxes_in(size))
    padded = tuple(max(pair) for pair in zip(size, tile, strict=True))
    before = [(long - short) // 2 for long, short in zip(padded, size, strict=True)]
    steps = compute_steps_for_sliding_window(padded, tile, step)
    corners = ([first - gap for first in row] for row, gap in zip(steps, before, strict=True))
    every = [Box.of(corner, tile) for corner in product(*corners)]
    assert tiles_touching(window, size, tile, step) == [box for box in every if box.intersection(window)]
