"""What the header of one slice says, checked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import C2FError, ConfigError, VolumeError, reason_of
from coarse2fine.io.dicom.members import Member

_MOST_PACKED, _PLAIN = 1032, 1 << 20  # bytes that one packed byte may stand for, and that any file may hold
_RIGHT_ANGLE = 1e-3  # cosine, and how far from 1 the length of a direction may be; some scanners write three digits
_LARGEST = float(np.finfo(np.float32).max)  # networks compute in single precision
_PREAMBLE = 132  # bytes before the first element
_BY_SIMPLEITK = (
    "for example with SimpleITK: WriteImage(ReadImage(ImageSeriesReader.GetGDCMSeriesFileNames(FOLDER)), NEW)"
)
_DEFLATED = "1.2.840.10008.1.2.1.99"
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PixelSpacing", "ImageOrientationPatient"),
    *("ImagePositionPatient", "SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "PerFrameFunctionalGroupsSequence"),
    *("ImageType", "DoseGridScaling"),
)


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice without its voxels.

    Attributes:
        member: Its file.
        shape: Rows and columns.
        spacing: Millimetres from row to row, and from column to column.
        axes: Where rows lead (x grows along a row), and where columns lead; shape (2, 3), LPS.
        position: Of the first voxel's centre, shape (3,), LPS.
        slope, intercept: From stored to true values.
        low, high: Between these lie all values that can be stored.
        thickness: Millimetres to the next slice, as far as the file says it alone; 1 if it does not.
    """

    member: Member
    shape: tuple[int, int]
    spacing: tuple[float, float]
    axes: NDArray[np.float64]
    position: NDArray[np.float64]
    slope: float
    intercept: float
    low: int
    high: int
    thickness: float


@dataclass(frozen=True, slots=True)
class Header:
    """What a file of DICOM says of itself: its series, and the data set without voxels."""

    member: Member
    series: str
    called: str
    content: Any


def pydicom_of_extra() -> ModuleType:
    """The library, which is only there if somebody asked for it.

    Raises:
        ConfigError: If it is not.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ConfigError(
            "reading DICOM needs pydicom, which is not installed", "Install it: pip install pydicom highdicom"
        ) from error
    return pydicom


@contextmanager
def told(name: str) -> Iterator[None]:
    """Turns whatever a library raises for damaged bytes into one clear error, and keeps its warnings to itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (C2FError, MemoryError):
        raise
    except Exception as error:  # strangers' bytes make its parser raise anything
        raise VolumeError(f"{name} cannot be read: {reason_of(error)}", "It may be damaged: copy it again.") from error


def read_header(member: Member) -> Header:
    """What a file says of itself.

    Raises:
        VolumeError: If it is damaged.
    """
    library = pydicom_of_extra()
    with told(member.name), member.open() as stream:
        _check_syntax(member, stream)
        content = library.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
        series = str(content.get("SeriesInstanceUID", ""))
        parts = (content.get("Modality"), content.get("SeriesNumber"), content.get("SeriesDescription"))
        return Header(member, series, " ".join(str(part)[:64] for part in parts if part not in (None, "")), content)


def read_slice(header: Header) -> Slice:
    """What the header of a slice says.

    Raises:
        VolumeError: If it is no slice of grey values that lies somewhere.
    """
    name, content = header.member.name, header.content
    with told(name):
        _check_kind(name, content)
        shape = (count_of(name, content, "Rows"), count_of(name, content, "Columns"))
        low, high, bits = stored_range(name, content)
        check_size(header, shape, bits)
        axes = np.reshape(_numbers(name, content, "ImageOrientationPatient", 6), (2, 3))
        if not np.allclose(axes @ axes.T, np.eye(2), atol=_RIGHT_ANGLE):
            raise odd(name, content, "ImageOrientationPatient", "two directions at right angles")
        row, column = _numbers(name, content, "PixelSpacing", 2)
        if min(row, column) <= 0:
            raise odd(name, content, "PixelSpacing", "two positive numbers")
        position = np.array(_numbers(name, content, "ImagePositionPatient", 3))
        slope, intercept = (
            _numbers(name, content, key, 1)[0] if content.get(key) is not None else usual
            for key, usual in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        if not slope:
            raise odd(name, content, "RescaleSlope", "a number other than 0")
        if max(abs(end * slope + intercept) for end in (low, high)) > _LARGEST:
            raise odd(name, content, "RescaleSlope", "one that leaves values finite in single precision")
        thickness = _thickness(content)
    return Slice(header.member, shape, (row, column), axes, position, slope, intercept, low, high, thickness)


def _check_syntax(member: Member, stream: BinaryIO) -> None:
    """Refuses files that nothing here unpacks, before pydicom unpacks those that are packed as a whole, of any size."""
    from pydicom.filereader import read_dataset
    from pydicom.pixels import get_decoder

    stream.seek(_PREAMBLE)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, kind, length: tag >> 16 != 2)
    stream.seek(0)
    syntax = meta.get("TransferSyntaxUID")
    if syntax is None:
        raise VolumeError(f"{member.name} does not say how it is packed (TransferSyntaxUID)", "Export it again.")
    try:
        known = syntax != _DEFLATED and get_decoder(syntax).is_available
    except NotImplementedError:
        known = False
    if not known:
        raise VolumeError(
            f"{member.name} is packed in a way that is not unpacked here: {syntax.name}",
            f"Export the series uncompressed, or convert it to .nii.gz, {_BY_SIMPLEITK}.",
        )


