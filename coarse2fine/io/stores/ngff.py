"""Zarr stores: OME-NGFF images (https://ngff.openmicroscopy.org, versions 0.4 and 0.5) and plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from canvas import Triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.stores.contents import arrays_remedy
from coarse2fine.io.stores.layout import Floats, Layout, Level, Wanted, by_axis, name_axes, units_by_axis
from coarse2fine.io.stores.schema import (
    Ngff,
    NgffAxis,
    NgffImage,
    NgffTransform,
    PlainAttributes,
    Zarr2Array,
    Zarr3Array,
    parse,
)
from coarse2fine.io.stores.tensors import Store
from coarse2fine.io.volume import Grid

_WORDS = {"nm": "nanometer", "mm": "millimeter"}


@dataclass(frozen=True, slots=True)
class _Node:
    """A group or array: its user attributes, and what its format says about it."""

    store: Store
    driver: str
    array: Zarr2Array | Zarr3Array | None
    attributes: Mapping[str, Any]
    files: tuple[str, ...]

    @property
    def ome(self) -> Mapping[str, Any]:
        """The attributes that OME-NGFF defines; version 0.5 keeps them together."""
        inner = self.attributes.get("ome")
        return inner if isinstance(inner, Mapping) else self.attributes


def find_zarr(store: Store, wanted: Wanted) -> Layout | None:
    """The image or array of a zarr store, version 2 or 3; None if it is no zarr store.

    Args:
        store: The store.
        wanted: Whose ``array`` is the path of an image or array in it, or of one resolution of its image; None for
            what is at its top.

    Raises:
        VolumeError: If there is none, or its metadata are not valid.
    """
    node = _read_node(store)
    path = (wanted.array or "").strip("/")
    if path:
        image = _level_of_image(store, node, path, wanted)
        if image is not None:
            return image
        parent, node = node, _read_node(store.child(path))
        if node is None and parent is not None:
            raise VolumeError(f"{store.where} has no array {path}", arrays_remedy(store))
    if node is None:
        return None
    prefix = f"{path}/" if path else ""
    if "multiscales" in node.ome:
        return _below(prefix, _image(node, wanted))
    if node.array is None:
        raise VolumeError(
            f"{node.store.where} is a zarr group without OME-NGFF metadata (multiscales) at its top",
            arrays_remedy(store, path),
        )
    return _below(prefix, _plain(node, node.array, wanted.axes))


def _level_of_image(store: Store, top: _Node | None, path: str, wanted: Wanted) -> Layout | None:
    """The one resolution at a path, of the image at the store's top or at a group above it; None if it is none."""
    parts = path.split("/")
    for depth in range(len(parts)):
        group = "/".join(parts[:depth])
        node = _read_node(store.child(group)) if group else top
        if node is not None and "multiscales" in node.ome:
            image = _below(f"{group}/".lstrip("/"), _image(node, wanted))
            levels = tuple(level for level in image.levels if level.path == path)
            if levels:
                return replace(image, levels=levels)
    return None


def group_metadata(grid: Grid, factors: Sequence[Triple], name: str) -> dict[str, Any]:
    """The zarr.json that makes arrays "0", "1", ... an OME-NGFF 0.5 label image.

    Args:
        grid: Grid of the finest level.
        factors: Voxels (z, y, x) of the finest level that one voxel of each level stands for.
        name: Name of the image.
    """
    datasets = []
    for number, factor in enumerate(factors):
        scale = [length * times for length, times in zip(grid.spacing, factor, strict=True)]
        # A coarse voxel's centre is the centre of the voxels that it stands for.
        shift = [o + (f - 1) / 2 * s for o, f, s in zip(grid.origin, factor, grid.spacing, strict=True)]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(number), "coordinateTransformations": transforms})
    axes = [{"name": axis, "type": "space", "unit": _WORDS[grid.unit]} for axis in "zyx"]
    image = {"name": name, "type": "mode", "axes": axes, "datasets": datasets}
    ome = {"version": "0.5", "multiscales": [image], "image-label": {}}
    return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}


def _read_node(store: Store) -> _Node | None:
    metadata = store.read_json("zarr.json")
    if metadata is not None:
        where = f"{store.where}/zarr.json"
        attributes = _mapping(where, "attributes", metadata.get("attributes"))
        array = parse(Zarr3Array, where, metadata) if metadata.get("node_type") == "array" else None
        return _Node(store, "zarr3", array, attributes, ("zarr.json",))
    present = {key: store.read_json(key) for key in (".zgroup", ".zarray", ".zattrs")}
    if all(value is None for value in present.values()):
        return None
    files = tuple(key for key, value in present.items() if value is not None)
    stated = present[".zarray"]
    old = None if stated is None else parse(Zarr2Array, f"{store.where}/.zarray", stated)
    return _Node(store, "zarr", old, present[".zattrs"] or {}, files)


