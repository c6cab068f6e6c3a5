"""Runs that look only where a mask is set: which cells these are. In others nothing is read, nor segmented."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.large.execution.work import Key
from coarse2fine.large.job import Job, mask_of
from coarse2fine.system.timing import Run

PHASE = "mask"

Phase = Callable[[str, Any, Sequence[Any], Callable[[Triple], Box]], Mapping[Key, Mapping[str, Any]]]
"""Runs a phase: its name, task, keys, and where one is; returns the payloads."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What of a volume is looked at.

    Attributes:
        cells: Cells, in scan order.
        blocks: Blocks that have some of them, in scan order.
        voxels: Voxels that are set; None without a mask.
    """

    cells: tuple[Triple, ...]
    blocks: tuple[Triple, ...]
    voxels: int | None = None


@dataclass(frozen=True, slots=True)
class MaskBlock:
    """Where the mask is set in a block."""

    job: Job

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """The ``cells`` that have set voxels, and how many ``voxels`` these are."""
        mask, lattice = mask_of(self.job.source), self.job.lattice
        if mask is None:
            raise ValueError("this job has no mask")
        counts = {cell: int(mask.part(lattice.core(cell)).sum()) for cell in lattice.cells_of(triple(key))}
        return {"cells": [list(cell) for cell, count in counts.items() if count], "voxels": sum(counts.values())}


def find_looked(job: Job, phase: Phase) -> Looked:
    """Which cells are looked at.

    Raises:
        VolumeError: If the mask is set nowhere.
    """
    lattice = job.lattice
    if job.source.mask is None:
        return Looked(tuple(lattice.cells()), tuple(lattice.blocks()))
    found = phase(PHASE, MaskBlock(job), lattice.blocks(), lattice.extent)
    cells = sorted(triple(cell) for payload in found.values() for cell in payload["cells"])
    if not cells:
        raise VolumeError(
            f"the mask {job.source.mask} is set nowhere in {job.where(Box.whole(lattice.shape))} of {job.source.where}",
            "Name another mask, or another part of the volume (--region), with --restart.",
        )
    blocks = sorted(triple(key) for key, payload in found.items() if payload["cells"])
    return Looked(tuple(cells), tuple(blocks), sum(payload["voxels"] for payload in found.values()))


def cells_to_do(job: Job, block: Triple) -> list[Triple]:
    """The cells of a block that are looked at, in scan order."""
    cells, mask = job.lattice.cells_of(block), mask_of(job.source)
    return cells if mask is None else [cell for cell in cells if mask.part(job.lattice.core(cell)).any()]
