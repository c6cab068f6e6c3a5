"""Volumes in HDF5 files, above all in the layout of the CREMI challenge (https://cremi.org).

There, ``volumes/raw`` and ``volumes/labels/...`` have axes (z, y, x) and the attributes ``resolution`` and, if it is
not zero, ``offset``, (z, y, x) in nm. What other programs write of axes and lengths is in ``hdf5meta``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.lazy import LazyArray
from coarse2fine.io.stores.hdf5meta import ERRORS, StatedPlace, check_chunks, check_filters, chunk_places, read_place
from coarse2fine.io.stores.layout import Wanted, by_axis, name_axes, pick_channels, units_by_axis
from coarse2fine.io.stores.scales import MOST_IN_CHUNK, Scales, Storage, check_voxel_type, check_voxels, checked
from coarse2fine.io.stores.tensors import Place, file_fingerprint
from coarse2fine.io.stores.units import to_grid_unit
from coarse2fine.io.volume import Grid, Volume

HDF5_SUFFIXES = (".hdf", ".h5", ".hdf5")
RAW = "volumes/raw"

_MOST_CHUNKS = 100_000  # that are asked for one by one
_MOST_NAMES = 20
_CONTIGUOUS = 64  # voxels per axis that are read at once where there are no chunks


def open_hdf5(place: Place, path: Path, wanted: Wanted) -> Scales:
    """A dataset of an HDF5 file, with one level.

    Raises:
        VolumeError: If the file or dataset cannot be read, or is no volume of the kind that is wanted.
    """
    try:
        return _open(place, path, wanted)
    except ERRORS as error:
        raise VolumeError(
            f"{path} cannot be read: {error}", "It is damaged or no HDF5 file: copy or download it again."
        ) from error


def _open(place: Place, path: Path, wanted: Wanted) -> Scales:
    fingerprint = file_fingerprint(path)
    dataset = _open_dataset(path, wanted.array)
    key = dataset.name.strip("/")
    where = f"{path}:{key}"
    if len(dataset.shape) < 3 or 0 in dataset.shape:
        raise VolumeError(f"{where} has shape {dataset.shape}, not that of a volume (z, y, x)", _list(path))
    dtype = dataset.dtype.newbyteorder("=")
    is_labels = "CREMI keeps labels in volumes/labels" if "labels" in key.split("/") else ""
    check_voxel_type(where, dtype.name, wanted.as_labels, is_labels)
    stated = read_place(where, dataset)
    axes = name_axes(where, stated.names, dataset.shape, wanted.axes)
    _check_storage(where, dataset)
    views = [
        _View(where, dataset, axes, channel) for channel in pick_channels(where, dataset.shape, axes, wanted.channel)
    ]
    grid = _grid(where, stated, axes, views[0].shape, wanted, cremi=key.startswith("volumes/"))
    channels = tuple(
        LazyArray(view.shape, dtype, checked(where, view.load) if dtype.kind == "f" else view.load) for view in views
    )
    identity = {
        "format": "HDF5",
        "where": place.where,
        "array": key,
        "shape": list(grid.shape),
        "dtype": dtype.name,
        "spacing": list(grid.spacing),
        "unit": grid.unit,
        "axes": "".join(axes),
        "channel": wanted.channel,
        "chunks": list(views[0].chunks),
        "channels": len(views),
        "fingerprint": {path.name: fingerprint},
    }
    volume = Volume(channels, grid, place.name)
    return Scales((volume,), place.name, place.where, identity, views[0].chunks, (views[0].storage(),))


def _grid(where: str, stated: StatedPlace, axes: Sequence[str], shape: Triple, wanted: Wanted, cremi: bool) -> Grid:
    """Where the voxels lie; CREMI and funlib mean nm if they say no unit."""
    spacing = by_axis(where, "attribute resolution", stated.spacing, axes) if stated.spacing else None
    if wanted.spacing is None and spacing is None:
        raise VolumeError(
            f"{where} has no attribute resolution", "Give its spacing (z, y, x) and unit (--spacing, --unit)."
        )
    offset = by_axis(where, "attribute offset", stated.offset, axes) if stated.offset else (0.0, 0.0, 0.0)
    implied = "nm" if spacing or cremi else None
    units = (wanted.unit,) * 3 if wanted.unit else units_by_axis(stated.units or implied, axes)
    unit, voxel, (place,) = to_grid_unit(where, wanted.spacing or spacing or (), units, offset)
    return Grid(shape, voxel, unit, place)


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """A channel of a dataset, with axes (z, y, x)."""

    where: str
    dataset: h5py.Dataset
    axes: tuple[str, ...]
    channel: int

    @property
    def shape(self) -> Triple:
        """Voxels (z, y, x)."""
        return self._in_space(self.dataset.shape)

    @property
    def chunks(self) -> Triple:
        """Voxels (z, y, x) that are best read at once."""
        edges = self._in_space(self.dataset.chunks or (_CONTIGUOUS,) * len(self.axes))
        return triple(min(edge, length) for edge, length in zip(edges, self.shape, strict=True))

    def load(self, box: Box) -> NDArray[Any]:
        """Reads a region."""
        try:
            check_chunks(self.where, self.dataset, self._region(box))
            voxels = self.dataset[self._region(box)]
        except ERRORS as error:
            raise VolumeError(
                f"{self.where}, voxels {box.start} to {box.stop} (z, y, x) cannot be read: {error}",
                "The file is damaged or truncated: copy or download it again.",
            ) from error
        left = [axis for axis in self.axes if axis in "zyx"]
        voxels = np.asarray(voxels, self.dataset.dtype.newbyteorder("="))
        return voxels.transpose([left.index(axis) for axis in "zyx"])

    def storage(self) -> Storage:
        """How it is stored; chunks that were never written are not allocated, as a rule."""
        dataset = self.dataset

        def stored(box: Box) -> bool | None:
            try:
                if dataset.chunks is None:
                    return bool(dataset.id.get_storage_size() or dataset.is_virtual or dataset.external)
                if box == Box.whole(self.shape):
                    return bool(dataset.id.get_num_chunks())
                infos = (
                    dataset.id.get_chunk_info_by_coord(place) for place in chunk_places(dataset, self._region(box))
                )
                return any(info.byte_offset is not None for info in itertools.islice(infos, _MOST_CHUNKS))
            except ERRORS:
                return None

        fill = 0.0 if dataset.fillvalue is None else float(np.ravel(dataset.fillvalue)[0])
        return Storage(self.where, self.chunks, fill, True, stored, lambda: "")

    def _in_space(self, values: Sequence[int]) -> Triple:
        return triple(values[self.axes.index(axis)] for axis in "zyx")

    def _region(self, box: Box) -> tuple[slice | int, ...]:
        slices: dict[str, slice | int] = dict(zip("zyx", box.slices, strict=True))
        return tuple(slices.get(axis, self.channel if axis == "c" else 0) for axis in self.axes)


def _check_storage(where: str, dataset: h5py.Dataset) -> None:
    """Refuses what no machine can read by region, and filters that are not there."""
    check_voxels(where, dataset.shape)
    size = math.prod(dataset.chunks or (1,)) * dataset.dtype.itemsize
    if size > MOST_IN_CHUNK:
        raise VolumeError(
            f"{where}: a chunk of {dataset.chunks} voxels takes {size / 1e9:.3g} GB, more than "
            f"{MOST_IN_CHUNK / 1e9:.1f}",
            "Write it anew with smaller chunks, such as 64 x 64 x 64.",
        )
    check_filters(where, dataset)


def read_attributes(path: Path, dataset: str = RAW) -> Mapping[str, Any]:
    """The attributes of a dataset, for a result that is to have the same.

    Raises:
        VolumeError: If the file or dataset cannot be read.
    """
    return dict(_open_dataset(path, dataset).attrs.items())


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, by its content or, where there is none, by its ending."""
    return (path.is_file() and bool(h5py.is_hdf5(path))) or (path.suffix in HDF5_SUFFIXES and not path.is_dir())


def _open_dataset(path: Path, array: str | None) -> h5py.Dataset:
    """The dataset; its file closes with it."""
    try:
        # Many processes read one file, perhaps from a disk without locks.
        file = h5py.File(path, "r", locking="best-effort")
        found = file.get(array or RAW)
        usable = isinstance(found, h5py.Dataset) and found.shape is not None and found.dtype is not None
    except ERRORS as error:
        raise VolumeError(
            f"{path} cannot be read: {error}", "It is damaged or no HDF5 file: copy or download it again."
        ) from error
    if not usable:
        raise VolumeError(f"{path} has no dataset {array or RAW}", _list(path))
    return found


def _list(path: Path) -> str:
    """A remedy that names the volumes of a file."""
    volumes: list[str] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> bool | None:
        if isinstance(item, h5py.Dataset) and item.shape is not None and 3 <= len(item.shape) <= 5:
            volumes.append(f"{name} {item.shape}")
        return True if len(volumes) > _MOST_NAMES else None

    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            file.visititems(visit)
    except ERRORS:
        return "Name another (--array)."
    return f"Name one (--array) of: {', '.join(volumes)}." if volumes else "It holds no volume."
