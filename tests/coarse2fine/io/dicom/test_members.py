"""DICOM series in zip files, those of strangers too."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series
from infer_runs import OBLIQUE

from coarse2fine.errors import VolumeError
from coarse2fine.io import read_volume
from coarse2fine.io.dicom.members import is_series
from coarse2fine.io.dicom.series import read_series
from coarse2fine.io.files.cases import find_cases

SHAPE = (7, 9, 11)
TURNED = replace(OBLIQUE, shape=SHAPE, spacing=(2.5, 0.7, 0.9))


def stored() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4095, SHAPE, endpoint=True).astype(np.uint16)


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_read_volume__zip_file__is_as_the_folder_in_it(how: int, tmp_path: Path) -> None:
    """Whatever it is called and whatever else is in it; nothing is unpacked to the disk, wherever names point to."""
    files = write_series(tmp_path / "s", stored(), TURNED)
    (tmp_path / "z").mkdir()
    packed = tmp_path / "z" / "scan.zip"
    with zipfile.ZipFile(packed, "w", how) as archive:
        for number, file in enumerate(files):
            archive.write(file, f"../../{'deep/' * (number % 3)}{file.name}")
        archive.writestr("DICOMDIR", bytes(128) + b"DICM")
        archive.writestr("__MACOSX/._IM0001", b"x")
        archive.writestr("notes.txt", b"read me")
    before = sorted(tmp_path.rglob("*"))
    volume, folder = read_volume([packed]), read_volume([tmp_path / "s"])
    assert sorted(tmp_path.rglob("*")) == before
    np.testing.assert_array_equal(volume.channels[0], folder.channels[0])
    assert (volume.grid, volume.name) == (folder.grid, "scan")
    assert [(case.name, case.files, case.suffix) for case in find_cases(packed, 1)] == [("scan", (packed,), ".dcm")]


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(1 << 20))
    state_size(path, 0xFFFFFFF0)


def liar(path: Path) -> None:
    """Says that less is in it than there is."""
    bomb(path)
    state_size(path, 200)


def state_size(path: Path, size: int) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)


def locked(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", bytes(128) + b"DICM")
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"x")


def oddly_packed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM")


def broken(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + random.Random(0).randbytes(99))


ZIPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "bomb": (bomb, "says that it holds 1 files of 4.295 GB in all, more than images can be"),
    "liar": (liar, "is no zip file that can be read: Bad CRC-32"),
    "locked": (locked, "is locked by a password"),
    "without DICOM": (empty, "holds no DICOM files"),
    "by lzma": (oddly_packed, "is packed by method 14"),
    "broken": (broken, "is no zip file that can be read"),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_read_volume__zip_file_that_is_no_series__is_refused(kind: str, tmp_path: Path) -> None:
    """Before anything is unpacked."""
    write, message = ZIPS[kind]
    write(tmp_path / "z.zip")
    with pytest.raises(VolumeError, match=message):
        read_series(tmp_path / "z.zip")
    assert is_series(tmp_path / "z.zip") == (kind not in ("without DICOM", "broken"))


@pytest.mark.parametrize("metadata", ["zarr.json", "v/.zarray", ".zgroup", "attributes.json"])
def test_is_series__store_in_a_zip_file__is_none(metadata: str, tmp_path: Path) -> None:
    """Whatever else is in it."""
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("0.dcm", bytes(128) + b"DICM")
        archive.writestr(metadata, b"{}")
    assert not is_series(tmp_path / "z.zip")
