"""Objects of a volume that is numbered cell by cell, against SciPy's components of the whole volume."""

from __future__ import annotations

import random
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import label as label_with_scipy

from canvas import Box, Triple
from coarse2fine.config.reader import load_config
from coarse2fine.io import Grid, LabelSpec, create_labels
from coarse2fine.large import objects
from coarse2fine.large.execution.work import WorkFolder
from coarse2fine.large.job import Job
from coarse2fine.large.lattice import Lattice
from coarse2fine.large.objects import NumberCell, PairCell, RenumberCell, first_numbers, join_objects
from coarse2fine.large.source import Source
from coarse2fine.system.timing import Run


class InMemory:
    """In place of a store, whose chunks of single voxels would be thousands of files."""

    def __init__(self, spec: LabelSpec) -> None:
        self.voxels = np.zeros(spec.grid.shape, spec.dtype)

    def read(self, box: Box) -> np.ndarray:
        return self.voxels[box.slices].copy()

    def write(self, box: Box, data: np.ndarray) -> None:
        assert data.dtype == self.voxels.dtype
        self.voxels[box.slices] = data


def number(labels: np.ndarray, lattice: Lattice, *, chunk: Triple | None = None, seed: int = 0) -> np.ndarray:
    """The three phases, in any order of cells; over stores on the disk if there is a chunk."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if chunk is None:
            patch.setattr(objects, "store_of", lru_cache(InMemory))
        return _number(Path(folder), labels, lattice, chunk, random.Random(seed))


def _number(
    folder: Path, labels: np.ndarray, lattice: Lattice, chunk: Triple | None, order: random.Random
) -> np.ndarray:
    grid = Grid(labels.shape, (1.0, 1.0, 1.0))

    def spec(name: str, dtype: str) -> LabelSpec:
        return LabelSpec(str(folder / name), "zarr", grid, dtype, chunk or (1, 1, 1), ((1, 1, 1),), name)

    specs = spec("labels", "uint8"), spec("ids", "uint32"), spec("result", "uint64")
    for one in specs if chunk else ():
        create_labels(one)
    work = WorkFolder(folder / "work", "run")
    work.path(objects.FIRST).parent.mkdir(parents=True)
    job = Job(load_config(None), False, Source(""), lattice, (), 0, *specs, work)
    whole, cells = Box.whole(labels.shape), lattice.cells()
    objects.store_of(job.labels).write(whole, labels)
    done = {cell: NumberCell(job)(cell, Run()) for cell in order.sample(cells, len(cells))}
    np.save(work.path(objects.FIRST), first_numbers(lattice, {cell: done[cell]["objects"] for cell in cells}))
    paired = [PairCell(job)(cell, Run()) for cell in order.sample(cells, len(cells))]
    np.save(work.path(objects.TABLE), join_objects([pair for payload in paired for pair in payload["pairs"]]))
    for cell in order.sample(cells, len(cells)):
        RenumberCell(job)(cell, Run())
    return objects.store_of(job.result).read(whole)


def objects_of(labels: np.ndarray) -> np.ndarray:
    """Connected voxels of one label, edges and corners included."""
    numbers = np.zeros(labels.shape, np.uint64)
    for label in np.unique(labels[labels != 0]):
        found, _ = label_with_scipy(labels == label, np.ones((3, 3, 3)))
        numbers[found != 0] = found[found != 0] + numbers.max(initial=0)
    return numbers


def assert_same_objects(numbers: np.ndarray, labels: np.ndarray) -> None:
    """Two numberings of the same objects: numbers of one go with numbers of the other, one to one."""
    expected = objects_of(labels)
    pairs = np.unique(np.stack([numbers.ravel(), expected.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    assert ((numbers == 0) == (labels == 0)).all()


@st.composite
def divided(draw: st.DrawFn) -> tuple[np.ndarray, Lattice]:
    """Labels, sparse or dense, and cells of any size down to one voxel."""
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    chances = draw(st.sampled_from([[0.9, 0.1], [0.75, 0.25], [0.4, 0.6], [0.7, 0.1, 0.1, 0.1]]))
    labels = rng.choice(len(chances), shape, p=chances).astype(np.uint8)
    edges = [(0, *sorted(draw(st.sets(st.integers(1, max(1, size - 1)), max_size=2)) - {size}), size) for size in shape]
    return labels, Lattice((edges[0], edges[1], edges[2]))


def contact(*places: Triple) -> tuple[np.ndarray, Lattice]:
    """Single voxels around the middle of a volume of eight cells."""
    labels = np.zeros((4, 4, 4), np.uint8)
    for place in places:
        labels[place] = 1
    return labels, Lattice(((0, 2, 4),) * 3)


@pytest.mark.long
@settings(deadline=None, max_examples=50)
@example(contact((1, 1, 1), (2, 2, 2)))
@example(contact((1, 2, 1), (2, 1, 1)))
@example(contact((1, 2, 2), (2, 1, 1)))
@example(contact((2, 1, 2), (1, 2, 1)))
@example(contact((2, 2, 1), (1, 1, 2)))
@given(divided())
def test_objects__any_division__are_those_of_the_whole_volume(case: tuple[np.ndarray, Lattice]) -> None:
    """Contacts over faces, edges and corners of cells join; different labels never do."""
    assert_same_objects(number(*case), case[0])


@pytest.fixture(scope="module")
def snake() -> tuple[np.ndarray, Lattice]:
    """One object that winds through all cells, and others of another label along its side."""
    labels = np.zeros((4, 16, 17), np.uint8)
    for turn, row in enumerate(range(0, 16, 4)):
        labels[1, row], labels[1, row + 1] = 1, 2
        labels[1, row : row + 5, -1 if turn % 2 == 0 else 0] = 1
    labels[3, 5:9, 5] = 1
    return labels, Lattice(((0, 2, 4), (0, 4, 8, 12, 16), (0, 6, 12, 17)))


def test_objects__snake_through_many_cells__has_one_number_whatever_their_order(
    snake: tuple[np.ndarray, Lattice],
) -> None:
    """Chains of many pairs end in one number; it is the same in each run, so that one can be resumed."""
    results = [number(*snake, chunk=(2, 4, 6), seed=seed) for seed in (1, 2)]
    np.testing.assert_array_equal(*results)
    assert_same_objects(results[0], snake[0])
    assert len(np.unique(results[0][1, ::4])) == 1


def test_join_objects__chains__end_in_the_lowest_number() -> None:
    """Sets are found through any number of steps; what has no partner is not listed."""
    table = join_objects([(9, 4), (4, 7), (20, 12), (7, 30)])
    assert dict(table.T.tolist()) == {4: 4, 7: 4, 9: 4, 30: 4, 12: 12, 20: 12}
    assert (np.diff(table[0].astype(int)) > 0).all()
    assert join_objects([]).shape == (2, 0)
