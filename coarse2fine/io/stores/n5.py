"""N5 stores (https://github.com/saalfeldlab/n5) and their multi-resolution conventions.

An array's axes are (x, y, z) unless ``axes`` names them; lists of numbers follow the same order, as tensorstore reads
them. A multi-resolution group holds arrays ``s0``, ``s1``, ... Their factors are in ``scales`` or
``downsamplingFactors`` of the group (of BigDataViewer's stores: of the group above) or in ``downsamplingFactors`` of
each array; the spacing of ``s0`` in ``pixelResolution`` or ``resolution`` of the group or the array. OpenOrganelle's
``transform`` of an array, which names its own axes, is preferred where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coarse2fine.errors import VolumeError
from coarse2fine.io.stores.contents import arrays_remedy
from coarse2fine.io.stores.layout import Floats, Layout, Level, Units, Wanted, by_axis, name_axes, units_by_axis
from coarse2fine.io.stores.schema import N5Array, N5Attributes, N5PixelResolution, N5Transform, parse
from coarse2fine.io.stores.tensors import Store
from coarse2fine.io.stores.units import nanometres

_FILE = "attributes.json"
_MOST_LEVELS = 32
_AXES = ("x", "y", "z", "c", "t")


@dataclass(frozen=True, slots=True)
class _Array:
    """An array's metadata, and those of the group it lies in."""

    where: str
    path: str
    shape: Sequence[int]
    own: N5Attributes
    group: N5Attributes


def find_n5(store: Store, wanted: Wanted) -> Layout | None:
    """The volume of an N5 store; None if it is no such store.

    Args:
        store: The store.
        wanted: Whose ``array`` is the path of an array or multi-resolution group in it; None for what is at its top.

    Raises:
        VolumeError: If there is none, or its metadata are not valid.
    """
    path = (wanted.array or "").strip("/")
    node = store.child(path)
    top, attributes = store.read_json(_FILE), node.read_json(_FILE)
    if top is None and attributes is None:
        return None
    is_array = attributes is not None and "dimensions" in attributes
    first = None if is_array else node.child("s0").read_json(_FILE)
    if attributes is None and first is None:
        raise VolumeError(f"{store.where} has no array {path}", arrays_remedy(store))
    if not is_array and first is None:
        raise VolumeError(f"{node.where} is an N5 group without arrays s0, s1, ...", arrays_remedy(store, path))
    parent = _group_above(store, path)
    group = parse(N5Attributes, f"{node.where}/{_FILE}", attributes or {})
    if is_array:
        number = re.fullmatch(r"s(\d{1,2})", path.rpartition("/")[2])
        own = _array(node, path, attributes or {}, parent)
        level, units = _level(own, int(number[1]) if number else None, wanted.axes)
        return Layout("N5", "n5", (level,), units, files=(_below(path, _FILE),))
    group = _with_factors(group, parent)
    pairs = [
        _level(_array(node.child(f"s{number}"), _below(path, f"s{number}"), stated, group), number, wanted.axes)
        for number, stated in enumerate(_arrays(node, path, group, first or {}))
    ]
    if wanted.unit is None:
        _check_units(node.where, pairs)
    files = ((_below(path, _FILE),) if attributes is not None else ()) + (_below(path, f"s0/{_FILE}"),)
    return Layout("N5", "n5", tuple(level for level, _ in pairs), pairs[0][1], files=files)


def _check_units(where: str, levels: Sequence[tuple[Level, Units]]) -> None:
    """Refuses levels that say where they lie in different units: one volume has one."""
    (finest, units), *others = levels
    for level, own in others:
        pairs = zip(own, units, strict=True)
        if level.spacing and any(a and b and nanometres(where, a) != nanometres(where, b) for a, b in pairs):
            raise VolumeError(
                f"{where}: the units of {level.path} are {own} (z, y, x), those of {finest.path} {units}",
                f"Correct the units in its metadata, or name one resolution (--array {finest.path}).",
            )


def _group_above(store: Store, path: str) -> N5Attributes:
    """Attributes of the group that an array or group lies in, with the factors of the one above that."""
    parts = path.split("/") if path else []
    places = ["/".join(parts[:-depth]) for depth in (1, 2) if depth <= len(parts)]
    stated = [store.child(place).read_json(_FILE) or {} for place in places]
    group, above = (parse(N5Attributes, f"{store.where}/{_FILE} above {path}", one) for one in [*stated, {}, {}][:2])
    return _with_factors(group, above)


def _with_factors(group: N5Attributes, above: N5Attributes) -> N5Attributes:
    """BigDataViewer lists the factors of a group's arrays above the group."""
    if _factors(group) is None and above.factors is not None:
        return group.model_copy(update={"factors": above.factors})
    return group


