"""Volumes in chunked stores and HDF5 files, larger than memory, behind one interface."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.dicom.members import is_series
from coarse2fine.io.lazy import LazyArray
from coarse2fine.io.stores.absence import Absence
from coarse2fine.io.stores.chunks import blosc_checker, chunk_key, edges_of, stray_hint
from coarse2fine.io.stores.hdf5 import HDF5_SUFFIXES, is_hdf5, open_hdf5
from coarse2fine.io.stores.layout import Layout, Level, Wanted, axes_example, letter, pick_channels
from coarse2fine.io.stores.n5 import find_n5
from coarse2fine.io.stores.ngff import check_array, find_zarr
from coarse2fine.io.stores.precomputed import find_precomputed
from coarse2fine.io.stores.scales import MOST_IN_CHUNK, Scales, Storage, check_voxel_type, check_voxels, checked
from coarse2fine.io.stores.tensors import FAILURES, Place, Store, is_zip, open_place, parse_place, reading, uncached
from coarse2fine.io.stores.units import to_grid_unit
from coarse2fine.io.volume import Grid, Spacing, Volume

_CACHE, _FAR_CACHE = 16 << 20, 64 << 20  # bytes of unpacked chunks to keep; what is far costs more to read again
_FINDERS: dict[str, Callable[[Store, Wanted], Layout | None]] = {
    "zarr": find_zarr,
    "precomputed": find_precomputed,
    "n5": find_n5,
}
_METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs", "attributes.json")
_SUFFIXES = (".zarr", ".n5", ".precomputed", ".zip")
_SMALL_CHUNK, _MOST_PADDING = 16 << 20, 1000  # bytes that any chunk may have; times that it may exceed its array
_MOST_IN_SHARD = 1 << 22  # chunks; their index is read as a whole


def is_store(where: str) -> bool:
    """Whether this names something for ``open_store``: a URL, a chunked store, or an HDF5 file.

    What exists is judged by its content, what does not by its ending; then ``open_store`` says what is wrong.
    """
    if "://" in where:
        return True
    path = Path(where).expanduser()
    if path.is_dir():
        return any((path / name).is_file() for name in _METADATA) or path.suffix in _SUFFIXES or _is_info(path / "info")
    return is_hdf5(path) or (is_zip(path) and not is_series(path)) or (path.suffix in _SUFFIXES and not path.exists())


def open_store(
    where: str,
    *,
    array: str | None = None,
    spacing: Spacing | None = None,
    unit: str | None = None,
    axes: str | None = None,
    channel: int | None = None,
    as_labels: bool = False,
) -> Scales:
    """Opens a volume that is read by region: HDF5, zarr v2 or v3, OME-NGFF, N5, or neuroglancer precomputed.

    Nothing but metadata is read. Missing chunks hold the fill value, as all formats have it; ``presence`` tells whether
    that can be what was meant. Regions of floating-point voxels are checked when they are read.

    Args:
        where: A path, or a URL (file, http, https, s3, gs); the prefixes ``zarr://``, ``n5://`` and ``precomputed://``
            name the format, which is found out otherwise.
        array: Path of the dataset, image, array or resolution in the store; by default ``volumes/raw`` of HDF5 files
            and what is at the top of others.
        spacing: Distance between voxels (z, y, x) of the finest resolution, instead of what the metadata say.
        unit: Unit of ``spacing``, or instead of the metadata's unit.
        axes: Letters of the array's axes in their order, such as "czyx", instead of what the metadata say.
        channel: The only channel that is wanted, counted from 0; None for all.
        as_labels: Whether the volume is to hold labels: integers of any type.

    Returns:
        All resolutions, finest first. Their unit is "nm" if the metadata's is a micrometre or finer, else "mm".

    Raises:
        VolumeError: If it cannot be read, its metadata do not make it a volume with spacing and unit, or it holds
            labels where an image is wanted or the other way round.
    """
    place, wanted = parse_place(where), Wanted(array, spacing, unit, axes, channel, as_labels)
    if place.folder is not None:
        if not place.folder.exists():
            raise VolumeError(f"{where} does not exist", "Check the path.")
        if is_hdf5(place.folder):
            return open_hdf5(place, place.folder, wanted)
        if not place.folder.is_dir() and not is_zip(place.folder):
            raise VolumeError(f"{where} is neither a store nor an HDF5 file", "Name a store's top folder.")
    elif place.url.endswith((*HDF5_SUFFIXES, ".zip")):
        raise VolumeError(f"{where}: HDF5 files and zip archives are read from disks only", "Download it first.")
    store = open_place(place, _FAR_CACHE if place.folder is None else _CACHE)
    finders = [_FINDERS[place.family]] if place.family else list(_FINDERS.values())
    layout = next((found for find in finders if (found := find(store, wanted)) is not None), None)
    if layout is None:
        store.check_access()
        raise VolumeError(
            f"{place.where}{f' has no array {array}' if array else ''}: no {place.family or 'zarr, N5 or precomputed'} "
            "metadata found",
            "Check the address; the store's top folder holds zarr.json, .zattrs, attributes.json or info.",
        )
    if array and "labels" in array.strip("/").split("/") and not layout.is_labels:
        layout = replace(layout, is_labels=f"array {array}")
    return _scales(place, store, layout, wanted)


def _scales(place: Place, store: Store, layout: Layout, wanted: Wanted) -> Scales:
    opened = _open_levels(store, layout, wanted)
    finest = opened[0]
    if wanted.spacing is None and finest.level.spacing is None:
        raise VolumeError(
            f"{finest.where} does not say its spacing", "Give it (z, y, x) and its unit (--spacing, --unit)."
        )
    dtype = finest.view.dtype.name
    check_voxel_type(finest.where, dtype, wanted.as_labels, layout.is_labels)
    units = (wanted.unit,) * 3 if wanted.unit else layout.units
    volumes = []
    for one in opened:
        if one.view.dtype.name != dtype or len(one.views) != len(finest.views):
            raise VolumeError(
                f"{one.where}: voxel type or channels differ from those of {finest.where}",
                f"Name one array (--array {finest.level.path}).",
            )
        grid = _grid(one, finest, wanted.spacing, units)
        lazy = tuple(_lazy(store, one, view, channel) for channel, view in one.views.items())
        volumes.append(Volume(lazy, grid, place.name))
    grid, chunks = volumes[0].grid, _chunk(finest.view)
    identity = {
        "format": layout.format,
        "where": place.where,
        "array": wanted.array,
        "shape": list(grid.shape),
        "dtype": dtype,
        "spacing": list(grid.spacing),
        "unit": grid.unit,
        "axes": "".join(finest.level.axes),
        "channel": wanted.channel,
        "chunks": list(chunks),
        "channels": len(finest.views),
        "fingerprint": {key: store.fingerprint(key) for key in (*layout.files, *_array_files(layout, finest.level))},
    }
    storage = tuple(_storage(store, one) for one in opened)
    return Scales(tuple(volumes), place.name, place.where, identity, chunks, storage)


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """A level whose array is open.

    Attributes:
        level: What the metadata say of it.
        where: Its place, for messages.
        array: As it is stored.
        views: By channel, with axes (z, y, x) from 0.
        absence: How a far server says that a chunk is not there; None if the store is near.
    """

    level: Level
    where: str
    array: ts.TensorStore
    views: dict[int, ts.TensorStore]
    absence: Absence | None = None

    @property
    def view(self) -> ts.TensorStore:
        """The first channel."""
        return next(iter(self.views.values()))


def _check_size(where: str, array: ts.TensorStore) -> None:
    """Refuses what no machine can read by region."""
    chunk, shard = edges_of(array), edges_of(array, shard=True)
    size = math.prod(chunk) * array.dtype.numpy_dtype.itemsize
    whole = math.prod(array.shape) * array.dtype.numpy_dtype.itemsize
    if size > MOST_IN_CHUNK or size > max(_SMALL_CHUNK, _MOST_PADDING * whole):
        limit = f"more than {MOST_IN_CHUNK / 1e9:.1f}" if size > MOST_IN_CHUNK else "far more than the whole array"
        raise VolumeError(
            f"{where}: a chunk of {chunk} voxels takes {size / 1e9:.3g} GB, {limit}",
            "Write it anew with smaller chunks, such as 64 x 64 x 64.",
        )
    if math.prod(-(-a // b) for a, b in zip(shard, chunk, strict=True)) > _MOST_IN_SHARD:
        raise VolumeError(
            f"{where}: shards hold more than {_MOST_IN_SHARD} chunks", "Write it anew with smaller shards."
        )
    check_voxels(where, array.shape)


def _check_names(where: str, array: ts.TensorStore, axes: Sequence[str], given: str | None) -> None:
    """Refuses an image whose arrays call their axes otherwise than it does."""
    labels = array.domain.labels
    if given is not None or not all(labels) or array.rank != len(axes):
        return
    if [letter(label) for label in labels] != list(axes) and all(letter(label) for label in labels):
        raise VolumeError(
            f"{where} calls its axes {', '.join(labels)}, but its image {', '.join(axes)}",
            f"Say which are right (--axes {''.join(axes)} or --axes {''.join(letter(label) for label in labels)}).",
        )


def _open_levels(store: Store, layout: Layout, wanted: Wanted) -> list[_Opened]:
    """All levels, finest first."""
    if layout.driver in ("zarr", "zarr3"):
        for level in layout.levels:
            check_array(store.child(level.path), layout.driver)
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
                f"Name its axes in this order (--axes {axes_example(array.shape)}), or name another array (--array).",
            )
        if 0 in array.shape:
            raise VolumeError(f"{where} holds no voxels: its shape is {array.shape}", "Name another array (--array).")
        _check_size(where, array)
        _check_names(where, array, level.axes, wanted.axes)
        views = _channels(where, array, level.axes, wanted.channel)
        with reading(where):
            absence = Absence.learn(store.child(level.path), array, (store, _metadata_of(layout, level)))
        opened.append(_Opened(level, where, array, views, absence))
    return sorted(opened, key=lambda one: -math.prod(one.view.shape))


def _channels(where: str, array: ts.TensorStore, axes: Sequence[str], channel: int | None) -> dict[int, ts.TensorStore]:
    array = array[ts.d[:].translate_to[0]]
    others = [axis for axis in axes if axis not in "zyx"]
    views = {}
    for index in pick_channels(where, array.shape, axes, channel):
        view, left = array, list(axes)
        for axis in others:
            view = view[ts.d[left.index(axis)][index if axis == "c" else 0]]
            left.remove(axis)
        views[index] = view[ts.d[[left.index(axis) for axis in "zyx"]].transpose[:]]
    return views


def _grid(one: _Opened, finest: _Opened, given: Spacing | None, units: Sequence[str | None]) -> Grid:
    steps, shape = one.level.spacing, one.view.shape
    if given is not None:
        steps = _rescaled(given, finest.level, one.level, finest.view.shape, shape)
    if steps is None:
        raise VolumeError(
            f"{one.where} does not say its spacing", f"Name one array that does (--array {finest.level.path})."
        )
    unit, spacing, (offset,) = to_grid_unit(one.where, steps, units, one.level.offset)
    return Grid(triple(shape), spacing, unit, offset)


def _storage(store: Store, one: _Opened) -> Storage:
    view, absence, channel = one.view, one.absence, next(iter(one.views))

    def stored(box: Box) -> bool | None:
        try:
            if absence is not None and absence.is_odd and absence.holds(_key_at(one, box.start, channel)):
                return False
            return not view[box.slices].storage_statistics(query_not_stored=True).result().not_stored
        except FAILURES:  # not all drivers can tell, and servers fail in ways of their own
            return None

    def hint() -> str:
        folder = store.folder / one.level.path if store.folder else None
        return stray_hint(folder, chunk_key(one.array, one.array.domain.inclusive_min))

    return Storage(one.where, _chunk(view), float(_fill(view)), store.folder is not None, stored, hint)


def _fill(view: ts.TensorStore) -> Any:
    """What voxels read as that are not stored."""
    return 0 if view.fill_value is None else np.ravel(view.fill_value)[0]


def _metadata_of(layout: Layout, level: Level) -> str:
    """Key of a file of metadata that an array has."""
    return next(iter(_array_files(layout, level)), layout.files[0])


def _array_files(layout: Layout, level: Level) -> tuple[str, ...]:
    """Keys of the metadata of an array itself, where the format has them apart from the image's."""
    name = {"zarr3": "zarr.json", "zarr": ".zarray"}.get(layout.driver)
    return (f"{level.path}/{name}".lstrip("/"),) if name else ()


