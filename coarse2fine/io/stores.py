"""Volumes in chunked stores and HDF5 files, larger than memory, behind one interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.hdf5 import is_hdf5, open_hdf5
from coarse2fine.io.layout import Layout, Level
from coarse2fine.io.lazy import LazyArray
from coarse2fine.io.n5 import find_n5
from coarse2fine.io.ngff import find_zarr
from coarse2fine.io.precomputed import find_precomputed
from coarse2fine.io.scales import Scales, check_voxel_type, checked
from coarse2fine.io.tensors import Place, Store, open_place, parse_place, reading
from coarse2fine.io.units import to_grid_unit
from coarse2fine.io.volume import Grid, Spacing, Volume

_CACHE, _FAR_CACHE = 16 << 20, 64 << 20  # bytes of unpacked chunks to keep; what is far costs more to read again
_FINDERS: dict[str, Callable[[Store, str | None], Layout | None]] = {
    "zarr": find_zarr,
    "precomputed": find_precomputed,
    "n5": find_n5,
}
_METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs", "attributes.json")
_SUFFIXES = (".zarr", ".n5", ".precomputed")
_MISFIT = 2  # coarse voxels by which a level may be longer or shorter than the finest; formats round differently


def is_store(where: str) -> bool:
    """Whether this names something for ``open_store``: a URL, a chunked store, or an HDF5 file.

    What exists is judged by its content, what does not by its ending; then ``open_store`` says what is wrong.
    """
    if "://" in where:
        return True
    path = Path(where).expanduser()
    if path.is_dir():
        return any((path / name).is_file() for name in _METADATA) or path.suffix in _SUFFIXES or _is_info(path / "info")
    return is_hdf5(path) or (path.suffix in _SUFFIXES and not path.exists())


def open_store(
    where: str,
    *,
    array: str | None = None,
    spacing: Spacing | None = None,
    unit: str | None = None,
    as_labels: bool = False,
) -> Scales:
    """Opens a volume that is read by region: CREMI HDF5, zarr v2 or v3, OME-NGFF, N5, or neuroglancer precomputed.

    Nothing but metadata is read. Missing chunks hold the fill value, as all formats have it. Regions of
    floating-point voxels are checked when they are read.

    Args:
        where: A path, or a URL (file, http, https, s3, gs); the prefixes ``zarr://``, ``n5://`` and ``precomputed://``
            name the format, which is found out otherwise.
        array: Path of the dataset, image, array or resolution in the store; by default ``volumes/raw`` of HDF5 files
            and what is at the top of others.
        spacing: Distance between voxels (z, y, x) of the finest resolution, instead of what the metadata say.
        unit: Unit of ``spacing``, or instead of the metadata's unit.
        as_labels: Whether the volume is to hold labels: integers of any type.

    Returns:
        All resolutions, finest first. Their unit is "nm" if the metadata's is a micrometre or finer, else "mm".

    Raises:
        VolumeError: If it cannot be read, its metadata do not make it a volume with spacing and unit, or it holds
            labels where an image is wanted or the other way round.
    """
    place = parse_place(where)
    if spacing is not None and len(spacing) != 3:
        raise VolumeError(f"the spacing {spacing} is not three numbers (z, y, x)", "Give three (--spacing).")
    if place.folder is not None:
        if not place.folder.exists():
            raise VolumeError(f"{where} does not exist", "Check the path.")
        if is_hdf5(place.folder):
            return open_hdf5(place, array, spacing, unit, as_labels)
        if not place.folder.is_dir():
            raise VolumeError(f"{where} is neither a store nor an HDF5 file", "Name a store's top folder.")
    store = open_place(place, _FAR_CACHE if place.folder is None else _CACHE)
    finders = [_FINDERS[place.family]] if place.family else list(_FINDERS.values())
    layout = next((found for find in finders if (found := find(store, array)) is not None), None)
    if layout is None:
        raise VolumeError(
            f"{place.where}{f' has no array {array}' if array else ''}: no {place.family or 'zarr, N5 or precomputed'} "
            "metadata found",
            "Check the address; the store's top folder holds zarr.json, .zattrs, attributes.json or info.",
        )
    if array and "labels" in array.strip("/").split("/") and not layout.is_labels:
        layout = Layout(layout.format, layout.driver, layout.levels, layout.units, f"array {array}", layout.files)
    return _scales(place, store, layout, array, spacing, unit, as_labels)


def _scales(
    place: Place,
    store: Store,
    layout: Layout,
    array: str | None,
    spacing: Spacing | None,
    unit: str | None,
    as_labels: bool,
) -> Scales:
    opened = _open_levels(store, layout)
    finest, views = opened[0][0], opened[0][1]
    where = f"{store.where}/{finest.path}".rstrip("/")
    if spacing is None and finest.spacing is None:
        raise VolumeError(f"{where} does not say its spacing", "Give it (z, y, x) and its unit (--spacing, --unit).")
    dtype = views[0].dtype.name
    check_voxel_type(where, dtype, as_labels, layout.is_labels)
    units = (unit,) * 3 if unit else layout.units
    volumes = []
    for level, channels in opened:
        place_of_level = f"{store.where}/{level.path}".rstrip("/")
        steps = level.spacing
        if spacing is not None:
            steps = _rescaled(spacing, finest, level, views[0].shape, channels[0].shape)
        if steps is None:
            raise VolumeError(f"{place_of_level} does not say its spacing", "Correct its metadata, or name one array.")
        found, voxel, (offset,) = to_grid_unit(place_of_level, steps, units, level.offset)
        grid = Grid(triple(channels[0].shape), voxel, found, offset[::-1])
        if channels[0].dtype.name != dtype or len(channels) != len(views):
            raise VolumeError(
                f"{place_of_level}: voxel type or channels differ from those of {where}", "The store is not consistent."
            )
        lazy = tuple(_lazy(place_of_level, channel) for channel in channels)
        volumes.append(Volume(lazy, grid, place.name))
    _check_extents(store.where, [volume.grid for volume in volumes])
    grid, chunks = volumes[0].grid, _chunk(views[0])
    identity = {
        "format": layout.format,
        "where": place.where,
        "array": array,
        "shape": list(grid.shape),
        "dtype": dtype,
        "spacing": list(grid.spacing),
        "unit": grid.unit,
        "chunks": list(chunks),
        "channels": len(views),
        "fingerprint": {key: store.fingerprint(key) for key in (*layout.files, *_array_files(layout, finest))},
    }
    return Scales(tuple(volumes), place.name, place.where, identity, chunks)


def _open_levels(store: Store, layout: Layout) -> list[tuple[Level, list[ts.TensorStore]]]:
    """The arrays of all levels, one per channel with axes (z, y, x) from 0, finest first."""
    pending = [
        store.child(level.path if not level.options else "").open(layout.driver, **level.options)
        for level in layout.levels
    ]
    opened = []
    for level, future in zip(layout.levels, pending, strict=True):
        where = f"{store.where}/{level.path}".rstrip("/")
        with reading(where):
            array = future.result()
        if array.rank != len(level.axes):
            raise VolumeError(
                f"{where} has shape {array.shape}, but its axes are {', '.join(level.axes)}",
                "Name another array (--array), or correct its metadata.",
            )
        if 0 in array.shape:
            raise VolumeError(f"{where} holds no voxels: its shape is {array.shape}", "Check the store.")
        opened.append((level, _channels(where, array, level.axes)))
    return sorted(opened, key=lambda pair: -int(np.prod(pair[1][0].shape)))


def _channels(where: str, array: ts.TensorStore, axes: Sequence[str]) -> list[ts.TensorStore]:
    array = array[ts.d[:].translate_to[0]]
    others = [axis for axis in axes if axis not in "zyx"]
    if "t" in others and array.shape[axes.index("t")] != 1:
        raise VolumeError(f"{where} has {array.shape[axes.index('t')]} points in time", "Store one volume per point.")
    count = array.shape[axes.index("c")] if "c" in others else 1
    views = []
    for channel in range(count):
        view, left = array, list(axes)
        for axis in others:
            view = view[ts.d[left.index(axis)][channel if axis == "c" else 0]]
            left.remove(axis)
        views.append(view[ts.d[[left.index(axis) for axis in "zyx"]].transpose[:]])
    return views


def _array_files(layout: Layout, level: Level) -> tuple[str, ...]:
    """Keys of the metadata of an array itself, where the format has them apart from the image's."""
    name = {"zarr3": "zarr.json", "zarr": ".zarray"}.get(layout.driver)
    return (f"{level.path}/{name}".lstrip("/"),) if name else ()


