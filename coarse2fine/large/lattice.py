"""How a volume is divided: cells, of which blocks are made.

A *cell* is the unit of the method: regions are found, chosen and packed within one cell, and each voxel's label is
written by the cell that holds it. A *block*, a group of cells, is the unit of work: read, run, resumed and reported as
one. So results depend on the cells, which the settings fix, and not on how they are grouped, ordered or distributed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from canvas import Box, Triple, triple
from coarse2fine.errors import ConfigError

MOST_CELLS = 4_000_000
"""Each has a name in memory, and a block of them a marker on disk."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Cells and blocks of a volume.

    Attributes:
        edges: For each axis (z, y, x), where cells begin, and the volume's end.
        per_block: Cells of a block along each axis.
    """

    edges: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    per_block: Triple = (1, 1, 1)

    @property
    def shape(self) -> Triple:
        """Voxels of the volume."""
        return triple(edges[-1] for edges in self.edges)

    @property
    def size(self) -> Triple:
        """Cells along each axis."""
        return triple(len(edges) - 1 for edges in self.edges)

    def cells(self) -> list[Triple]:
        """Indices of all cells, in scan order."""
        return list(_indices(Box.whole(self.size)))

    def blocks(self) -> list[Triple]:
        """Indices of all blocks, in scan order."""
        count = (-(-size // per) for size, per in zip(self.size, self.per_block, strict=True))
        return list(_indices(Box.whole(count)))

    def cells_of(self, block: Triple) -> list[Triple]:
        """Indices of a block's cells, in scan order."""
        start = [index * per for index, per in zip(block, self.per_block, strict=True)]
        return list(_indices(Box.of(start, self.per_block).clip(Box.whole(self.size))))

    def core(self, cell: Triple) -> Box:
        """The voxels of a cell."""
        pairs = [(edges[index], edges[index + 1]) for edges, index in zip(self.edges, cell, strict=True)]
        return Box(triple(pair[0] for pair in pairs), triple(pair[1] for pair in pairs))

    def extent(self, block: Triple) -> Box:
        """The voxels of a block."""
        cells = self.cells_of(block)
        return self.core(cells[0]).hull(self.core(cells[-1]))

    def touching(self, box: Box) -> Iterator[Triple]:
        """Indices of the cells that a box has voxels in, in scan order."""
        return (cell for cell in self._around(box) if self.core(cell).intersection(box))

    def _around(self, box: Box) -> Iterator[Triple]:
        ranges = []
        for edges, low, high in zip(self.edges, box.start, box.stop, strict=True):
            hit = [index for index in range(len(edges) - 1) if edges[index] < high and edges[index + 1] > low]
            ranges.append(hit)
        return (triple(cell) for cell in itertools.product(*ranges))


def plan_lattice(shape: Triple, cell: Triple, chunk: Triple, per_block: Triple = (1, 1, 1)) -> Lattice:
    """Divide a volume evenly into cells whose edges are those of storage chunks.

    Args:
        shape: Voxels of the volume.
        cell: Largest size of a cell, up to half a chunk.
        chunk: Storage chunk of the result: two cells must never share one.
        per_block: Cells of a block along each axis.

    Raises:
        ConfigError: If there are too many cells to list.

    >>> plan_lattice((80, 100, 100), (64, 50, 60), (16, 16, 16)).edges
    ((0, 32, 80), (0, 48, 100), (0, 48, 100))
    """
    if (count := prod(-(-size // edge) for size, edge in zip(shape, cell, strict=True))) > MOST_CELLS:
        raise ConfigError(
            f"a volume of {' x '.join(map(str, shape))} voxels has {count:,} cells of {' x '.join(map(str, cell))}",
            f"Up to {MOST_CELLS:,} are supported: name a part of the volume (--region), or larger cells (blocks.cell).",
        )
    z, y, x = (_edges(*sizes) for sizes in zip(shape, cell, chunk, strict=True))
    return Lattice((z, y, x), per_block)


def cell_doubts(lattice: Lattice, cell: Triple | None, chunk: Triple) -> tuple[str, ...]:
    """A warning if cells are not of the size that was asked for, because they end where chunks of the result do.

    Args:
        lattice: From ``plan_lattice``.
        cell: What was asked for, if anything.
        chunk: As for ``plan_lattice``.

    >>> [len(cell_doubts(plan_lattice((64,) * 3, cell, (16,) * 3), cell, (16,) * 3)) for cell in ((32,) * 3, (24,) * 3)]
    [0, 1]
    """
    if cell is None:
        return ()
    found, even = (_largest(each) for each in (lattice, plan_lattice(lattice.shape, cell, (1, 1, 1))))
    if all(size in sizes for size, *sizes in zip(found, even, cell, strict=True)):
        return ()
    return (
        f"blocks.cell is {list(cell)}, but cells end where chunks of the result do, of {list(chunk)} voxels: they have "
        f"up to {list(found)}",
    )


def _largest(lattice: Lattice) -> Triple:
    """Size of the longest cell along each axis."""
    return triple(max(b - a for a, b in itertools.pairwise(edges)) for edges in lattice.edges)


def _edges(size: int, cell: int, chunk: int) -> tuple[int, ...]:
    count = -(-size // cell)  # never much larger than asked for: memory depends on it
    inner = {round(index * size / count / chunk) * chunk for index in range(1, count)}
    return (0, *sorted(edge for edge in inner if 0 < edge < size), size)


def _indices(box: Box) -> Iterator[Triple]:
    ranges = (range(a, b) for a, b in zip(box.start, box.stop, strict=True))
    return (triple(index) for index in itertools.product(*ranges))
