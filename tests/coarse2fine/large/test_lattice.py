"""How volumes are divided into cells and blocks, against a map of the volume that names each voxel's cell."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from canvas import Box, Triple, triple
from coarse2fine.errors import ConfigError
from coarse2fine.large.lattice import Lattice, cell_doubts, plan_lattice


@st.composite
def lattices(draw: st.DrawFn) -> tuple[Lattice, Triple, Triple]:
    """A lattice with the cell and the chunk that were asked for."""
    shape, cell, chunk = (draw(st.tuples(*[st.integers(1, high)] * 3)) for high in (24, 16, 6))
    per_block = draw(st.tuples(*[st.integers(1, 3)] * 3))
    return plan_lattice(shape, cell, chunk, per_block), cell, chunk


def map_of(lattice: Lattice) -> np.ndarray:
    """Each voxel's cell, as its place in the list of cells; fails where cells overlap or leave gaps."""
    names = np.full(lattice.shape, -1)
    for number, cell in enumerate(lattice.cells()):
        part = names[lattice.core(cell).slices]
        assert part.size
        assert (part == -1).all()
        part[:] = number
    assert (names >= 0).all()
    return names


@settings(deadline=None)
@given(lattices())
def test_plan_lattice__any_sizes__cells_of_at_most_that_size_begin_at_chunks(
    plan: tuple[Lattice, Triple, Triple],
) -> None:
    """Cells share out the volume, but no chunk; edges are those of an even division, to within half a chunk."""
    lattice, cell, chunk = plan
    map_of(lattice)
    for edges, wanted, step in zip(lattice.edges, cell, chunk, strict=True):
        assert all(edge % step == 0 for edge in edges[:-1])
        assert all(b - a <= wanted + step for a, b in itertools.pairwise(edges))
        count = math.ceil(edges[-1] / wanted)
        even = [index * edges[-1] / count for index in range(count + 1)]
        assert all(min(abs(edge - place) for place in even) <= step / 2 for edge in edges)
        # As many cells as asked for, unless chunks are too coarse for that.
        assert len(edges) - 1 == count or edges[-1] / count < 2 * step


@settings(deadline=None)
@given(lattices())
def test_blocks__any_grouping__hold_each_cell_once(plan: tuple[Lattice, Triple, Triple]) -> None:
    """Blocks share out the cells, each a box of at most so many, whose voxels are its extent."""
    lattice = plan[0]
    assume(len(lattice.cells()) <= 200)  # each block is looked for among all voxels
    names = map_of(lattice)
    seen = [cell for block in lattice.blocks() for cell in lattice.cells_of(block)]
    assert sorted(seen) == lattice.cells()
    for block in lattice.blocks():
        cells = lattice.cells_of(block)
        assert all(len({cell[axis] for cell in cells}) <= lattice.per_block[axis] for axis in range(3))
        numbers = [lattice.cells().index(cell) for cell in cells]
        where = np.argwhere(np.isin(names, numbers))
        assert lattice.extent(block) == Box(triple(where.min(0)), triple(where.max(0) + 1))
        assert lattice.extent(block).volume == len(where)


def test_plan_lattice__absurd_volume__is_refused_before_anything_is_listed() -> None:
    """A header may declare any size; with larger cells, as the message says, the volume is planned."""
    shape, chunk = triple((2**18, 2**18, 2**18)), triple((64, 128, 128))
    with pytest.raises(ConfigError, match="68,719,476,736 cells of 64 x 64 x 64") as error:
        plan_lattice(shape, triple((64, 64, 64)), chunk)
    assert "blocks.cell" in error.value.remedy
    assert plan_lattice(shape, triple((2048, 2048, 2048)), chunk).size == (128, 128, 128)


@settings(deadline=None)
@given(lattices())
def test_cell_doubts__any_sizes__told_where_chunks_make_cells_larger_than_asked(
    plan: tuple[Lattice, Triple, Triple],
) -> None:
    """With the sizes that there are; not a word about cells that only share out the volume evenly."""
    lattice, cell, chunk = plan
    found = [max(b - a for a, b in itertools.pairwise(edges)) for edges in lattice.edges]
    told = cell_doubts(lattice, cell, chunk)
    if any(size > wanted for size, wanted in zip(found, cell, strict=True)):
        assert told
    assert not told or f"up to {found}" in told[0]
    even = plan_lattice(lattice.shape, cell, (1, 1, 1))
    assert cell_doubts(even, cell, (1, 1, 1)) == cell_doubts(lattice, None, chunk) == ()


@settings(deadline=None)
@given(lattices(), st.data())
def test_touching__any_box__equals_looking_up_its_voxels(
    plan: tuple[Lattice, Triple, Triple], data: st.DataObject
) -> None:
    """The cells in which a box has voxels, in scan order; a box may reach out of the volume or be empty."""
    lattice, names = plan[0], map_of(plan[0])
    start = triple(data.draw(st.integers(-3, edge)) for edge in lattice.shape)
    box = Box.of(start, data.draw(st.tuples(*[st.integers(0, 12)] * 3)))
    inside = names[box.clip(Box.whole(lattice.shape)).slices]
    assert list(lattice.touching(box)) == [lattice.cells()[number] for number in np.unique(inside)]
