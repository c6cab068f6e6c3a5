"""Volumes of any size for ``scale.py``: real stacks side by side, tiled by mirroring, as an OME-NGFF 0.5 zarr."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io import atomic_write, read_volume

CHUNK = (16, 128, 128)
SLAB = (32, 1024, 1024)
"""Voxels that are in memory at a time: whole chunks of all levels."""
FACTORS = ((1, 1, 1), (1, 2, 2), (1, 4, 4))
GIGA = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class Stacks:
    """Stacks side by side along x, which mirrored copies of themselves continue in all directions.

    Attributes:
        voxels: The stacks, axes (z, y, x).
        spacing: Voxel size (z, y, x) in nm.
    """

    voxels: NDArray[Any]
    spacing: tuple[float, float, float]

    def read(self, box: Box) -> NDArray[Any]:
        """Voxels of a box, which may lie anywhere at positive coordinates.

        >>> row = Stacks(np.arange(3).reshape(1, 1, 3), (1.0, 1.0, 1.0))
        >>> row.read(Box((0, 0, 1), (1, 1, 8))).tolist()
        [[[1, 2, 2, 1, 0, 0, 1]]]
        """
        places = []
        for start, stop, length in zip(box.start, box.stop, self.voxels.shape, strict=True):
            turn = np.arange(start, stop) % (2 * length)
            places.append(np.where(turn < length, turn, 2 * length - 1 - turn))
        return self.voxels[np.ix_(*places)]


def read_stacks(files: Sequence[Path]) -> Stacks:
    """Read stacks of one spacing, cut to the same sections and height.

    Raises:
        VolumeError: If spacings or voxel types differ.
    """
    volumes = [read_volume([file]) for file in files]
    arrays = [volume.channels[0] for volume in volumes]
    first = volumes[0].grid
    for file, volume, array in zip(files, volumes, arrays, strict=True):
        if volume.grid.spacing != first.spacing or array.dtype != arrays[0].dtype:
            raise VolumeError(f"{file.name} has another spacing or voxel type than {files[0].name}", "Use equal ones.")
    depth, height = (min(array.shape[axis] for array in arrays) for axis in (0, 1))
    return Stacks(np.concatenate([array[:depth, :height] for array in arrays], axis=2), first.spacing)


def shape_for(gvoxels: float, stacks: Stacks, depth: int) -> Triple:
    """Shape of a volume of at least so many Gvoxels that is square in plane.

    Args:
        gvoxels: Its voxels.
        stacks: What it is made of.
        depth: How many times as many sections as these it has.

    >>> shape_for(1, Stacks(np.zeros((20, 1, 1)), (45.0, 4.6, 4.6)), 8)
    (160, 2560, 2560)
    """
    sections = depth * stacks.voxels.shape[0]
    edge = ceil(sqrt(gvoxels * GIGA / sections) / CHUNK[1]) * CHUNK[1]
    return (sections, edge, edge)


def write_volume(stacks: Stacks, folder: Path, shape: Triple, *, levels: int = len(FACTORS)) -> Path:
    """Write a volume slab by slab; one that is there already is kept.

    Each level's voxels are means of the finest level's. Memory does not grow with the volume.

    Args:
        stacks: What it is made of.
        folder: Where; the volume gets a folder of its own in there.
        shape: Of the finest level.
        levels: How many of ``FACTORS`` it has.

    Returns:
        The store.
    """
    store = folder / f"{'x'.join(map(str, shape))}_{levels}.zarr"
    if (store / "zarr.json").exists():
        return store
    shutil.rmtree(store, ignore_errors=True)
    arrays = []
    for number, factor in enumerate(FACTORS[:levels]):
        arrays.append(_create(store / str(number), _coarser(shape, factor), stacks.voxels.dtype))
    starts = (range(0, edge, step) for edge, step in zip(shape, SLAB, strict=True))
    end = Box.whole(edge + -edge % times for edge, times in zip(shape, FACTORS[-1], strict=True))
    for start in itertools.product(*starts):
        slab = Box.of(start, SLAB).clip(end)
        voxels = stacks.read(slab)
        for array, factor in zip(arrays, FACTORS, strict=False):
            coarse = Box(_coarser(slab.start, factor), _coarser(slab.stop, factor)).clip(Box.whole(array.shape))
            array[coarse.slices].write(mean_of(voxels, factor)[tuple(slice(edge) for edge in coarse.shape)]).result()
    with atomic_write(store / "zarr.json") as path:
        path.write_text(json.dumps(_metadata(stacks, shape, levels), indent=1))
    return store


def mean_of(voxels: NDArray[Any], factor: Triple) -> NDArray[Any]:
    """Means of boxes of voxels, in the voxels' own type.

    >>> mean_of(np.array([[[1, 2, 6], [3, 5, 7], [0, 0, 1], [0, 0, 2]]], np.uint8)[..., :2], (1, 2, 2)).tolist()
    [[[3], [0]]]
    """
    if factor == (1, 1, 1):
        return voxels
    split = [n for edge, times in zip(voxels.shape, factor, strict=True) for n in (edge // times, times)]
    return np.rint(voxels.reshape(split).mean(axis=(1, 3, 5), dtype=np.float32)).astype(voxels.dtype)


def _coarser(edges: Sequence[int], factor: Triple) -> Triple:
    return triple(-(-edge // times) for edge, times in zip(edges, factor, strict=True))


def _create(path: Path, shape: Triple, dtype: np.dtype[Any]) -> ts.TensorStore:
    metadata = {
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(CHUNK)}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}],
        "dimension_names": ["z", "y", "x"],
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
    return ts.open(spec, create=True).result()


def _metadata(stacks: Stacks, shape: Triple, levels: int) -> dict[str, Any]:
    datasets = []
    for number, factor in enumerate(FACTORS[:levels]):
        scale = [length * times for length, times in zip(stacks.spacing, factor, strict=True)]
        shift = [(times - 1) / 2 * length for length, times in zip(stacks.spacing, factor, strict=True)]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(number), "coordinateTransformations": transforms})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    image = {"name": "x".join(map(str, shape)), "axes": axes, "datasets": datasets}
    return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", "multiscales": [image]}}}
