"""Results in the layout that the CREMI challenge takes submissions in (https://cremi.org, file format 0.2).

Labels are 64-bit datasets below ``volumes/labels``; in ``clefts`` all ones mean background. ``resolution`` and
``offset`` are (z, y, x) in nm; the offset says where in the raw volume the labels begin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from canvas import Triple
from coarse2fine.errors import OutputError
from coarse2fine.io.atomic import atomic_write
from coarse2fine.io.stores.units import NM_PER
from coarse2fine.io.volume import Grid

CLEFTS = "volumes/labels/clefts"
CLEFT_BACKGROUND = 0xFFFF_FFFF_FFFF_FFFF

_FILE_FORMAT = "0.2"
_CHUNK = 512  # voxels in y and x; one in z, so that slabs of any height fill whole chunks


def write_cremi(
    path: Path,
    slabs: Iterable[NDArray[Any]],
    grid: Grid,
    dataset: str = CLEFTS,
    background: int = CLEFT_BACKGROUND,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Writes labels as a new CREMI file, which replaces ``path`` in one step.

    Memory holds one slab and one section of 64-bit labels.

    Args:
        path: The file; its folder exists.
        slabs: The labels, unsigned integers, as slabs of shape (any, y, x) that follow one another in z.
        grid: Grid of the whole volume.
        dataset: Name of the dataset, such as ``volumes/labels/neuron_ids``.
        background: What voxels of label 0 become: all ones in clefts, 0 in neuron ids.
        attributes: Further attributes of the dataset, such as a comment or those of the raw volume
            (``read_attributes``); resolution and offset are the grid's.

    Raises:
        ValueError: If the slabs are not the grid's volume, or are no unsigned integers.
        OutputError: If the file cannot be written, or a label equals ``background``.
    """
    _, height, width = grid.shape
    nm = NM_PER[grid.unit]
    with atomic_write(path) as temp, _Disk(temp, "w+b") as disk:
        with h5py.File(disk, "w") as file:
            file.attrs["file_format"] = _FILE_FORMAT
            target = file.create_dataset(
                dataset,
                grid.shape,
                np.uint64,
                chunks=(1, min(_CHUNK, height), min(_CHUNK, width)),
                compression="gzip",
                shuffle=True,
            )
            for name, value in (attributes or {}).items():
                target.attrs[name] = value
            target.attrs["resolution"] = np.array(grid.spacing) * nm
            target.attrs["offset"] = np.array(grid.origin) * nm
            for z, labels in _sections(path, slabs, grid.shape, background):
                target[z] = labels
                disk.check()
        disk.check()


class _Disk(FileIO):
    """A file that keeps the error of a write that fails, and takes everything after it.

    HDF5 (1.14) crashes the process when it cannot write what it still holds at the end of a file.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Writes all bytes, or keeps the error."""
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += super().write(view[done:])
            except OSError as error:
                self.error = error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Sets the length of the file, or keeps the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raises what has been kept."""
        if self.error is not None:
            raise self.error


def _sections(
    path: Path, slabs: Iterable[NDArray[Any]], shape: Triple, background: int
) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Place in z and labels to write of each section."""
    done = 0
    for slab in slabs:
        if slab.shape[1:] != shape[1:] or done + len(slab) > shape[0] or slab.dtype.kind != "u":
            raise ValueError(f"slab of shape {slab.shape}, type {slab.dtype} at {done} is not one of {shape}")
        for section in slab:
            labels = section.astype(np.uint64)
            if background:
                if (labels == background).any():
                    raise OutputError(
                        f"cannot write {path}: label {background} is the background", "Number the labels anew."
                    )
                labels[labels == 0] = background
            yield done, labels
            done += 1
    if done != shape[0]:
        raise ValueError(f"{done} sections were given for a volume of {shape}")
