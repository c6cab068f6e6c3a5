"""What the metadata of a chunked store say about its arrays, whatever the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coarse2fine.errors import VolumeError

Floats = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """One array: a volume at one resolution.

    Attributes:
        path: Of its folder, below the store.
        axes: Name of each of the array's axes: "z", "y", "x" once each, and any of "c" (channels) and "t" (time).
        spacing: (z, y, x) as the metadata state it; None if they do not.
        offset: Position of the first voxel (z, y, x), in the same units.
        options: What tensorstore must know to open it, beside its path.
    """

    path: str
    axes: tuple[str, ...]
    spacing: Floats | None = None
    offset: Floats = (0.0, 0.0, 0.0)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """The arrays of one volume.

    Attributes:
        format: Name of the format, for people.
        driver: tensorstore's name of it.
        levels: At least one.
        units: Of the spacing, per axis (z, y, x), as the metadata spell them.
        is_labels: What in the metadata says that the voxels are labels; empty if nothing does.
        files: Keys of the metadata that this was read from.
    """

    format: str
    driver: str
    levels: tuple[Level, ...]
    units: tuple[str | None, str | None, str | None] = (None, None, None)
    is_labels: str = ""
    files: tuple[str, ...] = ()


def check_axes(where: str, axes: Sequence[str]) -> tuple[str, ...]:
    """The names of an array's axes, if they are a volume's.

    Raises:
        VolumeError: If z, y or x is missing, or there are others than c and t.
    """
    if any(axes.count(name) != 1 for name in "zyx") or any(axes.count(name) > (name in "zyxct") for name in axes):
        raise VolumeError(
            f"{where}: its axes are {', '.join(map(str, axes)) or 'not named'}; z, y and x are needed",
            "Only volumes, with channels (c) and one point in time (t) at most, can be segmented; correct its metadata "
            "or name another array (--array).",
        )
    return tuple(axes)


def numbers(where: str, name: str, values: Any, count: int) -> Floats:
    """A list of numbers of a JSON file.

    Raises:
        VolumeError: If it is not a list of so many numbers.
    """
    is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count
    if not is_list or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise VolumeError(f"{where}: {name} is not a list of {count} numbers: {values!r}", "Correct its metadata.")
    return tuple(float(value) for value in values)
