"""The files of a DICOM series, in a folder or in a zip file; zip files of strangers are read without unpacking them."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from coarse2fine.errors import VolumeError

ZIP_SUFFIX = ".zip"
DICOM_SUFFIX = ".dcm"

_PREAMBLE, _DICM, _ZIP = 128, b"DICM", b"PK\x03\x04"
_MOST_MEMBERS = 100_000
_LARGEST_MEMBER = 1 << 30  # bytes; a slice of 65535 x 8192 voxels
_PLAIN, _MOST_SHRUNK = 1 << 30, 100  # bytes that may come of any zip file, and how many times as much as it is
_MOST_TRIED = 1000  # files of a zip file that are looked into to know what it is
_LOCKED = 1  # flag of a file with a password
_STORES = {".zgroup", ".zarray", "zarr.json", "attributes.json", "info"}
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError, zlib.error)
_KINDS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a series.

    Attributes:
        name: What to call it in messages.
        size: Its bytes.
        open: Opens it for reading.
    """

    name: str
    size: int
    open: Callable[[], BinaryIO]


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, whatever its name is."""
    try:
        with path.open("rb") as stream:
            return _begins_as_dicom(stream)
    except OSError:
        return False


def is_series(path: Path) -> bool:
    """Whether there are DICOM files: in a folder itself (not below it), or anywhere in a zip file that is no store.

    Told by content; of files in a zip file that are locked or packed in an odd way also by their names.
    """
    try:
        if path.is_dir():
            return any(is_dicom(file) for file in path.iterdir() if _counts(file.name) and file.is_file())
        with path.open("rb") as stream:
            if stream.read(len(_ZIP)) != _ZIP:
                return False
        with zipfile.ZipFile(path) as archive:
            return _holds_series(archive)
    except (OSError, *_DAMAGED):
        return False


def _holds_series(archive: zipfile.ZipFile) -> bool:
    if any(PurePosixPath(name).name in _STORES for name in archive.namelist()):
        return False
    entries = [one for one in archive.infolist() if not one.is_dir() and _is_visible(one.filename)]
    for one in entries[:_MOST_TRIED]:
        if one.flag_bits & _LOCKED or PurePosixPath(one.filename).suffix.lower() == DICOM_SUFFIX:
            return True
        with archive.open(one) as stream:
            if _begins_as_dicom(stream):
                return True
    return False


@contextmanager
def open_members(path: Path) -> Iterator[list[Member]]:
    """The DICOM files of a folder, or of a zip file with all folders in it, sorted by name.

    Files of other kinds are left out, but not those whose names say that they are DICOM.

    Raises:
        VolumeError: If there is none, or the zip file is damaged, locked, or unpacks to more than images can be.
    """
    if path.is_dir():
        yield _some(path, [_of_file(file) for file in sorted(path.iterdir()) if _belongs(file)])
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield _some(path, _of_archive(path, archive))
    except (OSError, *_DAMAGED) as error:
        raise VolumeError(
            f"{path} is no zip file that can be read: {error}", "Copy it again, or unpack it into a folder."
        ) from error


def _counts(name: str) -> bool:
    """Whether a file may be of a series: neither hidden nor the index of a disc."""
    return not name.startswith(".") and name.upper() != "DICOMDIR"


def _belongs(file: Path) -> bool:
    if not _counts(file.name) or not file.is_file():
        return False
    if is_dicom(file):
        return True
    if file.suffix.lower() == DICOM_SUFFIX:
        raise _no_dicom(str(file))
    return False


def _some(path: Path, members: list[Member]) -> list[Member]:
    if not members:
        raise VolumeError(f"{path} holds no DICOM files", "Name a folder or a zip file that holds those of one series.")
    return members


def _of_file(file: Path) -> Member:
    return Member(str(file), file.stat().st_size, lambda: file.open("rb"))


def _of_archive(path: Path, archive: zipfile.ZipFile) -> list[Member]:
    entries = [one for one in archive.infolist() if not one.is_dir() and _is_visible(one.filename)]
    total = sum(one.file_size for one in entries)
    if len(entries) > _MOST_MEMBERS or total > max(_PLAIN, _MOST_SHRUNK * path.stat().st_size):
        raise VolumeError(
            f"{path} says that it holds {len(entries)} files of {total / 1e9:.4g} GB in all, more than images can be",
            "If you trust it, unpack it into a folder and name that.",
        )
    return [
        member for one in sorted(entries, key=lambda one: one.filename) if (member := _of_entry(path, archive, one))
    ]


def _is_visible(name: str) -> bool:
    return _counts(PurePosixPath(name).name)


def _of_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Member | None:
    """A file in a zip file, or None if it is not of DICOM."""
    name = f"{path}, {entry.filename}"
    if entry.flag_bits & _LOCKED:
        raise VolumeError(f"{name} is locked by a password", "Unpack it into a folder and name that.")
    if entry.compress_type not in _KINDS or entry.file_size > _LARGEST_MEMBER:
        raise VolumeError(
            f"{name} is packed by method {entry.compress_type} to {entry.file_size} bytes",
            "Unpack it into a folder and name that.",
        )

    def unpacked() -> BinaryIO:
        try:
            with archive.open(entry) as stream:
                content = stream.read(entry.file_size + 1)
        except (OSError, *_DAMAGED) as error:
            raise VolumeError(f"{name} cannot be unpacked: {error}", "Copy the zip file again.") from error
        return io.BytesIO(content)

    with archive.open(entry) as stream:
        if _begins_as_dicom(stream):
            return Member(name, entry.file_size, unpacked)
    if PurePosixPath(entry.filename).suffix.lower() == DICOM_SUFFIX:
        raise _no_dicom(name)
    return None


def _begins_as_dicom(stream: object) -> bool:
    head: bytes = stream.read(_PREAMBLE + len(_DICM))  # type: ignore[attr-defined]
    return head[_PREAMBLE:] == _DICM


def _no_dicom(name: str) -> VolumeError:
    return VolumeError(f"{name} is no DICOM file, although its name says so", "Copy it again, or move it elsewhere.")
