"""3D TIFF files as nnU-Net's Tiff3DIO has them: voxels alone, with the spacing in a JSON file beside them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from coarse2fine.errors import C2FError, OutputError, VolumeError, reason_of
from coarse2fine.io.atomic import atomic_write
from coarse2fine.io.volume import Grid, Spacing

_MOST_PACKED = 1032  # bytes that one byte of a zlib stream may unpack to
_PLAIN = 1 << 20  # bytes that any file may unpack to
_LONGEST_JSON = 1 << 16


def read_tiff(file: Path) -> NDArray[Any]:
    """The voxels of a file, shape (z, y, x): its first series of pages, as ``tifffile.imread`` gives it.

    Raises:
        VolumeError: If it is damaged, packed in a way that needs another package, or not a 3D volume of real numbers.
    """
    try:
        with tifffile.TiffFile(file) as content:
            series = content.series[0]
            shape, dtype = tuple(series.shape), series.dtype
            if len(shape) != 3 or dtype is None or dtype.kind not in "iuf" or not math.prod(shape):
                raise VolumeError(
                    f"{file} holds {' x '.join(map(str, shape))} voxels of type {dtype}, not a volume of real numbers",
                    "Save it as one stack of grey values, with one file per channel: NAME_0000.tif, NAME_0001.tif, ...",
                )
            if math.prod(shape) * dtype.itemsize > _PLAIN + _MOST_PACKED * file.stat().st_size:
                raise VolumeError(
                    f"{file} states {' x '.join(map(str, shape))} voxels, more than it can hold",
                    "It may be damaged: copy it again.",
                )
            return np.asarray(series.asarray())
    except (C2FError, MemoryError):
        raise
    except Exception as error:  # damaged bytes make its parser raise anything
        reason = reason_of(error)
        remedy = "It may be damaged or misnamed: copy it again."
        if "imagecodecs" in reason:  # without which tifffile unpacks few kinds
            remedy = "Save it uncompressed, for example with tifffile: imwrite(NEW, voxels)."
        raise VolumeError(f"{file} cannot be read: {reason}", remedy) from error


def read_spacing(file: Path) -> tuple[Spacing, tuple[str, ...]]:
    """The spacing (z, y, x) of a volume of which this is the first channel, and what is doubtful about it.

    Raises:
        VolumeError: If the file beside it does not hold a spacing.
    """
    beside = file.with_name(re.sub(r"_\d{4}$", "", file.stem) + ".json")
    if not beside.is_file():
        return (1.0, 1.0, 1.0), (f"there is no {beside.name} that says the spacing: it is taken for 1 x 1 x 1",)
    try:
        with beside.open("rb") as stream:
            values = json.loads(stream.read(_LONGEST_JSON))["spacing"]
        z, y, x = (float(value) for value in values)
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise _no_spacing(beside) from error
    if not all(math.isfinite(step) and step > 0 for step in (z, y, x)):
        raise _no_spacing(beside)
    return (z, y, x), ()


def write_tiff(voxels: NDArray[Any], grid: Grid, path: Path) -> None:
    """Writes a label map or other voxels, and their spacing beside them.

    Args:
        voxels: Shape (z, y, x).
        grid: Its spacing is written.
        path: Ends in .tif or .tiff.

    Raises:
        OutputError: If it cannot be written, or the grid has a direction, which the format cannot hold.
    """
    if grid.direction is not None:
        raise OutputError(f"cannot write {path}: TIFF cannot hold a volume's direction", "Use .nii.gz.")
    with atomic_write(path) as temporary:
        tifffile.imwrite(temporary, voxels, photometric="minisblack", compression="zlib")
    with atomic_write(spacing_beside(path)) as temporary:
        temporary.write_text(json.dumps({"spacing": list(grid.spacing)}) + "\n", encoding="utf-8")


def spacing_beside(path: Path) -> Path:
    """Where the spacing of a label map goes."""
    return path.with_suffix(".json")


def _no_spacing(path: Path) -> VolumeError:
    return VolumeError(
        f"{path} does not say the spacing of the volume beside it", 'Write three numbers: {"spacing": [Z, Y, X]}.'
    )
