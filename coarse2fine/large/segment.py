"""Phases that make labels: the scan for statistics, the segmentation, and what cells hand to their neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from canvas import Box, Triple, triple
from coarse2fine.counts import Tally
from coarse2fine.io import atomic_write
from coarse2fine.large.cells import CellResult, segment_cells
from coarse2fine.large.execution.work import Key
from coarse2fine.large.job import Job, store_of, volume_of
from coarse2fine.large.masked import cells_to_do
from coarse2fine.large.norm import norm_of
from coarse2fine.preprocessing.statistics import scan_part
from coarse2fine.report import count_labels
from coarse2fine.system.timing import Aside, Run, Stage


@dataclass(frozen=True, slots=True)
class ScanBlock:
    """Statistics of a block."""

    job: Job

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """The block's share of the scan: ``parts``, one for each of its cells, which are read one after the other."""
        channels, parts = self.job.source.open()[1][0].channels, []
        for cell in cells_to_do(self.job, triple(key)):
            box = self.job.lattice.core(cell)
            raw = [channel[box.slices] for channel in channels]
            parts.append(scan_part(raw, box.start, self.job.axes).to_dict())
        return {"parts": parts}


@dataclass(frozen=True, slots=True)
class SegmentBlock:
    """Labels of a block's cells."""

    job: Job

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """Writes the cells' labels, and what they found around themselves into files for the neighbours.

        Returns:
            ``counts`` summed over cells, ``seconds`` by stage, ``labels`` of each cell (voxels by label), ``notes`` for
            the report, and ``to``: the cells that something was found for.
        """
        lattice = self.job.lattice
        cells = cells_to_do(self.job, triple(key))
        store, counts, labels, receivers = store_of(self.job.labels), Tally(), {}, set()
        with run.clock.time(Aside.TOTAL):
            results = segment_cells(volume_of(self.job), [lattice.core(cell) for cell in cells], run, norm_of(self.job))
            for cell, result in zip(cells, results, strict=True):
                core = lattice.core(cell)
                with run.clock.time(Stage.WRITE):
                    own = result.part(core)
                    store.write(core, own)
                    labels[name_of(cell)] = count_labels(own)
                    receivers.update(self._hand_over(cell, result))
                counts += result.counts
        return {
            "counts": counts.to_dict(),
            "labels": labels,
            "seconds": run.clock.rounded(),
            "notes": list(run.notes),
            "to": sorted(receivers),
        }

    def _hand_over(self, cell: Triple, result: CellResult) -> list[Triple]:
        """Write what the fine network decided in other cells, and which ones these are.

        Where what it does not look at has coarse labels, every cell also needs to know what it decided itself.
        """
        receivers = []
        for other in self.job.lattice.touching(result.box):
            if other == cell and result.decided is None:
                continue
            box = self.job.lattice.core(other).clip(result.box)
            decided = result.decided_in(box)
            if not decided.any():
                continue
            rows = [np.flatnonzero(decided.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
            tight = Box(triple(row[0] for row in rows), triple(row[-1] + 1 for row in rows))
            path = handed_to(self.job, other) / f"{name_of(cell)}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temp, temp.open("wb") as stream:
                np.savez_compressed(
                    stream,
                    start=np.array(tight.shift(box.start).start),
                    labels=result.part(box)[tight.slices],
                    decided=decided[tight.slices],
                    source=np.array(cell),
                )
            if other != cell:
                receivers.append(other)
        return receivers


@dataclass(frozen=True, slots=True)
class MergeCell:
    """What neighbours' fine networks decided in a cell counts where the cell's own one found nothing.

    Foreground that the cell found itself stays, so that neither order nor repetition matters; then comes foreground of
    the first neighbour that found any, then background that somebody decided, and what nobody looked at stays as it is.
    """

    job: Job

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """Rewrites the cell's labels; returns voxels ``filled`` with foreground, ``cleared``, and by ``labels``."""
        cell = triple(key)
        core, store = self.job.lattice.core(cell), store_of(self.job.labels)
        before, pieces = store.read(core), []
        # Names begin with a number; what a killed process has left half-written begins with a dot.
        for path in handed_to(self.job, cell).glob("[0-9]*.npz"):
            with np.load(path, allow_pickle=False) as piece:
                box = Box.of(piece["start"].tolist(), piece["labels"].shape).relative_to(core)
                pieces.append((tuple(piece["source"].tolist()), box, piece["labels"], piece["decided"]))
        labels = before.copy()
        pieces.sort(key=lambda piece: piece[0])
        own, others = ([piece for piece in pieces if (piece[0] == cell) is mine] for mine in (True, False))
        if self.job.config.fine.outside == "coarse":
            for _, box, _, decided in pieces:
                labels[box.slices][decided] = 0
            for _, box, found, decided in own:
                np.copyto(labels[box.slices], found, where=decided)
        for _, box, found, decided in others:
            target = labels[box.slices]
            np.copyto(target, found, where=decided & (target == 0))
        store.write(core, labels)
        filled, cleared = (labels != 0) & (before == 0), (labels == 0) & (before != 0)
        return {"filled": int(filled.sum()), "cleared": int(cleared.sum()), "labels": count_labels(labels)}


def handed_to(job: Job, cell: Triple) -> Any:
    """Folder of what neighbours found in a cell."""
    return job.work.path(f"handed/{name_of(cell)}")


def name_of(cell: Triple) -> str:
    """A cell's name in file names."""
    return "_".join(map(str, cell))
