"""What cells hand to their neighbours, and what these make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from canvas import Box, Triple
from coarse2fine.config.reader import load_config
from coarse2fine.counts import Tally
from coarse2fine.io import Grid, LabelSpec, create_labels
from coarse2fine.large import segment as segment_module
from coarse2fine.large.cells import CellResult
from coarse2fine.large.execution.work import WorkFolder
from coarse2fine.large.job import Job, store_of
from coarse2fine.large.lattice import Lattice
from coarse2fine.large.segment import MergeCell, SegmentBlock, handed_to, name_of
from coarse2fine.large.source import Source
from coarse2fine.system.timing import Run

LATTICE = Lattice(((0, 4), (0, 4, 8), (0, 4, 8, 12)), (1, 2, 1))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Six cells, and an empty store of their labels."""
    spec = LabelSpec(str(tmp_path / "s"), "zarr", Grid((4, 8, 12), (1.0,) * 3), "uint8", (4, 4, 4), ((1, 1, 1),), "s")
    create_labels(spec)
    return Job(load_config(None), False, Source(""), LATTICE, (), 0, spec, None, spec, WorkFolder(tmp_path / "w", "r"))


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[Triple, tuple[Box, int]]:
    """What each cell finds, in place of networks: a label in a box that may reach into its neighbours."""
    cells: dict[Triple, tuple[Box, int]] = {}

    def segment_cells(volume: None, cores: list[Box], run: object, norm: None) -> list[CellResult]:
        results = []
        for core in cores:
            box, label = cells.get(next(LATTICE.touching(core)), (core, 0))
            hull = core.hull(box)
            labels = np.zeros(hull.shape, np.uint8)
            labels[box.relative_to(hull).slices] = label
            results.append(CellResult(labels, hull, Tally(canvases=int(label != 0))))
        return results

    monkeypatch.setattr(segment_module, "segment_cells", segment_cells)
    for name in ("volume_of", "norm_of"):
        monkeypatch.setattr(segment_module, name, lambda job: None)
    return cells


def everything(job: Job) -> np.ndarray:
    return store_of(job.labels).read(Box.whole(LATTICE.shape))


def test_segment_block__labels_beyond_its_cells__are_handed_to_those_cells(
    job: Job, found: dict[Triple, tuple[Box, int]]
) -> None:
    """A cell's own labels are written, the rest goes to all cells that it lies in, also of the same block."""
    found[0, 0, 1] = Box((1, 2, 3), (3, 6, 6)), 5
    payload = SegmentBlock(job)((0, 0, 1), Run())
    assert payload["to"] == [(0, 0, 0), (0, 1, 0), (0, 1, 1)]
    assert payload["counts"] == Tally(canvases=1).to_dict()
    assert payload["labels"] == {"0_0_1": {"5": 8}, "0_1_1": {}}
    assert payload["seconds"]["total"] >= 0
    expected = np.zeros((4, 8, 12), np.uint8)
    expected[1:3, 2:4, 4:6] = 5
    np.testing.assert_array_equal(everything(job), expected)
    for cell in payload["to"]:
        assert MergeCell(job)(cell, Run())["filled"] > 0
    expected[1:3, 2:6, 3:6] = 5
    np.testing.assert_array_equal(everything(job), expected)


def test_merge_cell__cell_that_has_labels__keeps_them(job: Job, found: dict[Triple, tuple[Box, int]]) -> None:
    """What a neighbour found fills background only; where several did, the first of them in scan order has its way."""
    found[0, 0, 0] = Box((0, 0, 2), (4, 2, 8)), 1
    found[0, 0, 1] = Box((0, 1, 4), (4, 3, 6)), 2
    found[0, 1, 1] = Box((0, 0, 5), (4, 6, 7)), 3
    for block in reversed(LATTICE.blocks()):
        SegmentBlock(job)(block, Run())
    assert MergeCell(job)((0, 0, 1), Run())["filled"] == 4 * (4 + 2 + 1 + 2)
    rows = [[1, 1, 1, 1], [2, 2, 1, 1], [2, 2, 3, 0], [0, 3, 3, 0]]
    np.testing.assert_array_equal(everything(job)[0, :4, 4:8], rows)


