"""How NIfTI, NRRD and MetaImage files lay out their voxels, and the gzip streams that they pack them into.

SimpleITK reads them too, but some damaged headers end its process, it reads damaged voxels without complaint (safety),
and its gzip is slower than isal's (speed); see ``images.py``.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from isal import isal_zlib

from coarse2fine.errors import VolumeError

GZIP, ZLIB, PLAIN = 31, 15, 0  # zlib's names for its containers (wbits); plain voxels have none
TEXT, HEX = -1, -2  # voxels as numbers in text, or as hexadecimal digits

_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 1 << 15  # bytes per read: what a larger block unpacks to leaves the CPU's cache before it is copied
_MANY_MEMBERS, _SMALL_MEMBER = 10_000, 1000  # parts of a gzip file; more than so many have so many bytes each, or harm
_LEVEL = 1  # higher levels of isal gain nothing on label maps, and level 0 packs them ten times worse

_NIFTI_SIZE, _NIFTI_VOXELS = 348, 352  # bytes of the header; where voxels begin in the files that we write
_NIFTI_SHAPE, _NIFTI_SCALING = 40, 112  # where the header has dim, and scl_slope with scl_inter
_NIFTI_GEOMETRY = {76: "4f", 123: "b", 252: "2h", 256: "18f"}  # pixdim, xyzt_units, qform and sform codes, and the rest
_NIFTI_INTENT = 68
_VECTORS = {1004, 1005, 1006, 1007, 1008, 1009, 2003, 2004}  # intents that are not of single numbers
_LARGEST_OFFSET = 1 << 26  # of NIfTI's voxels; extensions before them are a few MB at most
_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where and how a file stores its voxels, x fastest.

    Attributes:
        file: The file of the voxels; that of the header, or another one.
        dtype: Voxel type in the file, with its byte order.
        start: Byte of the file where the voxels begin, or the stream that they are packed in.
        packing: GZIP, ZLIB, PLAIN, TEXT or HEX.
        skip: Bytes of the unpacked stream before the first voxel.
        stop: Byte of the file where the packed stream ends; None if at the end of the file.
        slope: Factor from stored to true values.
        intercept: What is added after that.
    """

    file: Path
    dtype: np.dtype[Any]
    start: int
    packing: int
    skip: int = 0
    stop: int | None = None
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def scaled(self) -> bool:
        """Whether stored and true values differ."""
        return (self.slope, self.intercept) != (1.0, 0.0)


def nifti_layout(path: Path) -> Layout:
    """Layout of a NIfTI-1 file, plain or packed.

    Raises:
        VolumeError: If the header is damaged, or states a size or spacing that is not positive.
    """
    head, packing = _nifti_header(path)
    order = _nifti_order(head)
    if packing and path.suffix != ".gz":
        raise VolumeError(f"{path} is packed, but its name does not say so", f"Rename it to {path.name}.gz.")
    if not order or head[344:348] != b"n+1\0":
        is_second = head[4:7] == b"n+2"
        raise VolumeError(
            f"{path} is {'a NIfTI-2' if is_second else 'not a NIfTI'} file",
            "Convert it to NIfTI-1, for example with nibabel: save(Nifti1Image.from_image(load(OLD)), NEW)."
            if is_second
            else "The file may be damaged or misnamed.",
        )
    axes, *shape = struct.unpack_from(f"{order}8h", head, _NIFTI_SHAPE)
    code, _bits = struct.unpack_from(f"{order}2h", head, 70)
    spacing = struct.unpack_from(f"{order}3f", head, 80)
    offset, slope, intercept = struct.unpack_from(f"{order}3f", head, 108)
    if not 1 <= axes <= 7 or min(shape[:axes]) < 1:
        raise VolumeError(
            f"{path}: the header states the size {shape[: max(axes, 3)]} (x, y, z)", "It may be damaged: copy it again."
        )
    if axes < 3 or max(shape[3:axes], default=1) > 1:
        raise VolumeError(
            f"{path} has {axes} dimensions: {' x '.join(map(str, shape[:axes]))}",
            "Stack slices into one volume; split channels or time points into one file each, NAME_0000, NAME_0001, ...",
        )
    check_spacing(path, spacing)
    if struct.unpack_from(f"{order}h", head, _NIFTI_INTENT)[0] in _VECTORS:
        raise VolumeError(
            f"{path}: the header says that voxels are vectors or colours (NIfTI intent)",
            "Write one real number per voxel, and one file per channel.",
        )
    if code not in _NIFTI_TYPES:
        raise VolumeError(
            f"{path}: voxels are not real numbers (NIfTI data type {code})",
            "Write one real number per voxel, and one file per channel.",
        )
    if not abs(offset) <= _LARGEST_OFFSET:
        raise VolumeError(
            f"{path}: the header says that voxels begin at byte {offset}", "It may be damaged: copy it again."
        )
    first = max(_NIFTI_SIZE, int(offset))
    slope, intercept = itk_scaling(slope, intercept)
    return Layout(
        path,
        np.dtype(order + _NIFTI_TYPES[code]),
        start=0 if packing else first,
        packing=packing,
        skip=first if packing else 0,
        slope=slope,
        intercept=intercept,
    )


