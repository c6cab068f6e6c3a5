"""What comes after the last canvas, rehearsed on a part of the volume, so that a deadline leaves time for it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box
from coarse2fine.io import Volume, write_labels
from coarse2fine.report import count_labels
from coarse2fine.system.timing import RunClock

PART = 8
"""One of so many parts of the volume is rehearsed with, to learn what a slice takes."""
SURE = 1.5
"""How much longer than the rehearsal says the end may take."""


def closing_seconds(
    volume: Volume[NDArray[Any]], dtype: np.typing.DTypeLike, output: Path | None, clock: RunClock
) -> float:
    """Seconds that it takes at most to count labels and to write them.

    The rehearsal has labels wherever the volume is brighter than its mean, which pack worse than any result.

    Args:
        volume: In memory.
        dtype: Of labels.
        output: The file that will be written, into whose folder the rehearsal writes a hidden one; None for none.
        clock: Tells the time.
    """
    depth = volume.grid.shape[0]
    few, many = 1, min(depth, max(2, -(-depth // PART)))
    least, most = (_rehearse(volume, slices, dtype, output, clock) for slices in (few, many))
    each = max(0.0, most - least) / max(many - few, 1)
    return SURE * (most + each * (depth - many))


def _rehearse(
    volume: Volume[NDArray[Any]], slices: int, dtype: np.typing.DTypeLike, output: Path | None, clock: RunClock
) -> float:
    """Seconds that counting and writing takes for some slices from the middle."""
    depth, height, width = volume.grid.shape
    part = Box.of(((depth - slices) // 2, 0, 0), (slices, height, width))
    voxels = np.asarray(volume.channels[0][part.slices])
    labels = (voxels > voxels.mean()).astype(dtype)
    began = clock.now()
    count_labels(np.ascontiguousarray(labels))
    if output is not None and output.parent.is_dir():  # where it is not, writing the result will say so
        with tempfile.TemporaryDirectory(prefix=".c2f-", dir=output.parent) as folder:
            write_labels(labels, volume.grid.part(part), Path(folder) / output.name)
    return clock.now() - began
