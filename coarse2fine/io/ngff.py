"""Zarr stores: OME-NGFF images (https://ngff.openmicroscopy.org, versions 0.4 and 0.5) and plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from canvas import Triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.layout import Floats, Layout, Level, check_axes, numbers
from coarse2fine.io.tensors import Store
from coarse2fine.io.volume import Grid

_WORDS = {"nm": "nanometer", "mm": "millimeter"}


@dataclass(frozen=True, slots=True)
class _Node:
    """A group or array: its user attributes, and what its format says about it."""

    store: Store
    driver: str
    is_array: bool
    names: Sequence[str] | None
    attributes: Mapping[str, Any]
    files: tuple[str, ...]

    @property
    def ome(self) -> Mapping[str, Any]:
        """The attributes that OME-NGFF defines; version 0.5 keeps them together."""
        inner = self.attributes.get("ome")
        return inner if isinstance(inner, Mapping) else self.attributes


def find_zarr(store: Store, array: str | None) -> Layout | None:
    """The image or array of a zarr store, version 2 or 3; None if it is no zarr store.

    Args:
        store: The store.
        array: Path of an image or array in it, or of one resolution of its image; None for what is at its top.

    Raises:
        VolumeError: If there is none, or its metadata are not valid.
    """
    node = _read_node(store)
    if array is not None:
        levels = _image(node).levels if node and "multiscales" in node.ome else ()
        chosen = tuple(level for level in levels if level.path.strip("/") == array.strip("/"))
        if node and chosen:
            image = _image(node)
            return Layout(image.format, image.driver, chosen, image.units, image.is_labels, image.files)
        has_parent, node = node is not None, _read_node(store.child(array))
        if node is None:
            if not has_parent:
                return None
            raise VolumeError(f"{store.where} has no array {array}", "Check the name of the array.")
    if node is None:
        return None
    prefix = f"{array.strip('/')}/" if array and array.strip("/") else ""
    if "multiscales" in node.ome:
        return _below(prefix, _image(node))
    if not node.is_array:
        raise VolumeError(
            f"{node.store.where} is a zarr group without OME-NGFF metadata (multiscales) at its top",
            "Name an image or array in it (--array); an unfinished result has none.",
        )
    axes = check_axes(node.store.where, node.names) if node.names and all(node.names) else ("z", "y", "x")
    version = "3" if node.driver == "zarr3" else "2"
    return _below(prefix, Layout(f"zarr v{version}", node.driver, (Level("", axes),), files=node.files))


def group_metadata(grid: Grid, factors: Sequence[Triple], name: str) -> dict[str, Any]:
    """The zarr.json that makes arrays "0", "1", ... an OME-NGFF 0.5 label image.

    Args:
        grid: Grid of the finest level.
        factors: Voxels (z, y, x) of the finest level that one voxel of each level stands for.
        name: Name of the image.
    """
    origin = grid.origin[::-1]
    datasets = []
    for number, factor in enumerate(factors):
        scale = [length * times for length, times in zip(grid.spacing, factor, strict=True)]
        # A coarse voxel's centre is the centre of the voxels that it stands for.
        shift = [o + (f - 1) / 2 * s for o, f, s in zip(origin, factor, grid.spacing, strict=True)]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(number), "coordinateTransformations": transforms})
    axes = [{"name": axis, "type": "space", "unit": _WORDS[grid.unit]} for axis in "zyx"]
    image = {"name": name, "type": "mode", "axes": axes, "datasets": datasets}
    ome = {"version": "0.5", "multiscales": [image], "image-label": {}}
    return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}


def _read_node(store: Store) -> _Node | None:
    metadata = store.read_json("zarr.json")
    if metadata is not None:
        is_array = metadata.get("node_type") == "array"
        names = metadata.get("dimension_names")
        return _Node(store, "zarr3", is_array, names, metadata.get("attributes") or {}, ("zarr.json",))
    group, array = store.read_json(".zgroup"), store.read_json(".zarray")
    attributes = store.read_json(".zattrs")
    if group is None and array is None and attributes is None:
        return None
    present = {".zgroup": group, ".zarray": array, ".zattrs": attributes}
    files = tuple(key for key, value in present.items() if value is not None)
    return _Node(store, "zarr", array is not None, None, attributes or {}, files)


def _image(node: _Node) -> Layout:
    """The levels of an OME-NGFF image."""
    where = node.store.where
    try:
        image = node.ome["multiscales"][0]
        axes = [axis if isinstance(axis, str) else axis["name"] for axis in image["axes"]]
        datasets = [(str(dataset["path"]), dataset.get("coordinateTransformations")) for dataset in image["datasets"]]
        units = {axis["name"]: axis.get("unit") for axis in image["axes"] if isinstance(axis, Mapping)}
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise VolumeError(
            f"{where}: its OME-NGFF metadata (multiscales) lack axes or datasets",
            "Convert it to OME-NGFF 0.4 or 0.5, or name one array (--array) and give its spacing (--spacing, --unit).",
        ) from error
    names = check_axes(where, axes)
    if not datasets:
        raise VolumeError(f"{where}: its OME-NGFF metadata list no datasets", "It may be incomplete: copy it again.")
    levels = []
    order = [names.index(axis) for axis in "zyx"]
    shared = image.get("coordinateTransformations") or ()
    for path, own in datasets:
        scale, shift = _combined(f"{where}/{path}", [*(own or ()), *shared], len(names))
        spacing = tuple(scale[i] for i in order) if own else None
        levels.append(Level(path.strip("/"), names, spacing, tuple(shift[i] for i in order)))
    version = node.ome.get("version") or image.get("version") or "0.4"
    is_labels = "its OME-NGFF metadata hold image-label" if "image-label" in node.ome else ""
    z, y, x = (units.get(axis) for axis in "zyx")
    return Layout(f"OME-NGFF {version}", node.driver, tuple(levels), (z, y, x), is_labels, node.files)


def _combined(where: str, transforms: Sequence[Any], rank: int) -> tuple[Floats, Floats]:
    """Scale and translation of transforms that are applied one after the other."""
    scale, shift = (1.0,) * rank, (0.0,) * rank
    for transform in transforms:
        kind = transform.get("type") if isinstance(transform, Mapping) else None
        if kind == "scale":
            factors = numbers(where, "scale", transform.get("scale"), rank)
            scale = tuple(s * f for s, f in zip(scale, factors, strict=True))
            shift = tuple(s * f for s, f in zip(shift, factors, strict=True))
        elif kind == "translation":
            moves = numbers(where, "translation", transform.get("translation"), rank)
            shift = tuple(s + m for s, m in zip(shift, moves, strict=True))
        elif kind != "identity":
            raise VolumeError(
                f"{where}: a coordinate transformation is of type {kind!r}",
                "Only scale and translation are understood: resample the volume, or correct its metadata.",
            )
    return scale, shift


def _below(prefix: str, layout: Layout) -> Layout:
    """The layout with paths from the store's top."""
    levels = tuple(
        Level(f"{prefix}{level.path}", level.axes, level.spacing, level.offset, level.options)
        for level in layout.levels
    )
    files = tuple(f"{prefix}{file}" for file in layout.files)
    return Layout(layout.format, layout.driver, levels, layout.units, layout.is_labels, files)
