"""NRRD files: .nrrd, and .nhdr with its voxels in a file of their own."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from coarse2fine.errors import VolumeError
from coarse2fine.io.files.fields import Header, axis_count, beside, damaged, integers, odd, read_text, reals, shape_of
from coarse2fine.io.files.headers import GZIP, HEX, PLAIN, TEXT, Layout

_MAGIC = re.compile(r"NRRD000[1-5]")
_FIELD = re.compile(r"([A-Za-z][A-Za-z ]*[A-Za-z]): (.*)")
_PAIR = re.compile(r"[^:#]+:=.*")
_LAST = rb"\r?\n\r?\n"
_TYPE_NAMES = {
    "i1": "signed char,int8,int8_t",
    "u1": "uchar,unsigned char,uint8,uint8_t",
    "i2": "short,short int,signed short,signed short int,int16,int16_t",
    "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    "i4": "int,signed int,int32,int32_t",
    "u4": "uint,unsigned int,uint32,uint32_t",
    "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
    "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPES = {name: code for code, names in _TYPE_NAMES.items() for name in names.split(",")}
_PLAIN_TYPES = {"i1": "int8", "u1": "uint8", "i2": "int16", "u2": "uint16", "i4": "int32", "u4": "uint32"} | {
    "i8": "int64",
    "u8": "uint64",
    "f4": "float",
    "f8": "double",
}
_ENCODINGS = {"raw": PLAIN, "gzip": GZIP, "gz": GZIP, "ascii": TEXT, "text": TEXT, "txt": TEXT, "hex": HEX}
_SPACES = {  # how many axes each has
    **dict.fromkeys(("right-anterior-superior", "RAS", "left-anterior-superior", "LAS"), 3),
    **dict.fromkeys(("left-posterior-superior", "LPS", "scanner-xyz", "3D-right-handed", "3D-left-handed"), 3),
    **dict.fromkeys(("right-anterior-superior-time", "RAST", "left-anterior-superior-time", "LAST"), 4),
    **dict.fromkeys(("left-posterior-superior-time", "LPST", "scanner-xyz-time"), 4),
}
_COMPONENTS = {
    "list",
    "vector",
    "point",
    "covariant-vector",
    "normal",
    "complex",
    "2-vector",
    "3-color",
    "RGB-color",
} | {
    "HSV-color",
    "XYZ-color",
    "4-color",
    "RGBA-color",
    "3-vector",
    "3-gradient",
    "3-normal",
    "4-vector",
    "quaternion",
}
_KINDS = {"domain", "space", "time", "???", "none"} | _COMPONENTS
_SAME = {  # other names of fields
    "datafile": "data file",
    "lineskip": "line skip",
    "byteskip": "byte skip",
    "centerings": "centers",
    "axismins": "axis mins",
    "axismaxs": "axis maxs",
    "oldmin": "old min",
    "oldmax": "old max",
    "sampleunits": "sample units",
    "spacedimension": "space dimension",
    "spaceunits": "space units",
    "spaceorigin": "space origin",
    "spacedirections": "space directions",
    "measurementframe": "measurement frame",
}
_PER_AXIS = {"sizes", "spacings", "thicknesses", "axis mins", "axis maxs", "centers", "labels", "units", "kinds"} | {
    "space directions"
}
_IN_SPACE = {"space units", "space origin", "space directions", "measurement frame"}
_NO_MATTER = {"content", "number", "min", "max", "old min", "old max", "sample units"}
_HANDLED = {
    "type",
    "dimension",
    "space",
    "space dimension",
    "encoding",
    "endian",
    "data file",
    "line skip",
    "byte skip",
}
_FIELDS = _PER_AXIS | _IN_SPACE | _NO_MATTER | _HANDLED


def nrrd_header(path: Path) -> Header:
    """What an NRRD file says of its voxels.

    Raises:
        VolumeError: If the header is damaged, or asks for what a volume cannot be.
    """
    lines, end = read_text(path, _LAST)
    fields = _fields(path, lines)
    axes = axis_count(path, "dimension", fields.get("dimension", ""))
    sizes = integers(path, "sizes", fields.get("sizes", ""), axes)
    code = _TYPES.get(fields.get("type", "").lower())
    if code is None:
        raise odd(path, "type", fields.get("type", ""), "a type of single real numbers, such as short,")
    vetted = _vetted(path, fields, axes, _PLAIN_TYPES[code])
    shape = shape_of(path, _sizes_in_space(path, fields, sizes))
    return Header(shape, _layout(path, fields, np.dtype(code), end), vetted)


def _fields(path: Path, lines: list[str]) -> dict[str, str]:
    """The fields by their usual names; comments and key/value pairs say nothing of the voxels."""
    if not _MAGIC.fullmatch(lines[0]):
        raise damaged(path, "it is not an NRRD file")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if not line or line.startswith("#") or _PAIR.fullmatch(line):
            continue
        match = _FIELD.fullmatch(line)
        name = _SAME.get(match[1].lower(), match[1].lower()) if match else ""
        if match is None or name not in _FIELDS or not line.isprintable():
            raise damaged(path, f"its header has the line {line[:60]!r}")
        if name in fields:
            raise damaged(path, f"its header gives '{name}' more than once")
        if name in _PER_AXIS and "dimension" not in fields:
            raise damaged(path, f"its header gives '{name}' before 'dimension'")
        if name in _IN_SPACE and not fields.keys() & {"space", "space dimension"}:
            raise damaged(path, f"its header gives '{name}' before 'space'")
        fields[name] = match[2]
    if {"space", "space dimension"} <= fields.keys():
        raise damaged(path, "its header gives both 'space' and 'space dimension'")
    return fields


def _sizes_in_space(path: Path, fields: dict[str, str], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of axes that lead somewhere; along others lie the components of a voxel, of which one is allowed."""
    kinds = fields.get("kinds", "").split() or ["???"] * len(sizes)
    directions = re.findall(r"\([^()]*\)|\S+", fields.get("space directions", "")) or ["???"] * len(sizes)
    within = [kind in _COMPONENTS or step == "none" for kind, step in zip(kinds, directions, strict=True)]
    components = math.prod(size for size, inside in zip(sizes, within, strict=True) if inside)
    if components > 1:
        raise VolumeError(
            f"{path}: voxels are vectors of {components} numbers",
            "Convert colours to grey values, and write channels into one file each, NAME_0000, NAME_0001, ...",
        )
    return tuple(size for size, inside in zip(sizes, within, strict=True) if not inside)