def _chunk(view: ts.TensorStore) -> Triple:
    """Storage chunk, no longer than the array."""
    edges = view.chunk_layout.read_chunk.shape or view.shape
    return triple(min(edge or length, length) for edge, length in zip(edges, view.shape, strict=True))


def _lazy(where: str, view: ts.TensorStore) -> LazyArray:
    def load(box: Box) -> NDArray[Any]:
        with reading(where, box):
            return np.asarray(view[box.slices].read().result())

    dtype = np.dtype(view.dtype.numpy_dtype)
    return LazyArray(triple(view.shape), dtype, checked(where, load) if dtype.kind == "f" else load)


def _rescaled(
    spacing: Spacing, finest: Level, level: Level, shape: Sequence[int], level_shape: Sequence[int]
) -> tuple[float, ...]:
    """The user's spacing, made coarser as the metadata have it; by the shapes if they do not."""
    if finest.spacing and level.spacing and all(value > 0 for value in finest.spacing + level.spacing):
        return tuple(s * b / a for s, a, b in zip(spacing, finest.spacing, level.spacing, strict=True))
    return tuple(s * max(1, round(a / b)) for s, a, b in zip(spacing, shape, level_shape, strict=True))


def _check_extents(where: str, grids: Sequence[Grid]) -> None:
    """Levels that do not cover the same space would be taken for what they are not."""
    for number, grid in enumerate(grids):
        for axis in range(3):
            length, finest = (g.shape[axis] * g.spacing[axis] for g in (grid, grids[0]))
            if abs(length - finest) > _MISFIT * grid.spacing[axis] or grid.unit != grids[0].unit:
                raise VolumeError(
                    f"{where}: resolution {number} is {length:g} {grid.unit} long in {'zyx'[axis]}, the finest one "
                    f"{finest:g} {grids[0].unit}",
                    "Correct the spacings in its metadata, or name one resolution (--array).",
                )


def _is_info(path: Path) -> bool:
    """Whether a file is the metadata of a precomputed volume."""
    try:
        return path.stat().st_size < 1 << 20 and "scales" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return False