def _chunk(view: ts.TensorStore) -> Triple:
    """Storage chunk, no longer than the array."""
    return triple(min(edge, length) for edge, length in zip(edges_of(view), view.shape, strict=True))


def _lazy(store: Store, one: _Opened, view: ts.TensorStore, channel: int) -> LazyArray:
    checker = blosc_checker(store.folder / one.level.path, one.array) if store.folder else None

    def load(box: Box) -> NDArray[Any]:
        with reading(one.where, box):
            if checker is not None:
                for voxel in _chunk_voxels(one, box, channel):
                    checker(voxel)
            if one.absence is not None:
                return _load_far(one, one.absence, channel, box)
            return np.asarray(view[box.slices].read().result())

    dtype = np.dtype(view.dtype.numpy_dtype)
    return LazyArray(triple(view.shape), dtype, checked(one.where, load) if dtype.kind == "f" else load)


def _chunk_voxels(one: _Opened, box: Box, channel: int) -> Iterator[list[int]]:
    """A voxel of each stored chunk that a region of a channel lies in, with the array's own axes."""
    edges = dict(zip(one.level.axes, edges_of(one.array, shard=True), strict=True))
    ranges = zip(box.start, box.stop, "zyx", strict=True)
    for start in itertools.product(*(range(a // edges[axis] * edges[axis], b, edges[axis]) for a, b, axis in ranges)):
        place = dict(zip("zyx", start, strict=True)) | {"c": channel}
        yield [o + place.get(axis, 0) for o, axis in zip(one.array.domain.inclusive_min, one.level.axes, strict=True)]


def _key_at(one: _Opened, voxel: Sequence[int], channel: int) -> str:
    """The key of the chunk, or shard, that a voxel (z, y, x) of a channel lies in."""
    place = dict(zip("zyx", voxel, strict=True)) | {"c": channel}
    origin = one.array.domain.inclusive_min
    key = chunk_key(one.array, [o + place.get(axis, 0) for o, axis in zip(origin, one.level.axes, strict=True)])
    return key or ""


def _load_far(one: _Opened, absence: Absence, channel: int, box: Box) -> NDArray[Any]:
    """A region from a server, whose silence is not taken for the fill value."""
    view = one.views[channel]
    with absence.watch():
        if absence.failed:
            view = uncached(view)
        try:
            voxels = np.asarray(view[box.slices].read().result())
        except FAILURES:
            if not absence.is_odd:
                raise
            return _chunkwise(one, absence, view, channel, box)
        absence.check(voxels, _fill(view), box, _chunk(view))
        return voxels


def _chunkwise(one: _Opened, absence: Absence, view: ts.TensorStore, channel: int, box: Box) -> NDArray[Any]:
    """A region from a server that does not say 404 for chunks that are not there."""
    edges = dict(zip(one.level.axes, edges_of(one.array, shard=True), strict=True))
    result = np.full(box.shape, _fill(view), view.dtype.numpy_dtype)
    starts = [
        range(a // edges[axis] * edges[axis], b, edges[axis])
        for a, b, axis in zip(box.start, box.stop, "zyx", strict=True)
    ]
    for start in itertools.product(*starts):
        part, key = Box.of(start, (edges[axis] for axis in "zyx")).clip(box), _key_at(one, start, channel)
        try:
            result[part.relative_to(box).slices] = view[part.slices].read().result()
            absence.saw(key)
        except FAILURES:
            if not absence.holds(key):
                raise
    return result


def _rescaled(
    spacing: Spacing, finest: Level, level: Level, shape: Sequence[int], level_shape: Sequence[int]
) -> tuple[float, ...]:
    """The user's spacing, made coarser as the metadata have it; by the shapes if they do not."""
    if finest.spacing and level.spacing and all(value > 0 for value in finest.spacing + level.spacing):
        return tuple(s * b / a for s, a, b in zip(spacing, finest.spacing, level.spacing, strict=True))
    return tuple(s * max(1, round(a / b)) for s, a, b in zip(spacing, shape, level_shape, strict=True))


def _is_info(path: Path) -> bool:
    """Whether a file is the metadata of a precomputed volume."""
    try:
        return path.stat().st_size < 1 << 20 and "scales" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return False
