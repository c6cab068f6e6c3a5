"""MetaImage files: .mha, and .mhd with its voxels in a file of their own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from coarse2fine.errors import VolumeError
from coarse2fine.io.files.fields import (
    Header,
    axis_count,
    beside,
    damaged,
    integers,
    joined,
    odd,
    read_text,
    reals,
    shape_of,
)
from coarse2fine.io.files.headers import PLAIN, TEXT, ZLIB, Layout, check_spacing

# Other programs' fields may have brackets: ITK hands on a NIfTI header as dim[0], pixdim[1] and so on.
_LINE = re.compile(r"([A-Za-z][\w.\[\]-]{0,199})[ \t]*[=:][ \t]*(.*?)\s*", re.ASCII)
_LAST = rb"^ElementDataFile[ \t]*[=:].*(\n|\Z)"
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # of four bytes in this format, whatever the machine
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_SAME = {  # other names of fields
    "Position": "Offset",
    "Origin": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
_PER_AXIS = ("DimSize", "ElementSpacing", "ElementSize", "Offset", "TransformMatrix", "CenterOfRotation", "SequenceID")


def metaimage_header(path: Path) -> Header:
    """What a MetaImage file says of its voxels.

    Raises:
        VolumeError: If the header is damaged, or asks for what a volume cannot be.
    """
    lines, end = read_text(path, _LAST)
    fields = _fields(path, lines)
    axes = axis_count(path, "NDims", fields.get("NDims", ""))
    _check_unused(path, fields, axes)
    sizes = integers(path, "DimSize", fields.get("DimSize", ""), axes)
    shape = shape_of(path, sizes)
    kind = fields.get("ElementType", "")
    if kind not in _TYPES:
        raise odd(path, "ElementType", kind, "a type of single real numbers, such as MET_SHORT,")
    if integers(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"), 1) != (1,):
        raise VolumeError(
            f"{path}: voxels are vectors (ElementNumberOfChannels = {fields['ElementNumberOfChannels']})",
            "Convert colours to grey values, and write channels into one file each, NAME_0000, NAME_0001, ...",
        )
    order = ">" if _truth(path, fields, "BinaryDataByteOrderMSB", "False") else "<"
    dtype = np.dtype(order + _TYPES[kind])
    return Header(shape, _layout(path, fields, dtype, shape, end), _vetted(path, fields, axes, sizes))


def _fields(path: Path, lines: list[str]) -> dict[str, str]:
    """The fields by their usual names."""
    fields: dict[str, str] = {}
    for line in filter(None, lines):
        match = _LINE.fullmatch(line)
        if match is None or not line.replace("\t", " ").isprintable():
            raise damaged(path, f"its header has the line {line[:60]!r}")
        name = _SAME.get(match[1], match[1])
        if name in fields:
            raise damaged(path, f"its header gives {name} more than once")
        if name in _PER_AXIS and "NDims" not in fields:
            raise damaged(path, f"its header gives {name} before NDims")
        fields[name] = match[2]
    if fields.get("ObjectType", "Image") != "Image":
        raise odd(path, "ObjectType", fields["ObjectType"], "Image")
    if not fields.get("ElementDataFile"):
        raise damaged(path, "its header does not say where the voxels are (ElementDataFile)")
    return fields


def _check_unused(path: Path, fields: dict[str, str], axes: int) -> None:
    """Refuses odd values of fields that do not matter here, but whose size the format fixes."""
    for name, count in (
        ("CenterOfRotation", axes),
        ("Color", 4),
        ("SequenceID", axes),
        ("ElementMin", 1),
        ("ElementMax", 1),
        ("ElementToIntensityFunctionSlope", 1),
        ("ElementToIntensityFunctionOffset", 1),
    ):
        if name in fields:
            reals(path, name, fields[name], count)
    orientation = fields.get("AnatomicalOrientation", "RAI")
    if not 1 <= len(orientation) <= 16:
        raise odd(path, "AnatomicalOrientation", orientation, "a letter for each axis, such as RAI,")
    for name in ("ID", "ParentID", "CompressionLevel", "CompressedDataSize", "ElementNBits"):
        if name in fields:
            integers(path, name, fields[name], 1)


def _truth(path: Path, fields: dict[str, str], name: str, default: str) -> bool:
    text = fields.get(name, default)
    if text.lower() not in _TRUTH:
        raise odd(path, name, text, "True or False")
    return _TRUTH[text.lower()]


def _layout(path: Path, fields: dict[str, str], dtype: np.dtype, shape: tuple[int, ...], end: int) -> Layout:
    """Where the voxels are, in this file or beside it."""
    name = fields["ElementDataFile"]
    local = name in ("LOCAL", "Local", "local")
    if name.split()[0] == "LIST" or "%" in name:
        raise VolumeError(
            f"{path}: its voxels are in many files (ElementDataFile = {name[:60]})",
            "Write them into one file, for example with SimpleITK: WriteImage(ReadImage(OLD), NEW).",
        )
    file, start = (path, end) if local else (beside(path, name), 0)
    size, gap = file.stat().st_size, integers(path, "HeaderSize", fields.get("HeaderSize", "0"), 1)[0]
    packed, binary = _truth(path, fields, "CompressedData", "False"), _truth(path, fields, "BinaryData", "True")
    if not binary:
        if packed or gap:
            raise odd(path, "BinaryData", "False", "True")
        _check_last_number(file)
        return Layout(file, dtype, start, TEXT)
    if gap < -1 or (gap and (packed or (local and gap > 0))):
        raise odd(path, "HeaderSize", str(gap), "0")
    if gap == -1:
        start = max(start, size - int(np.prod(shape, dtype=object)) * dtype.itemsize)
    elif gap:
        start = gap
    stop = None
    if packed and "CompressedDataSize" in fields:
        stop = start + integers(path, "CompressedDataSize", fields["CompressedDataSize"], 1)[0]
        if not start < stop <= size:
            raise EOFError
    elif packed and local:
        raise VolumeError(
            f"{path}: the header does not say how many bytes the packed voxels take",
            f"If the file is whole, add the line 'CompressedDataSize = {size - start}' before ElementDataFile.",
        )
    return Layout(file, dtype, start, ZLIB if packed else PLAIN, stop=stop)


def _check_last_number(file: Path) -> None:
    """Refuses text whose last number may have been cut short."""
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        if not stream.read(1).isspace():
            raise EOFError


def _vetted(path: Path, fields: dict[str, str], axes: int, sizes: tuple[int, ...]) -> bytes:
    """A header of what was checked, in which the volume has a single byte per voxel."""
    lines = {"ObjectType": "Image", "NDims": str(axes), "BinaryData": "True", "BinaryDataByteOrderMSB": "False"}
    for name, count in (
        ("TransformMatrix", axes**2),
        ("Offset", axes),
        ("ElementSize", axes),
        ("ElementSpacing", axes),
    ):
        if name in fields:
            values = reals(path, name, fields[name], count)
            lines[name] = joined(values)
            if name.startswith("Element"):
                check_spacing(path, values)
    lines |= {"DimSize": joined(sizes), "ElementType": fields["ElementType"], "ElementDataFile": "LOCAL"}
    return "".join(f"{key} = {value}\n" for key, value in lines.items()).encode("ascii")
