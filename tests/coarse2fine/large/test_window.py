"""Cells on the networks' grids, and the tiles around them, against counting every voxel and tile."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product

from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

from canvas import Box, Triple, triple
from coarse2fine.large.window import window_of
from coarse2fine.sliding import tiles_touching

Edges = tuple[int, int]
sizes = st.tuples(*[st.integers(1, 40)] * 3)


def overlapping(grid: int, other: int, edges: Edges) -> Edges:
    """First, and one after the last, of the voxels of a grid that share space with some voxels of another grid."""
    step = Fraction(other, grid)
    hit = [index for index in range(grid) if index * step < edges[1] and (index + 1) * step > edges[0]]
    return hit[0], hit[-1] + 1


def centred(grid: int, native: int, edges: Edges) -> list[int]:
    """Voxels of a grid whose centres lie in some native voxels."""
    return [index for index in range(grid) if edges[0] <= Fraction(2 * index + 1, 2 * grid) * native < edges[1]]


@settings(deadline=None, max_examples=200)
@given(sizes, sizes, sizes, st.tuples(*[st.integers(0, 9)] * 3), st.data())
def test_window_of__any_grids__equals_counting_voxels(
    native: Triple, working: Triple, coarse: Triple, halo: Triple, data: st.DataObject
) -> None:
    """The window holds whole coarse voxels, rounded outwards; the core holds those whose centres lie in the cell."""
    start = triple(data.draw(st.integers(0, size - 1)) for size in native)
    stop = triple(data.draw(st.integers(a + 1, size)) for a, size in zip(start, native, strict=True))
    window = window_of(Box(start, stop), halo, native, working, coarse)
    for axis in range(3):
        around = max(start[axis] - halo[axis], 0), min(stop[axis] + halo[axis], native[axis])
        held = overlapping(coarse[axis], native[axis], around)
        assert (window.coarse.start[axis], window.coarse.stop[axis]) == held
        assert (window.working.start[axis], window.working.stop[axis]) == overlapping(working[axis], coarse[axis], held)
        inner = centred(coarse[axis], native[axis], (start[axis], stop[axis]))
        assert list(range(window.core.start[axis] + held[0], window.core.stop[axis] + held[0])) == inner


@settings(deadline=None)
@given(sizes, sizes, st.data())
def test_window_of__cells_side_by_side__share_out_all_coarse_voxels(
    native: Triple, coarse: Triple, data: st.DataObject
) -> None:
    """Each coarse voxel belongs to one cell, so that nothing is found twice or not at all."""
    cuts = data.draw(st.lists(st.integers(1, max(1, native[2] - 1)), max_size=5))
    edges = sorted({0, *cuts, native[2]})
    owned: list[int] = []
    for low, high in pairwise(edges):
        core = Box((0, 0, low), (native[0], native[1], high))
        window = window_of(core, (1, 1, 1), native, native, coarse)
        owned += range(window.coarse.start[2] + window.core.start[2], window.coarse.start[2] + window.core.stop[2])
    assert owned == list(range(coarse[2]))


@settings(deadline=None)
@given(sizes, st.tuples(*[st.integers(6, 50)] * 3), st.sampled_from([0.3, 0.5, 1.0]), st.data())
def test_tiles_touching__any_window__are_those_of_nnunets_list(
    size: Triple, tile: Triple, step: float, data: st.DataObject
) -> None:
    """Same tiles, same order; a volume smaller than a tile lies in its middle."""
    start = triple(data.draw(st.integers(0, edge - 1)) for edge in size)
    stop = triple(data.draw(st.integers(a + 1, edge)) for a, edge in zip(start, size, strict=True))
    padded = tuple(max(pair) for pair in zip(size, tile, strict=True))
    before = [(long - short) // 2 for long, short in zip(padded, size, strict=True)]
    steps = compute_steps_for_sliding_window(padded, tile, step)
    corners = ([first - gap for first in row] for row, gap in zip(steps, before, strict=True))
    every, window = [Box.of(corner, tile) for corner in product(*corners)], Box(start, stop)
    assert tiles_touching(window, size, tile, step) == [box for box in every if box.intersection(window)]
