"""N5 stores (https://github.com/saalfeldlab/n5), whose axes are (x, y, z), and their multi-resolution conventions.

A multi-resolution group holds arrays ``s0``, ``s1``, ... Their factors are in ``scales`` or ``downsamplingFactors`` of
the group or in ``downsamplingFactors`` of each array; the spacing of ``s0`` in ``pixelResolution`` or ``resolution`` of
the group or the array. OpenOrganelle's ``transform`` of an array, which names its axes, is preferred where there is
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coarse2fine.errors import VolumeError
from coarse2fine.io.layout import Floats, Layout, Level, check_axes, numbers
from coarse2fine.io.tensors import Store

_FILE = "attributes.json"
_MOST_LEVELS = 32
_AXES = ("x", "y", "z", "c", "t")

_Units = tuple[str | None, str | None, str | None]


def find_n5(store: Store, array: str | None) -> Layout | None:
    """The volume of an N5 store; None if it is no such store.

    Args:
        store: The store.
        array: Path of an array or multi-resolution group in it; None for what is at its top.

    Raises:
        VolumeError: If there is none, or its metadata are not valid.
    """
    top = store.read_json(_FILE)
    path = array.strip("/") if array else ""
    node = store.child(path)
    attributes = top if not path else node.read_json(_FILE)
    if top is None and attributes is None:
        return None
    first = node.child("s0").read_json(_FILE) if "dimensions" not in (attributes or {}) else None
    if attributes is None and first is None:
        raise VolumeError(f"{store.where} has no array {array}", "Check the name of the array.")
    group = attributes or {}
    prefix = f"{path}/" if path else ""
    if "dimensions" in group:
        parent = store.child(path.rpartition("/")[0]).read_json(_FILE) if path else None
        level, units = _level(node.where, path, group, parent or {}, None)
        return Layout("N5", "n5", (level,), units, files=(f"{prefix}{_FILE}",))
    if first is None:
        raise VolumeError(
            f"{node.where} is an N5 group without arrays s0, s1, ...", "Name an array or group in it (--array)."
        )
    found = _arrays(node, group, first)
    pairs = [
        _level(f"{node.where}/s{number}", f"{prefix}s{number}", attributes, group, number)
        for number, attributes in enumerate(found)
    ]
    levels = tuple(level for level, _ in pairs)
    files = ((f"{prefix}{_FILE}",) if attributes is not None else ()) + (f"{prefix}s0/{_FILE}",)
    return Layout("N5", "n5", levels, pairs[0][1], files=files)


def _arrays(node: Store, group: Mapping[str, Any], first: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Attributes of the arrays s0, s1, ...: as many as the group lists, or else as there are."""
    factors = _factors(group)
    listed = None if factors is None else len(factors)
    found = [first]
    while len(found) < (listed or _MOST_LEVELS):
        attributes = node.child(f"s{len(found)}").read_json(_FILE)
        if attributes is None:
            if listed is not None:
                raise VolumeError(
                    f"{node.where}: its metadata list {listed} scales, s{len(found)} does not exist",
                    "The store is incomplete: copy it again.",
                )
            break
        found.append(attributes)
    return found


def _factors(group: Mapping[str, Any]) -> list[Any] | None:
    """Factors of each level, if the group lists them."""
    for name in ("scales", "downsamplingFactors"):
        if isinstance(group.get(name), list) and group[name]:
            return list(group[name])
    return None


def _level(
    where: str, path: str, own: Mapping[str, Any], group: Mapping[str, Any], number: int | None
) -> tuple[Level, _Units]:
    """A level and its units; ``number`` is its place in the group's scales, if it has one."""
    rank = len(own.get("dimensions", ()))
    named = own.get("axes", group.get("axes"))
    axes = check_axes(where, named if isinstance(named, list) and len(named) == rank else _AXES[:rank])
    if isinstance(own.get("transform"), Mapping):
        return _of_transform(where, path, own["transform"], axes)
    factors = own.get("downsamplingFactors")
    own_base, own_unit = _resolution(where, own)
    base, unit = (own_base, own_unit) if own_base else _resolution(where, group)
    listed = _factors(group)
    if factors is None and not own_base and number is not None and listed is not None:
        factors = listed[number]
    if factors is None and not own_base and number:
        base = None
    if base and factors is not None:
        base = tuple(b * f for b, f in zip(base, numbers(where, "downsamplingFactors", factors, 3), strict=True))
    offset = numbers(where, "offset", own["offset"], 3) if "offset" in own else (0.0, 0.0, 0.0)
    return Level(path, axes, base[::-1] if base else None, offset[::-1]), (unit, unit, unit)


def _resolution(where: str, attributes: Mapping[str, Any]) -> tuple[Floats | None, str | None]:
    """Spacing (x, y, z) and unit."""
    pixel = attributes.get("pixelResolution")
    if isinstance(pixel, Mapping):
        unit = pixel.get("unit")
        return numbers(where, "pixelResolution", pixel.get("dimensions"), 3), unit if isinstance(unit, str) else None
    units = attributes.get("units")
    unit = units[0] if isinstance(units, list) and units and len(set(map(str, units))) == 1 else None
    for name in ("pixelResolution", "resolution"):
        if name in attributes:
            return numbers(where, name, attributes[name], 3), unit
    return None, None


def _of_transform(where: str, path: str, transform: Mapping[str, Any], axes: tuple[str, ...]) -> tuple[Level, _Units]:
    """OpenOrganelle's convention, whose order of axes is its own."""
    names = transform.get("axes")
    if not isinstance(names, list) or sorted(map(str, names)) != ["x", "y", "z"]:
        raise VolumeError(f"{where}: the axes of its transform are {names!r}", "Correct its metadata.")
    order = [names.index(axis) for axis in "zyx"]
    scale = numbers(where, "scale", transform.get("scale"), 3)
    shift = numbers(where, "translate", transform.get("translate", [0, 0, 0]), 3)
    units = transform.get("units")
    z, y, x = (units[i] for i in order) if isinstance(units, list) and len(units) == 3 else (None, None, None)
    level = Level(path, axes, tuple(scale[i] for i in order), tuple(shift[i] for i in order))
    return level, (z, y, x)
