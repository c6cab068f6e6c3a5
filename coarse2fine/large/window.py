"""A cell and its surroundings on the grids of both networks."""

from __future__ import annotations

from dataclasses import dataclass

from canvas import Box, Triple, triple


@dataclass(frozen=True, slots=True)
class Window:
    """Where a cell with its halo lies.

    Attributes:
        working: On the fine network's working grid.
        coarse: The same region of space on the coarse grid, both with the fine model's axes.
        core: The voxels of the coarse grid whose centres lie in the cell itself, counted from the start of ``coarse``.
    """

    working: Box
    coarse: Box
    core: Box


def window_of(core: Box, halo: Triple, native: Triple, working: Triple, coarse: Triple) -> Window:
    """Find a cell on both grids.

    The window begins and ends where voxels of the coarse grid do, rounded outwards, so that a part of the heatmap is
    the heatmap of a part of the working grid; where grids do not divide evenly, to within a voxel.

    Args:
        core: The cell, in voxels of the volume.
        halo: Voxels of the volume around it.
        native: Shape of the volume.
        working: Shape of the working grid over the same region of space.
        coarse: Shape of the coarse grid, likewise.
    """
    around = core.grow(halo).clip(Box.whole(native))
    first = [a * grid // size for a, grid, size in zip(around.start, coarse, native, strict=True)]
    last = [-(-b * grid // size) for b, grid, size in zip(around.stop, coarse, native, strict=True)]
    start = [a * grid // size for a, grid, size in zip(first, working, coarse, strict=True)]
    stop = [-(-b * grid // size) for b, grid, size in zip(last, working, coarse, strict=True)]
    # A voxel's centre is at (index + 1/2) * native / coarse.
    inner = [
        [-((size - 2 * edge * grid) // (2 * size)) for edge, grid, size in zip(edges, coarse, native, strict=True)]
        for edges in (core.start, core.stop)
    ]
    held = Box(triple(first), triple(last))
    return Window(
        Box(triple(start), triple(stop)), held, Box(triple(inner[0]), triple(inner[1])).clip(held).relative_to(held)
    )