def _layout(path: Path, fields: dict[str, str], dtype: np.dtype[Any], end: int) -> Layout:
    """Where the voxels are, in this file or beside it."""
    packing = _ENCODINGS.get(fields.get("encoding", "").lower())
    if packing is None:
        raise VolumeError(
            f"{path}: voxels are encoded as {fields.get('encoding', 'nobody knows what')!r}",
            "Encode them as raw or gzip, for example by another program that writes .nrrd.",
        )
    endian = fields.get("endian", "little" if dtype.itemsize == 1 or packing == TEXT else "").lower()
    if endian not in ("little", "big"):
        raise odd(path, "endian", endian, "little or big")
    name = fields.get("data file", "LOCAL")
    if name.split()[:1] == ["LIST"] or "%" in name or not name:
        raise VolumeError(
            f"{path}: its voxels are in many files (data file: {name[:60]})",
            "Write them into one file, for example with SimpleITK: WriteImage(ReadImage(OLD), NEW).",
        )
    if "data file" not in fields and path.suffix == ".nhdr":
        raise damaged(path, "its header does not say where the voxels are (data file)")
    file, start = (beside(path, name), 0) if "data file" in fields else (path, end)
    skipped = integers(path, "line skip", fields.get("line skip", "0"), 1)[0]
    skip = integers(path, "byte skip", fields.get("byte skip", "0"), 1)[0]
    if skipped < 0 or skip < -1 or (skip and packing not in (PLAIN, GZIP)) or (skip < 0 and packing != PLAIN):
        raise odd(path, "line skip, byte skip", f"{skipped}, {skip}", "numbers that are not negative")
    start = _after_lines(file, start, skipped)
    if skip == -1:
        count = int(np.prod([int(size) for size in fields["sizes"].split()], dtype=object))
        start, skip = max(start, file.stat().st_size - count * dtype.itemsize), 0
    if packing == PLAIN:
        start, skip = start + skip, 0
    return Layout(file, dtype.newbyteorder("<" if endian == "little" else ">"), start, packing, skip)


