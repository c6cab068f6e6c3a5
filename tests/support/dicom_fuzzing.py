"""Damaged DICOM series, and what SimpleITK and our reader make of them."""

from __future__ import annotations

import hashlib
import io
import random
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from dicom_series import make_slice
from fuzzing import damaged
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from coarse2fine.errors import C2FError, VolumeError
from coarse2fine.io import Grid, check_segmentation, read_volume

SHAPE = (4, 5, 6)
GRID = Grid(SHAPE, (2.0, 0.75, 0.5), origin=(-10.5, 3.0, 7.0), direction=(0.6, -0.8, 0, 0.8, 0.6, 0, 0, 0, 1))
_HEAD = 1400  # bytes before the voxels
_FIELDS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PixelSpacing", "ImageOrientationPatient"),
    *("ImagePositionPatient", "SliceThickness", "RescaleSlope", "RescaleIntercept", "SeriesInstanceUID"),
    *("SOPClassUID", "SOPInstanceUID", "PixelData", "ModalityLUTSequence", "PerFrameFunctionalGroupsSequence"),
    *("SeriesDescription", "Modality", "SpecificCharacterSet", "TransferSyntaxUID", "PlanarConfiguration"),
)
_VALUES: dict[str, tuple[Any, ...]] = {
    "DS": ("0", "-1", "1e300", "1e-300", "0.1", ["1", "2"], ["1", "2", "3"], ["1", "0", "0", "0", "1", "0"], ""),
    "IS": ("0", "-1", "2", "2147483647", ["1", "2"], ""),
    "LO": ("nan", "inf", "x", "1\\2\\3", "\x1b[2J", "MONOCHROME2", "RGB", "", "1e999", "9" * 64),
    "US": (0, 1, 2, 3, 5, 6, 8, 12, 16, 32, 65535, [5, 6]),
    "FD": (0.0, float("nan"), float("inf"), -1.0, [1.0, 2.0], [1.0] * 6),
    "SL": (-1, -(2**31), 5),
    "SQ": ([], [Dataset()]),
    "UN": (b"", b"\xff" * 7, b"1\\2"),
    "CS": ("ISO_IR 192", "ISO 2022 IR 87", "MONOCHROME1", "nothing"),
    "UI": ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.1.99", "1.2.3", "x"),
}


def ours(path: Path) -> str:
    """A text that says all that our reader makes of a series, of which a segmentation is tried, too."""
    volume = read_volume([path])
    with suppress(C2FError):
        check_segmentation(path, {"a": [1]})
    return _summary(volume.channels[0], volume.grid.spacing, volume.grid.origin, volume.grid.cosines)


def simpleitk(path: Path) -> str:
    """The same of SimpleITK, where it finds one series."""
    try:
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
        image = sitk.ReadImage(names)
    except RuntimeError as error:
        raise VolumeError(f"{path}: {error}") from error
    turned = (image.GetSpacing()[::-1], image.GetOrigin()[::-1], image.GetDirection())
    return _summary(sitk.GetArrayFromImage(image), *turned)


def _summary(voxels: np.ndarray, *geometry: tuple[float, ...]) -> str:
    numbers = [[round(float(number), 4) + 0.0 for number in numbers] for numbers in geometry]
    content = hashlib.sha256(np.ascontiguousarray(voxels.astype(np.float32)).tobytes()).hexdigest()[:16]
    return f"{voxels.shape} {numbers} {content}"


def make_dicom(seed: int, folder: Path) -> Path:
    """A damaged series in a folder, or in a zip file; the seed names it."""
    rng = random.Random(seed)
    voxels = np.random.default_rng(seed).integers(0, 4000, SHAPE).astype(np.uint16)
    syntax = rng.choice((ExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless))
    everywhere, field = rng.random() < 0.5, rng.choice(_FIELDS)
    kind = rng.choice(tuple(_VALUES))
    value, victim, by_field = rng.choice(_VALUES[kind]), rng.randrange(SHAPE[0]), rng.random() < 0.6
    files = {}
    for index, stored in enumerate(voxels):
        content = make_slice(stored, GRID, index, SeriesInstanceUID="1.2.3.4", StudyInstanceUID="1.2.3")
        if syntax.is_compressed:
            content.compress(syntax, generate_instance_uid=False)
        content.file_meta.TransferSyntaxUID = syntax
        plain = packed = _bytes_of(content, syntax)
        if by_field and (everywhere or index == victim):
            with suppress(OSError, TypeError, ValueError, AttributeError):  # pydicom does not write every value
                _put(content, field, kind, value)
                packed = _bytes_of(content, syntax)
        if not by_field and index == victim:
            packed = damaged(plain, rng, head=_HEAD if rng.random() < 0.9 else len(plain))
        files[f"{index}"] = packed
    return _written(folder / f"dicom_{seed}", files, rng)


def _put(content: Dataset, name: str, kind: str, value: Any) -> None:
    """Set a field to a value that it cannot have, under whatever kind of value."""
    target = content.file_meta if name == "TransferSyntaxUID" else content
    target[name] = pydicom.DataElement(
        pydicom.datadict.tag_for_keyword(name),
        kind,
        Items(value) if kind == "SQ" else value,
        validation_mode=pydicom.config.IGNORE,
    )


def _bytes_of(content: Dataset, syntax: Any) -> bytes:
    packed = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(packed, content, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    return packed.getvalue()


def _written(path: Path, files: dict[str, bytes], rng: random.Random) -> Path:
    if rng.random() < 0.8:
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
        return path
    path = path.with_suffix(".zip")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    content = packed.getvalue()
    path.write_bytes(damaged(content, rng, head=len(content)) if rng.random() < 0.5 else content)
    return path