def check_array(store: Store, driver: str) -> None:
    """Refuses metadata of an array that are no such thing, before a library sees them.

    Raises:
        VolumeError: If they are not valid.
    """
    if driver == "zarr3" and (stated := store.read_json("zarr.json")) is not None:
        parse(Zarr3Array, f"{store.where}/zarr.json", stated)
    if driver == "zarr" and (stated := store.read_json(".zarray")) is not None:
        parse(Zarr2Array, f"{store.where}/.zarray", stated)


def _mapping(where: str, name: str, value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise VolumeError(f"{where}: {name} is no JSON object", "Correct this member.")
    return value or {}


def _plain(node: _Node, array: Zarr2Array | Zarr3Array, given: str | None) -> Layout:
    """An array by itself, which may say where it lies by attributes that funlib.persistence and xarray write."""
    where = node.store.where
    stated = parse(PlainAttributes, where, node.attributes)
    version, names = ("3", array.dimension_names) if isinstance(array, Zarr3Array) else ("2", None)
    if not any(names or ()):
        names = stated.axis_names or stated.dimensions
    axes = name_axes(where, names or (), array.shape, given)
    size = stated.voxel_size or stated.resolution
    spacing = by_axis(where, "voxel_size" if stated.voxel_size else "resolution", size, axes) if size else None
    offset = by_axis(where, "offset", stated.offset, axes) if stated.offset else (0.0, 0.0, 0.0)
    level = Level("", axes, spacing, offset)
    return Layout(f"zarr v{version}", node.driver, (level,), units_by_axis(stated.units, axes), files=node.files)


def _image(node: _Node, wanted: Wanted) -> Layout:
    """The levels of an OME-NGFF image."""
    where = node.store.where
    ome = parse(Ngff, where, node.ome)
    first = _mapping(f"{where}: multiscales", "entry 0", ome.multiscales[0])
    image = parse(NgffImage, f"{where}: multiscales.0", first)
    version = ome.version or image.version
    stated = image.transforms or any(dataset.transforms for dataset in image.datasets)
    if image.axes is None and wanted.axes is None and (stated or version not in (None, "0.1", "0.2")):
        raise VolumeError(
            f"{where}: its OME-NGFF metadata (multiscales) lack axes", "Name them in their order (--axes zyx)."
        )
    axes = image.axes if image.axes is not None else list(wanted.axes or "tczyx")  # as 0.1 and 0.2 have it
    names = name_axes(where, [_name(axis) for axis in axes], (), None) if wanted.axes is None else tuple(wanted.axes)
    if wanted.axes is not None and image.axes is not None and len(names) != len(axes):
        name_axes(where, (), [0] * len(axes), wanted.axes)
    units = [axis.unit if isinstance(axis, NgffAxis) else None for axis in axes]
    levels = []
    order = [names.index(axis) for axis in "zyx"]
    for dataset in image.datasets:
        transforms = [*(dataset.transforms or ()), *(image.transforms or ())]
        scale, shift = _combined(f"{where}/{dataset.path}", transforms, len(names))
        spacing = tuple(scale[i] for i in order) if dataset.transforms else None
        levels.append(Level(dataset.path.strip("/"), names, spacing, tuple(shift[i] for i in order)))
    is_labels = "its OME-NGFF metadata hold image-label" if "image-label" in node.ome else ""
    in_space = units_by_axis(units, names) if len(units) == len(names) else (None, None, None)
    return Layout(f"OME-NGFF {version or '0.4'}", node.driver, tuple(levels), in_space, is_labels, node.files)


def _name(axis: NgffAxis | str) -> str:
    """What an axis stands for: channels and time by their type, however they are named."""
    if isinstance(axis, str):
        return axis
    return axis.type if axis.type in ("channel", "time") else axis.name


def _combined(where: str, transforms: Sequence[NgffTransform], rank: int) -> tuple[Floats, Floats]:
    """Scale and translation of transforms that are applied one after the other."""
    scale, shift = [1.0] * rank, [0.0] * rank
    for transform in transforms:
        values = {"scale": transform.scale, "translation": transform.translation}.get(transform.type)
        if values is None and transform.type != "identity":
            raise VolumeError(
                f"{where}: a coordinate transformation is of type {transform.type!r}, without numbers",
                "Scale and translation are understood: correct its metadata, or resample the volume.",
            )
        if values is not None and len(values) != rank:
            raise VolumeError(
                f"{where}: {transform.type} is not a list of {rank} numbers: {values}",
                "Give one for each axis of the image.",
            )
        if transform.type == "scale" and values:
            scale = [s * f for s, f in zip(scale, values, strict=True)]
            shift = [s * f for s, f in zip(shift, values, strict=True)]
        elif values:
            shift = [s + m for s, m in zip(shift, values, strict=True)]
    return tuple(scale), tuple(shift)


def _below(prefix: str, layout: Layout) -> Layout:
    """The layout with paths from the store's top."""
    levels = tuple(replace(level, path=f"{prefix}{level.path}".rstrip("/")) for level in layout.levels)
    return replace(layout, levels=levels, files=tuple(f"{prefix}{file}" for file in layout.files))