def itk_scaling(slope: float, intercept: float) -> tuple[float, float]:
    """What ITK makes of the slope and intercept of a NIfTI header, with its tolerance: (1, 0) if nothing is scaled."""
    tolerance = sys.float_info.epsilon
    slope = slope if math.isfinite(slope) and abs(slope) > tolerance else 1.0
    intercept = intercept if math.isfinite(intercept) else 0.0
    scaled = abs(slope - 1) > tolerance or abs(intercept) > tolerance
    return (slope, intercept) if scaled else (1.0, 0.0)


def nifti_header(path: Path) -> bytes:
    """The header of a NIfTI-1 file, unpacked, in the file's byte order."""
    return _nifti_header(path)[0]


def with_nifti_geometry(file: bytes, nifti: bytes) -> bytes:
    """A NIfTI file with all that another header says of where its voxels lie: both affines, their codes, zooms, units.

    Args:
        file: In this machine's byte order.
        nifti: The other header.
    """
    order, changed = _nifti_order(nifti), bytearray(file)
    for offset, fields in _NIFTI_GEOMETRY.items():
        struct.pack_into(f"={fields}", changed, offset, *struct.unpack_from(f"{order}{fields}", nifti, offset))
    return bytes(changed)


def with_nifti_scaling(nifti: bytes, slope: float, intercept: float) -> bytes:
    """A NIfTI header with another slope and intercept."""
    changed = bytearray(nifti)
    struct.pack_into(f"{_nifti_order(nifti)}2f", changed, _NIFTI_SCALING, slope, intercept)
    return bytes(changed)


def nifti_shape(nifti: bytes) -> tuple[int, ...]:
    """Voxels (x, y, z, ...) of a NIfTI header."""
    axes, *shape = struct.unpack_from(f"{_nifti_order(nifti)}8h", nifti, _NIFTI_SHAPE)
    return tuple(shape[:axes])


def vetted_nifti(nifti: bytes) -> bytes:
    """A NIfTI header with nothing but numbers that say what voxels there are and where they lie."""
    order, vetted = _nifti_order(nifti), bytearray(_NIFTI_VOXELS)
    struct.pack_into(f"{order}i", vetted, 0, _NIFTI_SIZE)
    struct.pack_into(f"{order}8h", vetted, _NIFTI_SHAPE, 3, *nifti_shape(nifti)[:3], 1, 1, 1, 1)
    for start, stop in ((70, 108), (112, 120), (123, 124), (252, 328)):  # types and zooms, scaling, units, affines
        vetted[start:stop] = nifti[start:stop]
    struct.pack_into(f"{order}f", vetted, 108, _NIFTI_VOXELS)
    vetted[344:348] = b"n+1\0"
    return bytes(vetted)


def check_spacing(path: Path, spacing: tuple[float, ...]) -> None:
    """Raises a VolumeError unless all voxel distances are numbers other than 0; negative ones mean reversed axes."""
    if not all(math.isfinite(step) and step for step in spacing):
        raise VolumeError(
            f"{path}: the voxel spacing {', '.join(f'{step:g}' for step in spacing)} is not positive",
            "Correct the header: the models need the true voxel size.",
        )


