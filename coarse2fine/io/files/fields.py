"""Text headers of strangers: typed fields, checked before any library sees them.

This is for safety: SimpleITK holds such values in buffers of a fixed size, and some of them end the process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from canvas import Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.files.headers import Layout

_LONGEST_HEADER = 1 << 20  # bytes
_LONGEST_VALUE = 4000  # characters; libraries hold values in buffers of a fixed size
_MOST_AXES = 8
_INTEGER = re.compile(r"[-+]?\d{1,18}", re.ASCII)
_REAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a file says, checked.

    Attributes:
        shape: Voxels per axis (z, y, x).
        layout: Where and how they are stored.
        vetted: A header of the same format, of checked values only and without voxels, for libraries to read the
            geometry from.
    """

    shape: Triple
    layout: Layout
    vetted: bytes


def read_text(path: Path, last: bytes) -> tuple[list[str], int]:
    """The lines of a text header up to the end of the first match of ``last``, and where voxels may begin.

    A file without a match is all header.

    Raises:
        VolumeError: If the header is too long to be one.
    """
    with path.open("rb") as stream:
        head = stream.read(_LONGEST_HEADER + 1)
    match = re.search(last, head, re.MULTILINE)
    if match is None and len(head) > _LONGEST_HEADER:
        raise damaged(path, f"its header does not end within {_LONGEST_HEADER} bytes")
    end = match.end() if match else len(head)
    lines = head[:end].decode("latin-1").replace("\r\n", "\n").split("\n")
    if any(len(line) > _LONGEST_VALUE for line in lines):
        raise damaged(path, f"its header has a line of more than {_LONGEST_VALUE} characters")
    return lines, end


def axis_count(path: Path, name: str, text: str) -> int:
    """The number of axes that a field gives.

    Raises:
        VolumeError: If it is no number, or more than a volume has.
    """
    axes = integers(path, name, text, 1)[0]
    if not 1 <= axes <= _MOST_AXES:
        raise odd(path, name, str(axes), "the number of axes")
    return axes


def integers(path: Path, name: str, text: str, count: int) -> tuple[int, ...]:
    """The whole numbers of a field.

    Raises:
        VolumeError: If it holds anything else, or more or fewer of them.
    """
    return tuple(map(int, _parts(path, name, text, count, _INTEGER, "whole number")))


def reals(path: Path, name: str, text: str, count: int) -> tuple[float, ...]:
    """The finite numbers of a field.

    Raises:
        VolumeError: If it holds anything else, or more or fewer of them.
    """
    values = tuple(map(float, _parts(path, name, text, count, _REAL, "number")))
    if not all(map(math.isfinite, values)):
        raise odd(path, name, text, "finite numbers")
    return values


def _parts(path: Path, name: str, text: str, count: int, form: re.Pattern[str], what: str) -> list[str]:
    """So many words of a form."""
    parts = text.split()
    if len(parts) != count or not all(map(form.fullmatch, parts)):
        raise odd(path, name, text, f"{count} {what}{'s' * (count > 1)}")
    return parts


def shape_of(path: Path, sizes: tuple[int, ...]) -> Triple:
    """The shape (z, y, x) of a file with these sizes (x, y, z, and of further axes, which must be 1).

    Raises:
        VolumeError: If they are not those of one volume.
    """
    if min(sizes) < 1:
        raise VolumeError(
            f"{path} holds no voxels: the header states the size {_by(sizes)}", "It may be damaged: copy it again."
        )
    if len(sizes) < 3 or max(sizes[3:], default=1) > 1:
        raise VolumeError(
            f"{path} has {len(sizes)} dimensions: {_by(sizes)}",
            "Stack slices into one volume; split channels or time points into one file each, NAME_0000, NAME_0001, ...",
        )
    return triple(reversed(sizes[:3]))


def beside(path: Path, name: str) -> Path:
    """The file of voxels that a header names, which must lie in the header's own folder or below.

    Raises:
        VolumeError: If it lies elsewhere, behind a link to elsewhere too, or is no regular file.
    """
    outside = "Put the voxels beside the header, as a file of their own, and write its plain name into the header."
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
        raise VolumeError(f"{path} names voxels outside of its folder: {name}", outside)
    file = path.parent / name
    if not file.is_file():
        is_there = "is not a regular file" if file.exists() else "does not exist"
        raise VolumeError(f"{path} says that its voxels are in {file}, which {is_there}", outside)
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise VolumeError(f"{path} names voxels outside of its folder: {name} is a link to {file.resolve()}", outside)
    return file


def damaged(path: Path, what: str) -> VolumeError:
    """The error of a file that is no valid file of its format."""
    return VolumeError(f"{path} cannot be read: {what}", "It may be damaged or misnamed: copy it again.")


def odd(path: Path, name: str, text: str, expected: str) -> VolumeError:
    """The error of a field with a value that it cannot have."""
    shown = text if len(text) <= 60 else text[:60] + "..."
    return VolumeError(
        f"{path}: the header says {name} = {shown!r}, but {expected} should be there", "Correct the header."
    )


def joined(numbers: Iterable[float]) -> str:
    """Numbers as text that loses nothing."""
    return " ".join(map(repr, numbers))


def _by(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))
