"""Objects of the whole volume: connected voxels of one label get one number, across cells and blocks.

First the cells number their own objects, each looking one voxel into the cells that follow it. Then objects that share
such a voxel are one. Only objects at faces of cells take part in this, so that the table of them stays small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from canvas import Box, Triple, triple
from coarse2fine.io import LabelStore, atomic_write
from coarse2fine.large.execution.work import Key
from coarse2fine.large.job import Job, store_of
from coarse2fine.large.lattice import Lattice
from coarse2fine.large.segment import name_of
from coarse2fine.regions.components import label_components
from coarse2fine.system.timing import Run

Numbers = NDArray[np.uint64]

FIRST = "first.npy"
"""What ``first_numbers`` gives."""
TABLE = "objects.npy"
"""Numbers of objects that have others, and the lowest number of each one's set; shape (2, n), sorted by the first."""


@dataclass(frozen=True, slots=True)
class NumberCell:
    """Numbers the objects of a cell from 1; the same labels give the same numbers."""

    job: Job

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """Writes the numbers; those of the voxels in following cells go into a file.

        Returns:
            ``objects``: how many numbers the cell gave.
        """
        cell, lattice = triple(key), self.job.lattice
        core = lattice.core(cell)
        seen = Box(core.start, triple(min(b + 1, end) for b, end in zip(core.stop, lattice.shape, strict=True)))
        labels = store_of(self.job.labels).read(seen)
        found = label_components(labels) if labels.any() else np.zeros(seen.shape, np.uint32)
        numbers = found[tuple(slice(edge) for edge in seen.shape)]
        if self.job.ids is None:
            raise ValueError("this job numbers no objects")
        inner = core.relative_to(seen).slices
        store_of(self.job.ids).write(core, numbers[inner].astype(np.uint32, copy=False))
        places, outer = _beyond(numbers, core.shape)
        path = self.job.work.path(f"faces/{name_of(cell)}.npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temp, temp.open("wb") as stream:
            np.savez_compressed(stream, places=places + core.start, numbers=outer)
        count = int(numbers.max(initial=0))
        return {"objects": count}


@dataclass(frozen=True, slots=True)
class PairCell:
    """Which objects of a cell go on in the cells that follow it."""

    job: Job

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """Returns ``pairs`` of numbers, unique in the volume, that are one object."""
        cell, lattice = triple(key), self.job.lattice
        with np.load(self.job.work.path(f"faces/{name_of(cell)}.npz"), allow_pickle=False) as faces:
            places, numbers = faces["places"], faces["numbers"].astype(np.int64)
        if not len(places) or self.job.ids is None:
            return {"pairs": []}
        store = store_of(self.job.ids)
        others = lattice.touching(Box(triple(places.min(0)), triple(places.max(0) + 1)))
        pairs = [self._pairs_with(other, cell, places, numbers, store) for other in others if other != cell]
        return {"pairs": np.unique(np.concatenate(pairs), axis=0).tolist() if pairs else []}

    def _pairs_with(
        self, other: Triple, cell: Triple, places: NDArray[np.int64], numbers: NDArray[np.int64], store: LabelStore
    ) -> NDArray[np.int64]:
        core = self.job.lattice.core(other)
        here = ((places >= core.start) & (places < core.stop)).all(axis=1)
        if not here.any():
            return np.zeros((0, 2), np.int64)
        inside = places[here]
        box = Box(triple(inside.min(0)), triple(inside.max(0) + 1))
        theirs = store.read(box)[tuple((inside - box.start).T)].astype(np.int64)
        first = _first_numbers(self.job)
        return np.stack([numbers[here] + first[cell], theirs + first[other]], axis=1)


@dataclass(frozen=True, slots=True)
class RenumberCell:
    """Gives the objects of a cell their final numbers."""

    job: Job

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """Writes the cell's part of the result."""
        cell = triple(key)
        core = self.job.lattice.core(cell)
        if self.job.ids is None:
            raise ValueError("this job numbers no objects")
        numbers = store_of(self.job.ids).read(core)
        first = int(_first_numbers(self.job)[cell])
        final = np.arange(first, first + int(numbers.max()) + 1, dtype=np.uint64)
        final[0] = 0
        table = np.load(self.job.work.path(TABLE), mmap_mode="r")
        low, high = np.searchsorted(table[0], np.array([first + 1, first + len(final)], np.uint64))
        final[table[0][low:high].astype(np.int64) - first] = table[1][low:high]
        store_of(self.job.written).write(core, final[numbers])
        return {}


def _beyond(numbers: NDArray[np.unsignedinteger[Any]], core: Triple) -> tuple[NDArray[np.int64], Numbers]:
    """Objects in the layer behind a cell's upper faces: places (n, 3) in ``numbers``, and the numbers there."""
    places = []
    for axis in range(3):  # edges belong to the first axis, so that no voxel comes twice
        layer = [slice(None) if other > axis else slice(core[other]) for other in range(3)]
        layer[axis] = slice(core[axis], None)
        found = np.argwhere(numbers[tuple(layer)])
        found[:, axis] += core[axis]
        places.append(found)
    every = np.concatenate(places)
    return every, numbers[tuple(every.T)].astype(np.uint64)


def first_numbers(lattice: Lattice, counts: Mapping[Key, int]) -> NDArray[np.int64]:
    """For each cell what its own numbers are added to, so that they become unique in the volume.

    Args:
        lattice: Its order of cells is that of the numbers.
        counts: Numbers that each cell gave; cells that nobody looked at gave none.

    Returns:
        One entry for each cell, of the lattice's size.
    """
    given = np.array([counts.get(cell, 0) for cell in lattice.cells()], np.int64)
    return (np.cumsum(given) - given).reshape(lattice.size)


def _first_numbers(job: Job) -> NDArray[np.int64]:
    return np.load(job.work.path(FIRST), mmap_mode="r")


def join_objects(pairs: Sequence[Sequence[int]]) -> Numbers:
    """The table of objects that are parts of larger ones.

    Args:
        pairs: Two numbers that are one object, each.

    Returns:
        See ``TABLE``.
    """
    if not len(pairs):
        return np.zeros((2, 0), np.uint64)
    edges = np.asarray(pairs, np.int64)
    names, where = np.unique(edges, return_inverse=True)
    ends = where.reshape(edges.shape)
    graph = coo_array((np.ones(len(edges), np.bool_), (ends[:, 0], ends[:, 1])), shape=(len(names), len(names)))
    _, group = connected_components(graph, directed=False)
    lowest = np.full(group.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(lowest, group, names)
    return np.stack([names, lowest[group]]).astype(np.uint64)