def unpacked(stream: BinaryIO, packing: int, length: int | None = None) -> Iterator[bytes]:
    """Decompresses the rest of a stream piece by piece; a piece has at most 1032 times 32 KiB.

    Args:
        stream: Opened where the packed bytes begin.
        packing: GZIP or ZLIB.
        length: How many bytes they are; all that there are by default.

    Raises:
        EOFError: If the stream ends too early.
        isal_zlib.error: If it is damaged; the checksum is verified after the last piece.
        OSError: If it cannot be read, or consists of very many parts of next to nothing.
    """
    left = sys.maxsize if length is None else length
    data, members, produced = b"", 0, 0
    while True:  # gzip files may consist of several members
        members += 1
        if members > _MANY_MEMBERS and produced < members * _SMALL_MEMBER:
            raise OSError(f"it consists of {members} or more packed parts of next to nothing")
        inflater = isal_zlib.decompressobj(wbits=packing)
        while not inflater.eof:
            if not data:
                data = stream.read(min(_BLOCK, left))
                left -= len(data)
            if not data:
                raise EOFError
            block = inflater.decompress(data)
            produced += len(block)
            yield block
            data = b""
        data = inflater.unused_data
        if packing != GZIP:
            return
        if len(data) < len(_GZIP_MAGIC):
            data += stream.read(_BLOCK)
        if not data.startswith(_GZIP_MAGIC):
            return


def encode_nifti(
    one_voxel: bytes, shape: tuple[int, ...], voxels: memoryview, packing: int
) -> list[bytes | memoryview]:
    """A NIfTI file from that of one voxel in the same geometry.

    Args:
        one_voxel: A NIfTI file as SimpleITK writes it.
        shape: Number of voxels (x, y, z).
        voxels: The bytes of all voxels.
        packing: GZIP or PLAIN.

    Returns:
        The file's bytes, in parts.

    Raises:
        ValueError: If ``one_voxel`` is not what SimpleITK is known to write.
    """
    head = bytearray(one_voxel[:_NIFTI_VOXELS])
    if len(head) != _NIFTI_VOXELS or struct.unpack_from("=3h", head, 42) != (1, 1, 1):
        raise ValueError("unexpected NIfTI header")
    struct.pack_into("=3h", head, 42, *shape)
    return _packed([bytes(head), voxels], GZIP) if packing == GZIP else [bytes(head), voxels]


def encode_nrrd(one_voxel: bytes, shape: tuple[int, ...], voxels: memoryview) -> list[bytes | memoryview]:
    """A packed NRRD file, made as ``encode_nifti`` does."""
    head = one_voxel[: one_voxel.find(b"\n\n") + 2]
    if b"\nencoding: gzip\n" not in head:
        raise ValueError("unexpected NRRD header")
    return [_with_field(head, b"sizes: ", b"1 1 1", _numbers(shape)), *_packed([voxels], GZIP)]


def encode_meta(one_voxel: bytes, shape: tuple[int, ...], voxels: memoryview) -> list[bytes | memoryview]:
    """A packed MetaImage file, made as ``encode_nifti`` does."""
    last = b"\nElementDataFile = LOCAL\n"
    head = one_voxel[: one_voxel.find(last) + len(last)]
    parts = _packed([voxels], ZLIB)
    head = _with_field(head, b"DimSize = ", b"1 1 1", _numbers(shape))
    return [_with_field(head, b"CompressedDataSize = ", rb"\d+", _numbers([sum(map(len, parts))])), *parts]


def _nifti_order(nifti: bytes) -> str:
    """Byte order of a NIfTI header, as struct calls it; empty if it is none."""
    return next((order for order in "<>" if struct.unpack_from(f"{order}i", nifti)[0] == _NIFTI_SIZE), "")


def _nifti_header(path: Path) -> tuple[bytes, int]:
    """The first bytes of a NIfTI file, unpacked, and how the file is packed; its name does not tell for certain."""
    with path.open("rb") as stream:
        head = stream.read(_NIFTI_SIZE)
        packing = GZIP if head.startswith(_GZIP_MAGIC) else PLAIN
        if packing:
            stream.seek(0)
            head = b""
            for block in unpacked(stream, packing):
                head += block
                if len(head) >= _NIFTI_SIZE:
                    break
    if len(head) < _NIFTI_SIZE:
        raise VolumeError(f"{path} is too short for a NIfTI file", "It may be damaged: copy it again.")
    return head[:_NIFTI_SIZE], packing


def _packed(parts: list[bytes | memoryview], packing: int) -> list[bytes | memoryview]:
    deflater = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, packing)
    return [*(deflater.compress(part) for part in parts), deflater.flush()]


def _numbers(values: tuple[int, ...] | list[int]) -> bytes:
    return b" ".join(b"%d" % value for value in values)


def _with_field(head: bytes, name: bytes, old: bytes, new: bytes) -> bytes:
    """The header with another value in a field that must occur once."""
    head, count = re.subn(rb"^(%s)%s$" % (name, old), rb"\g<1>" + new, head, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"unexpected header: {count} fields {name.decode()!r}")
    return head
