"""``failed.json``: which blocks could not be done, and where they lie, for people and programs that look at them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from canvas import Box
from coarse2fine.io import atomic_write
from coarse2fine.large.execution.tasks import Failure
from coarse2fine.large.job import Job

SUFFIX = ".failed.json"
"""Added to the name of the output."""


def located(job: Job, failure: Failure, box: Box) -> Failure:
    """A failure with its place.

    Args:
        job: The run.
        failure: Of a block.
        box: The block's, in voxels of what is segmented.
    """
    start = (0, 0, 0) if job.source.region is None else job.source.region.start
    moved, grid = box.shift(start), job.result.grid
    ends = zip(grid.origin, grid.spacing, box.start, box.stop, strict=True)
    return replace(
        failure,
        where=job.where(box),
        voxels=tuple(zip(moved.start, moved.stop, strict=True)),
        world=tuple((first + (a - 0.5) * step, first + (b - 0.5) * step) for first, step, a, b in ends),
        unit=grid.unit,
    )


def list_failed(path: Path | None, failures: Sequence[Failure]) -> None:
    """Write the list of blocks, or remove that of an earlier run where none failed.

    Args:
        path: The file; None for no list.
        failures: The blocks.

    Raises:
        OutputError: If it cannot be written.
    """
    if path is None:
        return
    if not failures:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps([asdict(failure) for failure in failures], indent=1) + "\n", encoding="utf-8")