def _after_lines(file: Path, start: int, count: int) -> int:
    """The byte behind ``count`` more lines."""
    if not count:
        return start
    with file.open("rb") as stream:
        stream.seek(start)
        for _ in range(count):
            if not stream.readline(1 << 16).endswith(b"\n"):
                raise EOFError
        return stream.tell()


def _vetted(path: Path, fields: dict[str, str], axes: int, kind: str) -> bytes:
    """A header of what was checked, for voxels that do not follow."""
    lines = {"type": kind, "dimension": str(axes)}
    space = _space_axes(path, fields)
    lines |= {name: fields[name] for name in ("space", "space dimension") if name in fields}
    lines["sizes"] = fields["sizes"]
    for name in ("spacings", "axis mins", "axis maxs", "thicknesses"):
        if name in fields:
            _reals_or_nan(path, name, fields[name], axes)
            lines[name] = fields[name]
    if "space directions" in fields:
        _check_vectors(path, "space directions", fields["space directions"], axes, space)
        for name in sorted(fields.keys() & {"spacings", "axis mins", "axis maxs", "units"}):
            raise damaged(path, f"its header gives both 'space directions' and '{name}'")
        lines["space directions"] = fields["space directions"]
    for name in ("kinds", "centers"):
        known = _KINDS if name == "kinds" else {"cell", "node", "none", "???"}
        if name in fields:
            parts = fields[name].split()
            if len(parts) != axes or not known.issuperset(parts) or fields[name] != fields[name].strip():
                raise odd(path, name, fields[name], f"{axes} of {', '.join(sorted(known))}")
            lines[name] = fields[name]
    lines |= {"endian": "little", "encoding": "raw"}
    if "space origin" in fields:
        _check_vectors(path, "space origin", fields["space origin"], 1, space, none=False)
        lines["space origin"] = fields["space origin"]
    _check_unused(path, fields, axes, space)
    return ("NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in lines.items()) + "\n").encode("ascii")


def _space_axes(path: Path, fields: dict[str, str]) -> int:
    """Axes of the space that the volume lies in; 0 if there is none."""
    if "space dimension" in fields:
        return axis_count(path, "space dimension", fields["space dimension"])
    if "space" in fields and fields["space"] not in _SPACES:
        raise odd(path, "space", fields["space"], f"one of {', '.join(_SPACES)}")
    return _SPACES.get(fields.get("space", ""), 0)


def _check_vectors(path: Path, name: str, text: str, count: int, axes: int, none: bool = True) -> None:
    """Refuses a field that is not ``count`` vectors like (1,0,0), or ``none`` where that is allowed."""
    parts = re.findall(r"\([^()]*\)|\S+", text)
    for part in parts:
        if part == "none" and none:
            continue
        if not (part.startswith("(") and part.endswith(")") and part.count(",") == axes - 1):
            raise odd(path, name, text, f"{count} vector(s) of {axes} numbers")
        reals(path, name, part[1:-1].replace(",", " "), axes)
    if len(parts) != count:
        raise odd(path, name, text, f"{count} vector(s) of {axes} numbers")


def _reals_or_nan(path: Path, name: str, text: str, count: int) -> None:
    """Refuses a field that is not ``count`` numbers; of an axis without any, NaN."""
    reals(path, name, " ".join("0" if part.lower() == "nan" else part for part in text.split()), count)


def _check_unused(path: Path, fields: dict[str, str], axes: int, space: int) -> None:
    """Refuses odd values of fields that do not matter here, but whose size the format fixes."""
    for name in ("min", "max", "old min", "old max"):
        if name in fields:
            reals(path, name, fields[name], 1)
    for name, count in (("labels", axes), ("units", axes), ("space units", space)):
        if name in fields and len(re.findall(r'"[^"\\]*"', fields[name])) != count:
            raise odd(path, name, fields[name], f"{count} quoted text(s)")
    if "measurement frame" in fields:
        _check_vectors(path, "measurement frame", fields["measurement frame"], space, space)
