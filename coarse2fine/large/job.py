"""What a run is, in a form that any process can work on: small, and opened once per process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from canvas import Box
from coarse2fine.config.schema import Config
from coarse2fine.io import LabelSpec, LabelStore, atomic_write, open_labels
from coarse2fine.large.cells import OpenVolume, open_volume
from coarse2fine.large.execution.work import WorkFolder
from coarse2fine.large.lattice import Lattice
from coarse2fine.large.source import Source
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.mask import Mask
from coarse2fine.preprocessing.statistics import Scan

SCAN = "scan.json"


@dataclass(frozen=True, slots=True)
class Job:
    """A run over one volume.

    Attributes:
        config: All settings.
        trust: Whether checkpoints may run code while they are loaded.
        source: The input.
        lattice: How it is divided.
        axes: Axes along which the scan keeps the extremes of each slice.
        coarse_level: Scale level that the coarse network reads.
        labels: Where labels are written, cell by cell; the result itself unless objects are wanted.
        ids: Where objects are numbered within their cells; None if objects are not wanted.
        result: What becomes the output.
        work: Everything else that processes tell each other.
        gathered: Where cells write what a sharded result is made of; None if they write the result itself.
    """

    config: Config
    trust: bool
    source: Source
    lattice: Lattice
    axes: tuple[int, ...]
    coarse_level: int
    labels: LabelSpec
    ids: LabelSpec | None
    result: LabelSpec
    work: WorkFolder
    gathered: LabelSpec | None = None

    @property
    def written(self) -> LabelSpec:
        """Where cells write labels or objects as the result has them."""
        return self.gathered or self.result

    def where(self, box: Box) -> str:
        """Where voxels of the region lie, for people: in voxels of the input."""
        start = (0, 0, 0) if self.source.region is None else self.source.region.start
        moved = box.shift(start)
        ends = (f"{a}:{b}" for a, b in zip(moved.start, moved.stop, strict=True))
        return f"voxels {','.join(ends)} (z, y, x)"


# Each process works on one job, block after block: models are loaded and stores opened for the first.
@lru_cache(maxsize=1)
def volume_of(job: Job) -> OpenVolume:
    """The volume as both networks see it."""
    pipeline = Pipeline.from_config(job.config, trust_checkpoint=job.trust)
    levels = job.source.open()[1]
    return open_volume(pipeline, levels, scan_of(job), job.coarse_level, mask_of(job.source))


@lru_cache(maxsize=1)
def mask_of(source: Source) -> Mask | None:
    """Where something is looked at; None for everywhere."""
    return source.open_mask()


def scan_of(job: Job) -> Scan:
    """Statistics of the volume, once it has been scanned."""
    return Scan.from_dict(json.loads(job.work.path(SCAN).read_text()))


@lru_cache(maxsize=4)
def store_of(spec: LabelSpec) -> LabelStore:
    """An open label volume."""
    return open_labels(spec)


def write_json(path: Path, value: Any) -> None:
    """Write a small file atomically."""
    with atomic_write(path) as temp:
        temp.write_text(json.dumps(value))
