"""HDF5 files in the layout of the CREMI challenge (https://cremi.org): ``volumes/raw`` and ``volumes/labels/...``.

Datasets have axes (z, y, x) and the attributes ``resolution`` and, if it is not zero, ``offset``, (z, y, x) in nm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from canvas import Box, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.layout import numbers
from coarse2fine.io.lazy import LazyArray
from coarse2fine.io.scales import Scales, check_voxel_type, checked
from coarse2fine.io.tensors import Place, file_fingerprint
from coarse2fine.io.units import to_grid_unit
from coarse2fine.io.volume import Grid, Spacing, Volume

HDF5_SUFFIXES = (".hdf", ".h5", ".hdf5")
RAW = "volumes/raw"

_ERRORS = (OSError, RuntimeError)  # what h5py raises on damage
_CONTIGUOUS = 64  # voxels per axis that are read at once where there are no chunks


def open_hdf5(place: Place, array: str | None, spacing: Spacing | None, unit: str | None, as_labels: bool) -> Scales:
    """A dataset of an HDF5 file, with one level; arguments as of ``open_store``.

    Raises:
        VolumeError: If the file or dataset cannot be read, or is no volume of the kind that is wanted.
    """
    path = place.folder
    if path is None:
        raise VolumeError(f"{place.where}: HDF5 files are read from disks only", "Download it first.")
    fingerprint = file_fingerprint(path)
    dataset = _open_dataset(path, array)
    where, key = f"{path}:{dataset.name.strip('/')}", dataset.name.strip("/")
    if dataset.ndim != 3 or 0 in dataset.shape:
        raise VolumeError(f"{where} has shape {dataset.shape}, not that of a volume (z, y, x)", _list(path))
    dtype = dataset.dtype.newbyteorder("=")
    is_labels = "CREMI keeps labels in volumes/labels" if "labels" in key.split("/") else ""
    check_voxel_type(where, dtype.name, as_labels, is_labels)
    attributes = _numbers_of(where, dataset, ("resolution", "offset"))
    if spacing is None and "resolution" not in attributes:
        raise VolumeError(
            f"{where} has no attribute resolution", "Give its spacing (z, y, x) and unit (--spacing, --unit)."
        )
    known = unit or ("nm" if "resolution" in attributes or key.startswith("volumes/") else None)
    found, (z, y, x), (offset,) = to_grid_unit(
        where, spacing or attributes["resolution"], (known,) * 3, attributes.get("offset", (0.0, 0.0, 0.0))
    )

    def load(box: Box) -> NDArray[Any]:
        try:
            voxels = dataset[box.slices]
        except _ERRORS as error:
            raise VolumeError(
                f"{where}, voxels {box.start} to {box.stop} (z, y, x) cannot be read: {error}",
                "The file is damaged or truncated: copy or download it again.",
            ) from error
        return np.asarray(voxels, dtype)

    shape = triple(dataset.shape)
    lazy = LazyArray(shape, dtype, checked(where, load) if dtype.kind == "f" else load)
    chunks = triple(dataset.chunks or [min(_CONTIGUOUS, length) for length in shape])
    identity = {
        "format": "HDF5",
        "where": place.where,
        "array": key,
        "shape": list(shape),
        "dtype": dtype.name,
        "spacing": [z, y, x],
        "unit": found,
        "chunks": list(chunks),
        "channels": 1,
        "fingerprint": {path.name: fingerprint},
    }
    grid = Grid(shape, (z, y, x), found, offset[::-1])
    return Scales((Volume((lazy,), grid, place.name),), place.name, place.where, identity, chunks)


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
    except _ERRORS as error:
        raise VolumeError(f"{path} cannot be read: {error}", "It may be damaged or no HDF5 file.") from error
    found = file.get(array or RAW)
    if not isinstance(found, h5py.Dataset):
        raise VolumeError(f"{path} has no dataset {array or RAW}", _list(path))
    return found


def _list(path: Path) -> str:
    """A remedy that names the volumes of a file."""
    volumes: list[str] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 3:
            volumes.append(f"{name} {item.shape}")

    with h5py.File(path, "r", locking="best-effort") as file:
        file.visititems(visit)
    return f"Name one (--array) of: {', '.join(volumes)}." if volumes else "It holds no volume."


def _numbers_of(where: str, dataset: h5py.Dataset, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Those attributes that there are, as three numbers."""
    return {
        name: numbers(where, f"attribute {name}", np.ravel(dataset.attrs[name]).tolist(), 3)
        for name in names
        if name in dataset.attrs
    }
