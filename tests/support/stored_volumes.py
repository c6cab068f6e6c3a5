"""The same voxels in stores of all formats, written by zarr-python or byte by byte."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from coarse2fine.io import VoxelArray

SHAPE = (9, 20, 26)
VOXELS = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
EM = {"spacing": (40.0, 4.0, 4.0), "unit": "nm"}
REGION = (slice(2, 9), slice(5, 17), slice(-3, None))


def write_zarr(folder: Path, voxels: np.ndarray = VOXELS, version: int = 3, chunk: int = 8, **options: Any) -> Path:
    chunks = tuple(min(chunk, n) for n in voxels.shape)
    array = zarr.create_array(folder, data=voxels, chunks=chunks, zarr_format=version, **options)
    assert array.shape == voxels.shape
    return folder


def write_ngff(
    folder: Path,
    axes: str = "zyx",
    levels: int = 2,
    version: str = "0.5",
    units: str = "nanometer",
    scale: Callable[[int], list[dict[str, Any]]] | None = None,
    **more: Any,
) -> Path:
    """An image whose level n is every (2 ** n)th voxel in y and x; channel c adds c."""
    zarr_version = 3 if version == "0.5" else 2
    steps = {"z": 40.0, "y": 4.0, "x": 4.0, "c": 1.0, "t": 1.0}
    datasets = []
    for level in range(levels):
        step = 2**level
        voxels = VOXELS[:, ::step, ::step]
        if "c" in axes:
            voxels = np.stack([voxels // 2 + channel for channel in range(3)], -1)
        if "t" in axes:
            voxels = voxels[..., None]
        stored = ["z", "y", "x", *(axis for axis in "ct" if axis in axes)]
        write_zarr(folder / f"r{level}", voxels.transpose([stored.index(axis) for axis in axes]), zarr_version)
        factors = [steps[axis] * (step if axis in "yx" else 1) for axis in axes]
        transforms = scale(level) if scale else [{"type": "scale", "scale": factors}]
        datasets.append({"path": f"r{level}", "coordinateTransformations": transforms})
    kinds = {"c": "channel", "t": "time"}
    listed = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in listed:
        if axis["type"] == "space" and units:
            axis["unit"] = units
    image = {"axes": listed, "datasets": datasets[::-1], **more.pop("image", {})}
    ome = {"version": version, "multiscales": [image], **more}
    group = zarr.open_group(folder, mode="a", zarr_format=zarr_version)
    group.attrs.update({"ome": ome} if version == "0.5" else {"multiscales": [image | {"version": version}], **more})
    return folder


def write_n5(folder: Path, voxels: np.ndarray, attributes: dict[str, Any], block: tuple[int, int, int]) -> None:
    """An N5 array, uncompressed: x is its first axis, and numbers are big-endian."""
    dimensions, edges = voxels.shape[::-1], block[::-1]
    folder.mkdir(parents=True)
    stated = {"dimensions": dimensions, "blockSize": edges, "dataType": str(voxels.dtype)}
    stated |= {"compression": {"type": "raw"}}
    (folder / "attributes.json").write_text(json.dumps(stated | attributes))
    for place in product(*(range(math.ceil(n / edge)) for n, edge in zip(dimensions, edges, strict=True))):
        cut = tuple(slice(i * edge, (i + 1) * edge) for i, edge in zip(place, edges, strict=True))[::-1]
        path = folder.joinpath(*map(str, place))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = voxels[cut].astype(voxels.dtype.newbyteorder(">"))
        path.write_bytes(struct.pack(">HH3I", 0, 3, *part.shape[::-1]) + part.tobytes())


def write_precomputed(folder: Path, kind: str = "image", offset: tuple[int, int, int] = (5, 6, 7)) -> Path:
    """Two scales of raw chunks, x fastest, named by the voxels (x, y, z) that they hold."""
    scales = []
    for key, step in (("fine", 1), ("coarse", 2)):
        voxels = VOXELS[:, ::step, ::step]
        corner = (offset[0] // step, offset[1] // step, offset[2])
        size, edges = voxels.shape[::-1], (8, 8, 4)
        (folder / key).mkdir(parents=True)
        for place in product(*(range(0, n, edge) for n, edge in zip(size, edges, strict=True))):
            ends = [min(start + edge, n) for start, edge, n in zip(place, edges, size, strict=True)]
            part = voxels[tuple(map(slice, place[::-1], ends[::-1]))]
            name = "_".join(f"{a + o}-{b + o}" for a, b, o in zip(place, ends, corner, strict=True))
            (folder / key / name).write_bytes(part.tobytes())
        scales.append(
            {"key": key, "size": size, "resolution": [4 * step, 4 * step, 40], "voxel_offset": corner}
            | {"chunk_sizes": [edges], "encoding": "raw"}
        )
    info = {"type": kind, "data_type": "uint8", "num_channels": 1, "scales": scales}
    (folder / "info").write_text(json.dumps(info))
    return folder


def same_region(array: VoxelArray, expected: np.ndarray) -> bool:
    """Whether a region, read by itself and transposed, and the whole are what NumPy has."""
    turned = array.transpose((2, 0, 1))
    return (
        np.array_equal(array[REGION], expected[REGION])
        and np.array_equal(turned[REGION[2], :, 1:3], expected.transpose(2, 0, 1)[REGION[2], :, 1:3])
        and np.array_equal(array[:, :, :], expected)
        and array.shape == expected.shape
    )