def test_merge_cell__again__changes_nothing(job: Job, found: dict[Triple, tuple[Box, int]]) -> None:
    """A merge that was cut short, or whose neighbours were done twice, is simply done again."""
    found[0, 0, 0] = Box((0, 0, 2), (4, 4, 7)), 1
    found[0, 1, 1] = Box((0, 2, 4), (4, 6, 6)), 2
    for block in LATTICE.blocks():
        SegmentBlock(job)(block, Run())
    MergeCell(job)((0, 0, 1), Run())
    once = everything(job)
    SegmentBlock(job)((0, 0, 0), Run())
    assert MergeCell(job)((0, 0, 1), Run())["filled"] == 0
    np.testing.assert_array_equal(everything(job), once)


def test_merge_cell__file_of_a_killed_process__is_no_piece(job: Job, found: dict[Triple, tuple[Box, int]]) -> None:
    """Half-written files have names of their own and stay behind."""
    found[0, 0, 0] = Box((0, 0, 2), (4, 2, 6)), 1
    SegmentBlock(job)((0, 0, 0), Run())
    folder = handed_to(job, (0, 0, 1))
    assert [path.name for path in folder.iterdir()] == [f"{name_of((0, 0, 0))}.npz"]
    (folder / ".c2f-0123456789abcdef.npz").write_bytes(b"PK\3\4")
    assert MergeCell(job)((0, 0, 1), Run())["filled"] == 4 * 2 * 2


def test_merge_cell__coarse_labels_outside__give_way_to_what_any_fine_network_decided(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a neighbour's halo only that counts; foreground of the cell itself comes first, coarse labels last."""
    job = replace(job, config=load_config(None, ["fine.outside=coarse"]))
    # One row per cell: its labels in the cell (1 is coarse), what it decided, and the same for the neighbour's halo.
    own, own_decided = [1, 1, 1, 1], [0, 0, 0, 0]
    own[1], own_decided[1] = 2, 1
    own[2], own_decided[2] = 0, 1
    found, decided = [1, 0, 3, 0], [0, 1, 1, 1]

    def segment_cells(volume: None, cores: list[Box], run: object, norm: None) -> list[CellResult]:
        results = []
        for core in cores:
            hull = core.hull(Box((0, 0, 4), (4, 4, 8))) if core.start == (0, 0, 0) else core
            labels, known = np.ones(hull.shape, np.uint8), np.zeros(hull.shape, bool)
            if core.start in ((0, 0, 0), (0, 0, 4)):
                far = slice(4, 8) if core.start == (0, 0, 0) else slice(0, 4)
                labels[0, 0, far], known[0, 0, far] = (found, decided) if far.start else (own, own_decided)
            results.append(CellResult(labels, hull, Tally(), known))
        return results

    monkeypatch.setattr(segment_module, "segment_cells", segment_cells)
    for name in ("volume_of", "norm_of"):
        monkeypatch.setattr(segment_module, name, lambda job: None)
    assert [SegmentBlock(job)(block, Run())["to"] for block in LATTICE.blocks()] == [[(0, 0, 1)], [], []]
    assert MergeCell(job)((0, 0, 1), Run()) == {"filled": 1, "cleared": 1, "labels": {"1": 61, "2": 1, "3": 1}}
    expected = np.ones((4, 8, 12), np.uint8)
    expected[0, 0, 4:8] = [1, 2, 3, 0]
    np.testing.assert_array_equal(everything(job), expected)
    assert MergeCell(job)((0, 0, 1), Run())["filled"] == 0
    np.testing.assert_array_equal(everything(job), expected)
