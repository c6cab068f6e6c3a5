"""Voxels of image files, which take no more memory than their file can hold."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import VolumeError
from coarse2fine.io.files.headers import GZIP, HEX, PLAIN, TEXT, Layout, unpacked
from coarse2fine.system.memory import total_bytes

_LARGEST = np.finfo(np.float32).max  # networks compute in single precision
_SLAB = 1 << 18  # voxels per step of a check, so that its temporaries stay in the CPU's cache

_DEFLATE = 1032  # bytes that one byte of deflate can stand for, at most
_SLACK = 1 << 12  # bytes that the last piece of a packed stream may come to, beside that
_SURPLUS = 64 << 20  # bytes that may follow the voxels
_MUCH = 512 << 20  # bytes that are only filled once it is proven that the file has them
_PLAUSIBLE = 20  # times that images shrink when they are packed; label maps shrink more
_LARGEST_SHRUNK, _SHRUNK = 4 << 30, 100  # bytes of voxels that may have shrunk more than this many times


def read_stored(layout: Layout, count: int) -> NDArray[Any]:
    """The first ``count`` voxels as they are stored, in an array of one axis.

    What the file cannot hold, or holds only by packing it more than images can be, is refused before memory is taken
    for it.

    Raises:
        VolumeError: If the header states a size that the file or this machine cannot hold.
        EOFError: If the file ends before its last voxel.
        OSError: If it cannot be read.
    """
    _check_size(layout, count * layout.dtype.itemsize)
    if layout.packing == PLAIN:
        return np.fromfile(layout.file, layout.dtype, count, offset=layout.start)
    if layout.packing in (TEXT, HEX):
        return _read_text(layout, count)
    return _read_packed(layout, count)


def _check_size(layout: Layout, size: int) -> None:
    """Refuses to read ``size`` bytes of voxels that the file or the machine cannot hold."""
    file = layout.file
    there = max(0, (layout.stop or file.stat().st_size) - layout.start)
    packed = there * _DEFLATE + _SLACK - layout.skip
    most = {PLAIN: there, HEX: there // 2, TEXT: there * layout.dtype.itemsize}.get(layout.packing, packed)
    if size > most:
        if layout.packing == PLAIN and size <= 2 * there:
            raise EOFError
        raise VolumeError(
            f"{file}: the header states {_bytes(size)} of voxels, which its {_bytes(there)} cannot hold",
            "The file is truncated or its header is damaged: copy or download it again.",
        )
    memory = total_bytes()
    if size > memory:
        raise VolumeError(
            f"{file}: its {_bytes(size)} of voxels do not fit into this machine's {_bytes(memory)} of memory",
            "Convert it to a store, such as OME-Zarr, which is read by region, or use a larger machine.",
        )
    if layout.packing in (PLAIN, TEXT, HEX) or size <= _MUCH:
        return
    if size > _LARGEST_SHRUNK and size > _SHRUNK * there:
        raise VolumeError(
            f"{file}: the header states {_bytes(size)} of voxels, more than {_SHRUNK} times the {_bytes(there)} of "
            "the file, which may be damaged or malicious",
            "If it is neither, unpack it first, for example "
            + (f"by gzip -dk {file}." if file.suffix == ".gz" else "with SimpleITK: WriteImage(ReadImage(OLD), NEW)."),
        )
    if size > _PLAUSIBLE * there or (layout.packing == GZIP and not _length_fits(layout, size)):
        for _ in _voxel_bytes(layout, size):  # two passes take longer, but less memory if the file lies
            pass


def _length_fits(layout: Layout, size: int) -> bool:
    """Whether the length at the end of a gzip file is that of header and voxels, as in most of those that are whole."""
    with layout.file.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        return int.from_bytes(stream.read(4), "little") == (layout.skip + size) % (1 << 32)


def _voxel_bytes(layout: Layout, size: int) -> Iterator[memoryview]:
    """The bytes of voxels of a packed file, ``size`` in all, piece by piece; then verifies what follows.

    Raises:
        EOFError: If there are fewer.
    """
    skip, left, surplus = layout.skip, size, 0
    length = None if layout.stop is None else layout.stop - layout.start
    with layout.file.open("rb") as stream:
        stream.seek(layout.start)
        for block in unpacked(stream, layout.packing, length):
            piece = memoryview(block)[skip:]
            skip = max(0, skip - len(block))
            yield piece[:left]
            surplus += max(0, len(piece) - left)
            left -= min(len(piece), left)
            if surplus > min(size + (1 << 20), _SURPLUS):
                raise VolumeError(
                    f"{layout.file} unpacks to far more than its header says",
                    "It is damaged or malicious: copy it again, from a source that you trust.",
                )
    if left:
        raise EOFError


def _read_packed(layout: Layout, count: int) -> NDArray[Any]:
    voxels = np.empty(count, layout.dtype)
    target, filled = voxels.view(np.uint8).data, 0
    for piece in _voxel_bytes(layout, len(target)):
        target[filled : filled + len(piece)] = piece
        filled += len(piece)
    return voxels


def _read_text(layout: Layout, count: int) -> NDArray[Any]:
    with layout.file.open("rb") as stream:
        stream.seek(layout.start)
        text = stream.read()
    if layout.packing == HEX:
        digits = re.sub(rb"\s+", b"", text)[: 2 * count * layout.dtype.itemsize]
        try:
            return np.frombuffer(bytes.fromhex(digits.decode("latin-1")), layout.dtype, count).copy()
        except ValueError as error:
            raise _no_numbers(layout, "hexadecimal digits") from error
    wide = {"i": np.int64, "u": np.uint64}.get(layout.dtype.kind, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            values = np.fromstring(text.decode("latin-1"), wide, sep=" ")[:count]
        except (DeprecationWarning, ValueError) as error:
            raise _no_numbers(layout, "numbers") from error
    if len(values) < count:
        raise EOFError
    if wide is not np.float64:
        kind = np.iinfo(layout.dtype)
        if values.min() < kind.min or values.max() > kind.max:
            raise _no_numbers(layout, f"numbers of type {layout.dtype.name}")
    return values.astype(layout.dtype.newbyteorder("="))


def _no_numbers(layout: Layout, expected: str) -> VolumeError:
    return VolumeError(f"{layout.file}: its voxels are no {expected}", "It may be damaged: copy it again.")


def _bytes(count: int) -> str:
    power = min(int(math.log(max(count, 1), 1000)), 6)
    return f"{count / 1000**power:.4g} {('bytes', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[power]}"


def check_finite(file: Path, voxels: NDArray[Any]) -> None:
    """Raises a VolumeError that counts and locates voxels that are no finite numbers."""
    if voxels.dtype.kind != "f":
        return
    count, first, flat = 0, 0, voxels.reshape(-1)
    for start in range(0, flat.size, _SLAB):
        finite = np.abs(flat[start : start + _SLAB]) <= _LARGEST  # false for NaN, too
        if not finite.all():
            first = first if count else start + int(finite.argmin())
            count += finite.size - int(np.count_nonzero(finite))
    if count:
        place = tuple(int(index) for index in np.unravel_index(first, voxels.shape))
        raise VolumeError(
            f"{file}: {count} of {flat.size} voxels are NaN or infinite, the first at {place} (z, y, x)",
            "Replace them, for example by the value of the background.",
        )
