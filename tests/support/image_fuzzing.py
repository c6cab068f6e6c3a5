"""Damaged image files, and what SimpleITK and our reader make of them."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from fuzzing import damaged

from coarse2fine.errors import VolumeError
from coarse2fine.io import read_volume

SHAPE = (6, 7, 5)
_TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
_GIPL_TYPES = {"int8": 7, "uint8": 8, "int16": 15, "uint16": 16, "float32": 64, "float64": 65}
_META_TYPES = {
    "int8": "MET_CHAR",
    "uint8": "MET_UCHAR",
    "int16": "MET_SHORT",
    "uint16": "MET_USHORT",
    "int32": "MET_INT",
    "uint32": "MET_UINT",
    "int64": "MET_LONG_LONG",
    "uint64": "MET_ULONG_LONG",
    "float32": "MET_FLOAT",
    "float64": "MET_DOUBLE",
}
_NRRD_TYPES = {
    "int8": ["int8", "signed char"],
    "uint8": ["uint8", "uchar", "unsigned char"],
    "int16": ["short", "int16"],
    "uint16": ["ushort", "unsigned short int"],
    "int32": ["int", "int32_t"],
    "uint32": ["unsigned int", "uint32"],
    "int64": ["int64", "long long int"],
    "uint64": ["uint64", "unsigned long long"],
    "float32": ["float"],
    "float64": ["double"],
}
_NIFTI = nibabel.Nifti1Header.template_dtype
_NIFTI_FIELDS = [name for name in _NIFTI.names if _NIFTI[name].base.kind in "if" for _ in range(3)]
_SPACING, _ORIGIN = (0.7, 0.8, 2.5), (-10.5, 3.0, 7.0)
_TURNED = (0.6, -0.8, 0.0, 0.8, 0.6, 0.0, 0.0, 0.0, 1.0)
_NUMBERS_TEXT = (
    "0 1 -1 2 3 4 5 0.0 -0 1e3 1e-9 1e999 -1e999 nan inf -inf NaN 0x10 1.5 7 255 32768 65536 2147483647 "
    "2147483648 4294967295 4294967296 9223372036854775807 18446744073709551616 -2147483649 1, 1;2 1_0 +1 01 "
    "--1 1e 1d3 x %s %n"
)
_NUMBERS = _NUMBERS_TEXT.split()
_META_EXTRAS = (
    "HeaderSize = -1",
    "HeaderSize = 0",
    "ElementSize = 1 2 3",
    "ElementNumberOfChannels = 1",
    "Comment = a: b = c",
    "Position = 1 2 3",
    "ElementMin = 3",
    "Color = 1 0 0 1",
    "ID = 3",
    "Modality = MET_MOD_CT",
    "ElementToIntensityFunctionSlope = 2",
    "Name = x",
    "SequenceID = 1 2 3",
    "Acquired_By = somebody",
    "",
)
_NRRD_EXTRAS = (
    "axis mins: 1 2 3",
    "byte skip: -1",
    "byte skip: 1",
    "line skip: 0",
    "thicknesses: 1 2 3",
    "thicknesses: nan nan 3",
    'space units: "mm" "mm" "mm"',
    'labels: "x" "y" "z"',
    'units: "mm" "mm" "mm"',
    "measurement frame: (1,0,0) (0,1,0) (0,0,1)",
    "centers: cell cell cell",
    "centerings: node node node",
    "old max: 4",
    "min: nan",
    "content: abc",
    "number: 210",
    "sample units: HU",
    "# another comment",
    "key:=value",
)
_MILD = ("2", "-1", "0.5", "1.25", "-0.8", "1e1", "3.", ".5", "1e-3", "+2")
_META_FIELDS_TEXT = (
    "NDims DimSize ElementType ElementSpacing ElementSize ElementNumberOfChannels ElementDataFile HeaderSize "
    "BinaryData BinaryDataByteOrderMSB ElementByteOrderMSB CompressedData CompressedDataSize "
    "CompressionLevel TransformMatrix Orientation Rotation Offset Position Origin CenterOfRotation "
    "AnatomicalOrientation ObjectType ObjectSubType Comment Name ID ParentID Color Modality SequenceID "
    "ElementMin ElementMax ElementNBits DistanceUnits ElementToIntensityFunctionSlope "
    "ElementToIntensityFunctionOffset TransformType ITK_InputFilterName AcquisitionDate"
)
_META_FIELDS = _META_FIELDS_TEXT.split()
_NRRD_FIELDS_TEXT = (
    "type,dimension,sizes,spacings,endian,encoding,space,space dimension,space directions,space origin,"
    "space units,kinds,centers,centerings,thicknesses,axis mins,axis maxs,labels,units,content,min,max,"
    "old min,old max,block size,data file,datafile,line skip,lineskip,byte skip,byteskip,number,sample units,"
    "measurement frame,blocksize"
)
_NRRD_FIELDS = _NRRD_FIELDS_TEXT.split(",")
_VALUES_TEXT = (
    "true false True False TRUE 1 0 LOCAL LIST left-posterior-superior RAS right-anterior-superior LPS "
    "scanner-xyz left-posterior-superior-time raw gzip gz bzip2 ascii text txt hex raw little big short int "
    "uchar double float int16 signed~char unsigned~long~long block MET_SHORT MET_UCHAR MET_LONG MET_ULONG "
    "MET_LONG_LONG MET_FLOAT MET_DOUBLE MET_STRING MET_OTHER MET_NONE MET_FLOAT_ARRAY MET_CHAR "
    "domain~domain~domain space~space~space vector~domain~domain list~domain~domain ??? none nan~nan~nan "
    "(1,0,0)~(0,1,0)~(0,0,1) (0,1,0)~(1,0,0)~(0,0,-2) none~(1,0,0)~(0,1,0)~(0,0,1) (1,2,3) (1,2) "
    "(nan,0,0)~(0,1,0)~(0,0,1) RAI ASL cell~cell~cell node~node~node /dev/zero ../x.raw x%03d.raw~1~5~1 "
    "Image Tube mm um"
)
_VALUES = _VALUES_TEXT.split()


def ours(path: Path) -> str:
    """A text that says all that our reader makes of a file."""
    volume = read_volume([path])
    grid = volume.grid
    return _summary(volume.channels[0], grid.spacing[::-1], grid.origin[::-1], grid.direction)


def simpleitk(path: Path) -> str:
    """The same of SimpleITK; of one frame with a fourth axis what nnU-Net makes of it."""
    with tempfile.TemporaryFile() as printed:
        sys.stderr.flush()
        os.dup2(printed.fileno(), 2)
        try:
            image = sitk.ReadImage(str(path))
        except (RuntimeError, MemoryError) as error:
            raise VolumeError(f"{path}: {error}") from error
        printed.seek(0)
        if b"Uncompress failed" in printed.read():
            raise VolumeError(f"{path}: SimpleITK returns memory that it has not filled")
    spacing, origin = image.GetSpacing(), image.GetOrigin()
    direction = np.reshape(image.GetDirection(), (len(origin), len(origin)))
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        return _summary(sitk.GetArrayFromImage(image)[0], spacing[:3], origin[:3], tuple(direction[:3, :3].ravel()))
    return _summary(sitk.GetArrayFromImage(image), spacing, origin, tuple(direction.ravel()))


def _summary(
    voxels: np.ndarray, spacing: tuple[float, ...], origin: tuple[float, ...], direction: tuple[float, ...]
) -> str:
    numbers = [[float(number) + 0.0 for number in numbers] for numbers in (spacing, origin, direction)]
    content = hashlib.sha256(np.ascontiguousarray(voxels).tobytes()).hexdigest()[:16]
    return f"{voxels.dtype} {voxels.shape} {numbers} {content}"


def make_mha(seed: int, folder: Path) -> Path:
    """A damaged MetaImage file; the seed names it."""
    rng = random.Random(seed)
    voxels, swapped = _voxels(rng, _META_TYPES)
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": str(swapped),
        "CompressedData": "False",
        "TransformMatrix": _text(rng.choice((_TURNED, np.eye(3).ravel()))),
        "Offset": _text(_ORIGIN),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": _text(_SPACING),
        "DimSize": _text(SHAPE[::-1]),
        "ElementType": _META_TYPES[voxels.dtype.newbyteorder("=").name],
    }
    content = voxels.tobytes()
    if rng.random() < 0.4:
        content = zlib.compress(content)
        lines["CompressedData"] = "True"
        if rng.random() < 0.9:
            lines["CompressedDataSize"] = str(len(content))
    if rng.random() < 0.2:
        lines |= {"NDims": "4", "DimSize": lines["DimSize"] + " 1", "ElementSpacing": lines["ElementSpacing"] + " 1"}
        lines |= {"TransformMatrix": _text(np.eye(4).ravel()), "Offset": lines["Offset"] + " 0"}
        lines["CenterOfRotation"] += " 0"
    path = folder / f"mha_{seed}.{'mha' if rng.random() < 0.8 else 'mhd'}"
    lines["ElementDataFile"] = "LOCAL" if path.suffix == ".mha" else f"mha_{seed}.raw"
    text = _with_damage([f"{key} = {value}" for key, value in lines.items()], rng, _META_FIELDS, " = ", _META_EXTRAS)
    return _written(path, text.encode("latin-1", "replace"), content, rng)


def make_nrrd(seed: int, folder: Path) -> Path:
    """A damaged NRRD file."""
    rng = random.Random(seed)
    voxels, swapped = _voxels(rng, _NRRD_TYPES)
    lines = {
        "type": rng.choice(_NRRD_TYPES[voxels.dtype.newbyteorder("=").name]),
        "dimension": "3",
        "space": rng.choice(("left-posterior-superior", "RAS", "left-anterior-superior", "scanner-xyz")),
        "sizes": _text(SHAPE[::-1]),
        "space directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5)",
        "kinds": "domain domain domain",
        "endian": "big" if swapped else "little",
        "encoding": rng.choice(("raw", "raw", "gzip", "gzip", "ascii", "hex")),
        "space origin": "(-10.5,3,7)",
    }
    if rng.random() < 0.4:
        for key in ("space", "space directions", "space origin"):
            del lines[key]
        lines["spacings"] = _text(_SPACING)
    content = {
        "raw": voxels.tobytes,
        "gzip": lambda: gzip.compress(voxels.tobytes(), mtime=0),
        "ascii": lambda: " ".join(map(str, voxels.ravel().tolist())).encode(),
        "hex": lambda: voxels.tobytes().hex().encode(),
    }[lines["encoding"]]()
    path = folder / f"nrrd_{seed}.{'nrrd' if rng.random() < 0.8 else 'nhdr'}"
    if path.suffix == ".nhdr":
        lines["data file"] = f"nrrd_{seed}.raw"
    texts = [f"NRRD000{rng.choice('1245')}", "# a comment"] + [f"{key}: {value}" for key, value in lines.items()]
    if rng.random() < 0.9:  # what no longer begins like an NRRD file is always refused
        text = f"{texts[0]}\n" + _with_damage(texts[1:], rng, _NRRD_FIELDS, ": ", _NRRD_EXTRAS) + "\n"
    else:
        text = _with_damage(texts, rng, _NRRD_FIELDS, ": ", _NRRD_EXTRAS) + "\n"
    return _written(path, text.encode("latin-1", "replace"), content, rng)


def make_nifti(seed: int, folder: Path) -> Path:
    """A damaged NIfTI file, packed or not."""
    rng = random.Random(seed)
    voxels = _voxels(rng, _META_TYPES)[0]
    image = sitk.GetImageFromArray(voxels.astype(voxels.dtype.newbyteorder("=")))
    image.SetSpacing(_SPACING)
    image.SetOrigin(_ORIGIN)
    image.SetDirection(rng.choice((_TURNED, tuple(np.eye(3).ravel()))))
    path = folder / f"nii_{seed}.nii"
    sitk.WriteImage(image, str(path))
    content = path.read_bytes()
    if rng.random() < 0.2:
        head = np.frombuffer(content[:348], _NIFTI).byteswap()
        content = head.tobytes() + content[348:352] + sitk.GetArrayFromImage(image).byteswap().tobytes()
    if rng.random() < 0.6:
        content = _with_field_changed(content, rng)
    if rng.random() < 0.7:
        content = damaged(content, rng, head=360)
    if rng.random() < 0.5:
        path.unlink()
        path, content = folder / f"nii_{seed}.nii.gz", gzip.compress(content, mtime=0)
        content = damaged(content, rng, head=len(content)) if rng.random() < 0.1 else content
    path.write_bytes(content)
    return path


def make_gipl(seed: int, folder: Path) -> Path:
    """A damaged GIPL file."""
    rng = random.Random(seed)
    voxels, _ = _voxels(rng, _GIPL_TYPES)
    head = struct.pack(">4HH4f", *SHAPE[::-1], 1, _GIPL_TYPES[voxels.dtype.newbyteorder("=").name], *_SPACING, 1)
    head += bytes(204 - len(head)) + struct.pack(">4d", *_ORIGIN, 0) + bytes(16) + struct.pack(">I", 719555000)
    path = folder / f"gipl_{seed}.gipl"
    path.write_bytes(damaged(head + voxels.astype(voxels.dtype.newbyteorder(">")).tobytes(), rng, head=256))
    return path


MAKERS: dict[str, Callable[[int, Path], Path]] = {
    "mha": make_mha,
    "nrrd": make_nrrd,
    "nifti": make_nifti,
    "gipl": make_gipl,
}


def _voxels(rng: random.Random, types: Iterable[str]) -> tuple[np.ndarray, bool]:
    """Voxels of a random type, and whether they are big-endian."""
    dtype, swapped = np.dtype(rng.choice(list(types))), rng.random() < 0.2
    voxels = np.frombuffer(rng.randbytes(int(np.prod(SHAPE)) * 2), np.int16).reshape(SHAPE)
    voxels = voxels.astype(dtype) if dtype.kind != "f" else (voxels / 7).astype(dtype)
    return voxels.astype(dtype.newbyteorder(">" if swapped else "<")), swapped


def _text(numbers: Iterable[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def _with_damage(lines: list[str], rng: random.Random, fields: Sequence[str], mark: str, extras: Sequence[str]) -> str:
    """The lines of a header with some of them changed, added, moved, doubled or lost."""
    lines = list(lines)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.randrange(len(lines))
        key, _, value = lines[place].partition(mark)
        parts = value.split(" ")
        match rng.randrange(15):
            case 0 | 1 | 2:
                parts[rng.randrange(len(parts))] = rng.choice(_NUMBERS if rng.random() < 0.5 else _MILD)
                lines[place] = key + mark + " ".join(parts)
            case 3:
                lines[place] = key + mark + rng.choice(_VALUES).replace("~", " ")
            case 5 | 12 | 13 | 14:
                lines.insert(place, rng.choice(extras))
            case 4:
                lines.insert(place, rng.choice(fields) + mark + rng.choice((*_VALUES, *_NUMBERS)).replace("~", " "))
            case 6:
                del lines[place]
            case 7:
                lines.insert(rng.randrange(len(lines) + 1), lines[place])
            case 8:
                lines.insert(rng.randrange(len(lines)), lines.pop(place))
            case 9:
                parts = [*parts, rng.choice(_NUMBERS)] if rng.random() < 0.5 else parts[:-1]
                lines[place] = key + mark + " ".join(parts)
            case 10:
                change = rng.choice((str.upper, str.lower, lambda text: text * 200, lambda text: text + "  "))
                lines[place] = change(key) + mark + value if rng.random() < 0.5 else key + mark + change(value)
            case _:
                lines[place] = damaged(lines[place].encode("latin-1", "replace"), rng, 60).decode("latin-1") or "?"
        if not lines:
            break
    return "".join(f"{line}\n" for line in lines)


def _with_field_changed(content: bytes, rng: random.Random) -> bytes:
    """A NIfTI file with another value in one field of its header."""
    order = "<" if content[0] == 0x5C else ">"
    head = np.frombuffer(content[:348], _NIFTI.newbyteorder(order)).copy()
    name = rng.choice(_NIFTI_FIELDS)
    field = head[name]
    flat = field.reshape(-1)
    if field.dtype.kind == "f":
        flat[rng.randrange(flat.size)] = rng.choice((0, 1, -1, 2, 0.5, -0.7, 352, 348, 400, 1e9, 1e-9, np.nan, np.inf))
    else:
        flat[rng.randrange(flat.size)] = rng.choice((0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 100, 127))
    return head.tobytes() + content[348:]


def _written(path: Path, head: bytes, content: bytes, rng: random.Random) -> Path:
    """Writes header and voxels, together or apart, a few of them cut or with more behind."""
    if rng.random() < 0.1:
        head = damaged(head, rng, len(head))
    if rng.random() < 0.1:
        content = damaged(content, rng, len(content))
    if path.suffix in (".mhd", ".nhdr"):
        path.with_suffix(".raw").write_bytes(content)
        content = b""
    path.write_bytes(head + content)
    return path
