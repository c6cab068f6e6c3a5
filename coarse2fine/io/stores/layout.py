"""What the metadata of a stored volume say about its arrays, whatever the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coarse2fine.errors import VolumeError
from coarse2fine.io.volume import Spacing

Floats = tuple[float, ...]
Units = tuple[str | None, str | None, str | None]

_LETTERS = {
    "z": "z",
    "y": "y",
    "x": "x",
    "c": "c",
    "ch": "c",
    "channel": "c",
    "channels": "c",
    "t": "t",
    "time": "t",
}
_DEFAULT = {5: "tczyx", 4: "czyx", 3: "zyx", 2: "yx"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user says about a volume; see ``open_store``."""

    array: str | None = None
    spacing: Spacing | None = None
    unit: str | None = None
    axes: str | None = None
    channel: int | None = None
    as_labels: bool = False

    def __post_init__(self) -> None:
        if self.spacing is not None and len(self.spacing) != 3:
            raise VolumeError(f"the spacing {self.spacing} is not three numbers (z, y, x)", "Give three (--spacing).")
        if self.axes is not None and (
            set(self.axes) - set("tczyx") or not set("zyx") <= set(self.axes) or len(set(self.axes)) != len(self.axes)
        ):
            raise VolumeError(
                f"the axes {self.axes!r} are not z, y and x, and perhaps c and t, once each",
                "Name all axes of the array in their order (--axes zyx, --axes tczyx).",
            )


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
    units: Units = (None, None, None)
    is_labels: str = ""
    files: tuple[str, ...] = ()


def name_axes(
    where: str, names: Sequence[str | None], shape: Sequence[int], given: str | None = None
) -> tuple[str, ...]:
    """The letters of an array's axes: as given, as named, or by their number if none is named.

    Arrays without names are (z, y, x); of four or five axes the others must have one entry, at the front or the end.

    Args:
        where: The array, for messages.
        names: What the metadata call its axes; empty or all None if they do not.
        shape: Its shape; empty if that is not known, then there must be names.
        given: What the user says.

    Raises:
        VolumeError: If they are not those of a volume.

    >>> name_axes("a", ["X", "Y", "Z", "channel"], ())
    ('x', 'y', 'z', 'c')
    >>> name_axes("a", [], (1, 30, 40, 50, 1))
    ('t', 'z', 'y', 'x', 'c')
    """
    if given is not None:
        if shape and len(given) != len(shape):
            raise VolumeError(
                f"{where} has {len(shape)} axes, not {len(given)} ({given}): its shape is {tuple(shape)}",
                f"Name all of them in their order (--axes {axes_example(shape)}).",
            )
        return tuple(given)
    if any(names):
        letters = [letter(name) for name in names]
        if all(letters.count(name) == 1 for name in "zyx") and all(letters) and len(set(letters)) == len(letters):
            return tuple(letters)
        raise VolumeError(
            f"{where}: its axes are {', '.join(str(name) for name in names)}; z, y and x are needed",
            f"Say what they are (--axes {axes_example(shape or names)}; c channels, t time), or name another array "
            "(--array).",
        )
    count, ones = len(shape), [n == 1 for n in shape]
    if count == 3:
        return tuple("zyx")
    if count == 4 and (ones[0] or ones[3]):
        return tuple("czyx" if ones[0] else "zyxc")
    if count == 5 and ones[0] and (ones[1] or ones[4]):
        return tuple("tczyx" if ones[1] else "tzyxc")
    raise VolumeError(
        f"{where} has shape {tuple(shape)} and no names of axes",
        f"Say what they are (--axes {axes_example(shape)}; c channels, t time), or name another array (--array)."
        if count >= 3
        else "It is no volume: name another array (--array).",
    )


def letter(name: str | None) -> str:
    """The letter of an axis that is called so; empty if nobody knows. funlib marks axes without extent by ``^``."""
    return _LETTERS.get(str(name).lower().rstrip("^"), "")


def axes_example(axes: Sequence[Any]) -> str:
    """Letters of so many axes, as an example."""
    return _DEFAULT.get(len(axes), "zyx")


def pick_channels(where: str, shape: Sequence[int], axes: Sequence[str], channel: int | None) -> list[int]:
    """The channels that are read, of an array with such axes.

    Raises:
        VolumeError: If there is no such channel, or more than one point in time.
    """
    lengths = dict(zip(axes, shape, strict=True))
    if lengths.get("t", 1) != 1:
        raise VolumeError(
            f"{where} has {lengths['t']} points in time",
            "Store one volume per point"
            + (
                f"; if that axis holds channels, say so (--axes {''.join(axes).replace('t', 'c')})."
                if "c" not in axes
                else "."
            ),
        )
    count = lengths.get("c", 1)
    if channel is None:
        if count > _MOST_CHANNELS:
            raise VolumeError(
                f"{where} has {count} channels",
                f"Name one (--channel 0) or, if they are none, all axes in their order (--axes {axes_example(shape)}).",
            )
        return list(range(count))
    if not 0 <= channel < count:
        raise VolumeError(f"{where} has no channel {channel}", f"It has {count}, counted from 0 (--channel).")
    return [channel]


_MOST_CHANNELS = 64


def by_axis(where: str, name: str, values: Sequence[float], axes: Sequence[str]) -> Floats:
    """Values of an array's axes, or of those in space only, as (z, y, x).

    Args:
        where: The array, for messages.
        name: What the metadata call the values.
        values: In the order of ``axes``.
        axes: Letters of the array's axes.

    Raises:
        VolumeError: If there is another number of them.

    >>> by_axis("a.n5", "resolution", [4, 5, 40], ["x", "y", "z", "c"])
    (40.0, 5.0, 4.0)
    """
    space = [axis for axis in axes if axis in "zyx"]
    for order in (list(axes), space):
        if len(values) == len(order):
            z, y, x = (float(values[order.index(axis)]) for axis in "zyx")
            return z, y, x
    raise VolumeError(
        f"{where}: {name} is not a list of {len(space)} numbers, one for each of {', '.join(space)}: {list(values)}",
        "Correct it, or give the spacing and its unit (--spacing, --unit) and remove it.",
    )


def units_by_axis(units: str | Sequence[str | None] | None, axes: Sequence[str]) -> Units:
    """Units of an array's axes as (z, y, x); None where the metadata do not tell."""
    if units is None or isinstance(units, str):
        return (units, units, units)
    space = [axis for axis in axes if axis in "zyx"]
    for order in (list(axes), space):
        if len(units) == len(order):
            z, y, x = (units[order.index(axis)] or None for axis in "zyx")
            return z, y, x
    return (None, None, None)
