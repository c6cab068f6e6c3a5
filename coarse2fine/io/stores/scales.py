"""A volume at several resolutions, read by region."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.lazy import LazyArray
from coarse2fine.io.volume import Volume

_IMAGE_TYPES = {"uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64"}
_LABEL_TYPES = {"bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"}
MOST_IN_CHUNK = 1 << 29  # bytes; a chunk is always read as a whole
_MOST_VOXELS = 1 << 54  # ten times the largest volumes that there are
_LARGEST = float(np.finfo(np.float32).max)  # networks compute in single precision


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """How the voxels of a level are stored.

    Attributes:
        where: The array, for messages.
        edges: Voxels (z, y, x) that are stored or missing together.
        fill: What voxels read as that are not stored.
        near: Whether it costs little to ask whether any voxel of a large region is stored.
        stored: Whether any voxel of a region is; None if the format does not tell.
        hint: What to do if chunks are missing, as far as that shows; empty otherwise.
    """

    where: str
    edges: Triple
    fill: float
    near: bool
    stored: Callable[[Box], bool | None]
    hint: Callable[[], str]


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """One volume in a store, at one or more resolutions; nothing is in memory.

    Attributes:
        levels: The volume at each resolution, finest first, each with its own grid and one lazy array per channel.
        name: Name of the volume, from its file or folder.
        where: Path or URL; ``open_store(where)`` with the other arguments as before opens it again in any process.
        identity: What tells this volume from others, fit for JSON: format, where, array, shape, dtype, spacing, unit,
            chunks, channels, and a fingerprint of its metadata.
        chunks: Voxels (z, y, x) of one storage chunk of the finest level; reading is cheapest along its edges.
        storage: How each level is stored.
    """

    levels: tuple[Volume[LazyArray], ...]
    name: str
    where: str
    identity: Mapping[str, Any]
    chunks: Triple
    storage: tuple[Storage, ...]


def check_voxel_type(where: str, dtype: str, as_labels: bool, is_labels: str = "") -> None:
    """Refuses voxels that are no grey values, or no labels where labels are wanted.

    Args:
        where: The array, for messages.
        dtype: Name of its voxel type.
        as_labels: Whether labels are wanted.
        is_labels: What in its metadata says that it holds labels; empty if nothing does.

    Raises:
        VolumeError: If the voxels are not what is wanted.
    """
    if as_labels:
        if dtype not in _LABEL_TYPES:
            raise VolumeError(f"{where}: voxels of type {dtype} are no labels", "Labels are integers: name another.")
        return
    if is_labels:
        raise VolumeError(
            f"{where}: label file given as image ({is_labels})", "Name the image that the labels belong to."
        )
    if dtype in ("uint64", "int64"):
        raise VolumeError(
            f"{where}: label file given as image (its voxels are of type {dtype})",
            "Name the image that the labels belong to; if they are grey values, convert them to int32, uint32 or "
            "float32.",
        )
    if dtype not in _IMAGE_TYPES:
        raise VolumeError(
            f"{where}: voxels are of type {dtype}, not single real numbers",
            f"Convert them to one of {', '.join(sorted(_IMAGE_TYPES))}.",
        )


def check_voxels(where: str, shape: Sequence[int]) -> None:
    """Refuses shapes that cannot be true.

    Raises:
        VolumeError: If it has far more voxels than any volume.
    """
    if math.prod(shape) > _MOST_VOXELS:
        raise VolumeError(
            f"{where} has shape {tuple(shape)}, {math.prod(shape):.3g} voxels",
            "Correct its metadata: no volume has so many.",
        )


def checked(where: str, load: Callable[[Box], NDArray[Any]]) -> Callable[[Box], NDArray[Any]]:
    """``load``, with a check of each region that its voxels are finite.

    Args:
        where: The array, for messages.
        load: Reads a box (z, y, x) of floating-point voxels.
    """

    def load_checked(box: Box) -> NDArray[Any]:
        voxels = load(box)
        # Extremes need no memory, and are NaN if any voxel is.
        if not (voxels.min() >= -_LARGEST and voxels.max() <= _LARGEST):
            bad = ~(np.abs(voxels) <= _LARGEST)
            place = tuple(
                int(i) + start for i, start in zip(np.unravel_index(bad.argmax(), bad.shape), box.start, strict=True)
            )
            raise VolumeError(
                f"{where}: {np.count_nonzero(bad)} voxels between {box.start} and {box.stop} are NaN or infinite, "
                f"the first at {place} (z, y, x)",
                "Replace them, for example by the value of the background.",
            )
        return voxels

    return load_checked
