"""Radiographs in DICOM files as pictures: grey values of one projection, which lies nowhere in space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import VolumeError
from coarse2fine.io.dicom.members import Member
from coarse2fine.io.dicom.slices import (
    Header,
    check_size,
    count_of,
    odd,
    pydicom_of_extra,
    read_header,
    stored_range,
    told,
)


@dataclass(frozen=True, slots=True, eq=False)
class Radiograph:
    """A radiograph.

    Attributes:
        pixels: Stored values, uint8 or uint16, shape (rows, columns); higher is brighter.
        patient: What the file calls the patient; empty if it does not.
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    patient: str


def read_radiograph(path: Path) -> Radiograph:
    """Read a file with a single grey picture.

    Raises:
        VolumeError: If it is damaged, too large for its bytes, or something else.
        ConfigError: If pydicom is not installed.
    """
    member = Member(str(path), path.stat().st_size, lambda: path.open("rb"))
    header, library = read_header(member), pydicom_of_extra()
    with told(member.name):
        high = _check(header)
        from pydicom.pixels import pixel_array

        with member.open() as stream:
            patient = str(
                library.dcmread(stream, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID", "")
            )
        with member.open() as stream:
            stored = pixel_array(stream, raw=True)
    shape = (count_of(member.name, header.content, "Rows"), count_of(member.name, header.content, "Columns"))
    if stored.shape != shape or stored.dtype.kind != "u" or int(stored.max()) > high:
        raise VolumeError(f"{member.name} holds other pixels than its header says", "It may be damaged: copy it again.")
    inverted = header.content.get("PhotometricInterpretation") == "MONOCHROME1"
    pixels: Any = high - stored if inverted else stored
    return Radiograph(pixels.astype(np.uint8 if high < 1 << 8 else np.uint16), patient.strip())


def _check(header: Header) -> int:
    """The highest value that can be stored.

    Raises:
        VolumeError: If it is no single picture of grey values that are not negative, of at most 16 bits.
    """
    name, content = header.member.name, header.content
    for key, known, usual in (
        ("SamplesPerPixel", (1,), 1),
        ("PhotometricInterpretation", ("MONOCHROME1", "MONOCHROME2"), None),
        ("NumberOfFrames", (1,), 1),
        ("PixelRepresentation", (0,), 0),
        ("BitsAllocated", (8, 16), None),
    ):
        value = content.get(key)
        if (usual if value is None else value) not in known:
            raise odd(name, content, key, " or ".join(map(str, known)))
    _, high, bits = stored_range(name, content)
    check_size(header, (count_of(name, content, "Rows"), count_of(name, content, "Columns")), bits)
    return high