def _below(path: str, name: str) -> str:
    return f"{path}/{name}".lstrip("/")


def _array(store: Store, path: str, stated: Mapping[str, Any], group: N5Attributes) -> _Array:
    where = f"{store.where}/{_FILE}"
    shape = parse(N5Array, where, stated).dimensions
    return _Array(where, path, shape, parse(N5Attributes, where, stated), group)


def _arrays(node: Store, path: str, group: N5Attributes, first: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Attributes of the arrays s0, s1, ...: as many as the group lists, or else as there are."""
    factors = _factors(group)
    found = [first]
    while len(found) < (_MOST_LEVELS if factors is None else len(factors)):
        attributes = node.child(f"s{len(found)}").read_json(_FILE)
        if attributes is None:
            if factors is not None:
                raise VolumeError(
                    f"{node.where}: its metadata list {len(factors)} scales, s{len(found)} does not exist",
                    f"Copy the store again, or name one array (--array {_below(path, 's0')}).",
                )
            break
        found.append(attributes)
    return found


def _factors(group: N5Attributes) -> list[Any] | None:
    """Factors of each level, if the group lists them."""
    return next((list(f) for f in (group.scales, group.factors) if f and isinstance(f[0], list)), None)


def _level(array: _Array, number: int | None, given: str | None) -> tuple[Level, Units]:
    """A level and its units; ``number`` is its place in the group's scales, as its name has it, if it has one."""
    own, group, where = array.own, array.group, array.where
    rank = len(array.shape)
    shared = group.axes if group.axes and len(group.axes) == rank else None
    axes = name_axes(where, own.axes or shared or _AXES[:rank], array.shape, given)
    transform = own.transform or _listed_transform(group, array.path)
    if transform is not None:
        return _of_transform(where, array.path, transform, axes)
    # Lists of the group follow its own order of axes, if it names them.
    of_group = name_axes(where, shared, (), given) if shared else axes
    base, units = _resolution(where, own, axes)
    stated = base is not None
    if not stated:
        base, units = _resolution(where, group, of_group)
    factors: Floats | None = None
    listed = _factors(group)
    if own.factors is not None:
        factors = by_axis(where, "downsamplingFactors", _flat(where, own.factors), axes)
    elif not stated and number is not None and listed is not None and number < len(listed):
        factors = by_axis(where, "factors", listed[number], of_group)
    elif not stated and number:
        base = None
    shift: Floats = (0.0, 0.0, 0.0)
    if base and factors is not None:
        # A voxel is the mean of so many, as n5-viewer shows it: its centre lies further inside than that of the first.
        shift = tuple(b * (f - 1) / 2 for b, f in zip(base, factors, strict=True))
        base = tuple(b * f for b, f in zip(base, factors, strict=True))
    offset = by_axis(where, "offset", own.offset, axes) if own.offset is not None else shift
    return Level(array.path, axes, base, offset), units


def _flat(where: str, factors: Sequence[Any]) -> Sequence[float]:
    if factors and isinstance(factors[0], list):
        raise VolumeError(f"{where}: downsamplingFactors is not a list of 3 numbers: {factors}", "Correct it.")
    return factors


def _resolution(where: str, stated: N5Attributes, axes: Sequence[str]) -> tuple[Floats | None, Units]:
    """Spacing (z, y, x) and units."""
    pixel = stated.pixel_resolution
    if isinstance(pixel, N5PixelResolution):
        return by_axis(where, "pixelResolution", pixel.dimensions, axes), (pixel.unit,) * 3
    units = units_by_axis(stated.units, axes)
    for name, values in (("pixelResolution", pixel), ("resolution", stated.resolution)):
        if values is not None:
            return by_axis(where, name, values, axes), units
    return None, units


def _listed_transform(group: N5Attributes, path: str) -> N5Transform | None:
    """The transform that a group's ``multiscales`` has for one of its arrays."""
    datasets = group.multiscales[0].datasets if group.multiscales else []
    return next((one.transform for one in datasets if one.path.strip("/") == path.rpartition("/")[2]), None)


def _of_transform(where: str, path: str, transform: N5Transform, axes: tuple[str, ...]) -> tuple[Level, Units]:
    """OpenOrganelle's convention, whose order of axes is its own."""
    names = name_axes(f"{where}: transform", transform.axes, ())
    scale = by_axis(where, "scale", transform.scale, names)
    shift = by_axis(where, "translate", transform.translate, names) if transform.translate else (0.0, 0.0, 0.0)
    return Level(path, axes, scale, shift), units_by_axis(transform.units, names)
