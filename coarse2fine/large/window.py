"""A cell and its surroundings on the grids of both networks.

All of them count from the start of the whole volume, so that nothing depends on where a window begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from canvas import Box, Triple, triple
from coarse2fine.regions.search_grid import SearchGrid


@dataclass(frozen=True, slots=True)
class Window:
    """Where a cell with its halo lies.

    Attributes:
        working: The cell and its halo on the fine network's working grid, rounded outwards.
        core: The voxels of the grid on which regions are searched whose centres lie in the cell itself. Those of all
            cells together are the whole grid.
        reach: Voxels of that grid around ``core`` of which the heatmap is known, up to the volume's end. An object that
            is no longer than the halo is no longer than this.
        coarse: Voxels of the coarse grid that are needed for that, and for coarse labels.
        own: Those of them whose centres lie in the cell itself.
        cell: The cell, in voxels of the volume.
    """

    working: Box
    core: Box
    reach: Triple
    coarse: Box
    own: Box
    cell: Box


def window_of(
    cell: Box, halo: Triple, native: Triple, coarse: Triple, search: SearchGrid, margin: Triple = (0, 0, 0)
) -> Window:
    """Find a cell on all grids.

    Args:
        cell: In voxels of the volume.
        halo: Voxels of the volume around it.
        native: Shape of the volume.
        coarse: Shape of the coarse grid over the same region of space.
        search: The whole grid on which regions are searched; it knows the working grid.
        margin: Working-grid voxels around regions of which coarse labels are needed.
    """
    working = search.volume
    core = _centred(cell, native, search)
    # Wherever its ends lie between those of voxels, an object of the halo's length touches one more at most.
    reach = triple(-(-edge * n // length) + 1 for edge, (n, length) in zip(halo, _units(native, search), strict=True))
    known = core.grow(reach).clip(Box.whole(search.whole))
    edges = [(a * above // below, -(-b * above // below)) for a, b, above, below in _sides(known, search)]
    shown = Box(triple(a for a, _ in edges), triple(b for _, b in edges)).grow(margin).clip(Box.whole(working))
    held = outwards(shown, working, coarse).grow((1, 1, 1)).clip(Box.whole(coarse))  # 1 for linear interpolation
    around = outwards(cell.grow(halo).clip(Box.whole(native)), native, working)
    return Window(around, core, reach, held, _centred(cell, native, SearchGrid(working, working, coarse)), cell)


def _centred(cell: Box, native: Triple, search: SearchGrid) -> Box:
    """The voxels of a grid whose centres lie in a cell; the volume's end counts as that of the last voxel."""
    units = _units(native, search)
    start = [-((length - 2 * a * n) // (2 * length)) for a, (n, length) in zip(cell.start, units, strict=True)]
    stop = [
        whole if b == edge else -((length - 2 * b * n) // (2 * length))
        for b, (n, length), whole, edge in zip(cell.stop, units, search.whole, native, strict=True)
    ]
    return Box(triple(start), triple(max(pair) for pair in zip(start, stop, strict=True)))


def _units(native: Triple, search: SearchGrid) -> list[tuple[int, int]]:
    """For each axis two numbers: as many voxels of the grid as the first are as long as as many of the volume."""
    # A search voxel is above / below working-grid voxels long, and the volume's are native / working times as many.
    sizes = zip(search.below, search.volume, search.above, native, strict=True)
    return [(below * working, above * edge) for below, working, above, edge in sizes]


def outwards(box: Box, grid: Triple, other: Triple) -> Box:
    """The voxels of another grid over the same region of space that a box touches.

    Args:
        box: In voxels of a grid.
        grid: Shape of that grid.
        other: Shape of the other one.

    >>> outwards(Box((0, 1, 3), (1, 3, 7)), (9, 9, 9), (9, 3, 4))
    Box(start=(0, 0, 1), stop=(1, 1, 4))
    """
    start = [a * size // edge for a, edge, size in zip(box.start, grid, other, strict=True)]
    stop = [-(-b * size // edge) for b, edge, size in zip(box.stop, grid, other, strict=True)]
    return Box(triple(start), triple(stop))


def _sides(box: Box, search: SearchGrid) -> list[tuple[int, int, int, int]]:
    return list(zip(box.start, box.stop, search.above, search.below, strict=True))