def _check_kind(name: str, content: Any) -> None:
    """Refuses what is no single slice of grey values."""
    frames = content.get("NumberOfFrames")
    if (frames is not None and int(frames) > 1) or "PerFrameFunctionalGroupsSequence" in content:
        raise VolumeError(
            f"{name} holds {frames or 'several'} frames: multi-frame objects are not read",
            "Convert it to .nii.gz, for example with SimpleITK: WriteImage(ReadImage(OLD), NEW), and segment that.",
        )
    if "MOSAIC" in (content.get("ImageType") or ()):
        raise VolumeError(
            f"{name} shows many slices side by side in one image (MOSAIC)",
            "Convert it to .nii.gz with a tool that takes mosaics apart, such as dcm2niix, and segment that.",
        )
    if "Rows" not in content or "Columns" not in content:
        raise VolumeError(
            f"{name} holds no image ({content.get('Modality', 'of no modality')})",
            "Move it elsewhere: the folder may only hold the images of one series.",
        )
    if "DoseGridScaling" in content:
        raise VolumeError(
            f"{name} holds a dose, not an image", "Give the series that the scanner made, on which it was planned."
        )
    samples, kind = content.get("SamplesPerPixel", 1), str(content.get("PhotometricInterpretation", ""))
    if samples == 1 and kind == "MONOCHROME1":
        raise VolumeError(
            f"{name} shows high values dark (MONOCHROME1): whether its values are inverted is not known",
            f"Convert the series to .nii.gz, {_BY_SIMPLEITK}, and look at it before you segment it.",
        )
    if samples != 1 or kind != "MONOCHROME2":
        raise VolumeError(
            f"{name} is a colour image ({kind}, {samples} sample(s) per pixel), not one of grey values",
            "Give the series that the scanner made; screenshots and fused images are made from it.",
        )
    if content.get("ModalityLUTSequence"):
        raise VolumeError(
            f"{name} gives its true values in a table (Modality LUT), which is not read",
            "Export the series with slope and intercept instead.",
        )
    if not 1 <= len(str(content.get("SOPInstanceUID", ""))) <= 64:
        raise VolumeError(f"{name} has no SOPInstanceUID", "It may be damaged: copy it again.")


def stored_range(name: str, content: Any) -> tuple[int, int, int]:
    """Lowest and highest number that can be stored, and the bits that it takes."""
    allocated, signed = content.get("BitsAllocated"), content.get("PixelRepresentation", 0)
    if allocated not in (8, 16, 32):
        raise odd(name, content, "BitsAllocated", "8, 16 or 32")
    stored = content.get("BitsStored", allocated)
    if not isinstance(stored, int) or not 1 <= stored <= allocated:
        raise odd(name, content, "BitsStored", f"1 to {allocated}")
    if content.get("HighBit", stored - 1) != stored - 1:
        raise odd(name, content, "HighBit", f"{stored - 1}")
    if signed not in (0, 1):
        raise odd(name, content, "PixelRepresentation", "0 or 1")
    return (-(1 << stored - 1), (1 << stored - 1) - 1, allocated) if signed else (0, (1 << stored) - 1, allocated)


def check_size(header: Header, shape: tuple[int, int], bits: int) -> None:
    """Refuses slices that are larger than their file can hold."""
    size, there = math.prod(shape) * bits // 8, header.member.size
    packed = header.content.file_meta.TransferSyntaxUID.is_compressed
    if size > (_PLAIN + _MOST_PACKED * there if packed else there):
        raise VolumeError(
            f"{header.member.name} says that it has {shape[0]} x {shape[1]} voxels, more than its {there} bytes hold",
            "It is truncated or damaged: copy it again.",
        )


def _thickness(content: Any) -> float:
    for key in ("SpacingBetweenSlices", "SliceThickness"):
        value = content.get(key)
        if value not in (None, "") and math.isfinite(float(value)) and float(value) > 0:
            return float(value)
    return 1.0


def count_of(name: str, content: Any, key: str) -> int:
    """A number of a header that is at least 1; VolumeError if it is not."""
    value = content.get(key)
    if not isinstance(value, int) or value < 1:
        raise odd(name, content, key, "a positive number")
    return value


def _numbers(name: str, content: Any, key: str, count: int) -> tuple[float, ...]:
    """The finite numbers of a field."""
    value = content.get(key)
    if value in (None, ""):
        raise VolumeError(
            f"{name} does not say its {key}: where its voxels lie is not known",
            "Give the series that the scanner made; images that lie nowhere are no slices of a volume.",
        )
    try:
        numbers = tuple(float(number) for number in (value if count > 1 else [value]))
    except (TypeError, ValueError) as error:
        raise odd(name, content, key, f"{count} numbers") from error
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise odd(name, content, key, f"{count} finite numbers")
    return numbers


def odd(name: str, content: Any, key: str, expected: str) -> VolumeError:
    """What is wrong with an element of a file's header."""
    shown = str(content.get(key))[:60]
    return VolumeError(
        f"{name}: {key} is {shown!r}, but {expected} should be there",
        "The file may be damaged: export or copy it again.",
    )
