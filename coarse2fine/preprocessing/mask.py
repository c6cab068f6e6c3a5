"""Where a user wants something to be looked at: a mask, at whatever resolution, over the voxels of a volume.

A mask is mapped by spacing and origin. It must show all of what is segmented, so that nothing is left out because of a
wrong header. What it does not call 0 is set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io import Grid, VoxelArray, is_store, open_store, read_volume
from coarse2fine.io.overlap import SAME, beyond, common, extent, touched
from coarse2fine.io.turn import Turn

_UNITS = {"nm": 1.0, "mm": 1e6}
_CREMI_BACKGROUND = np.iinfo(np.uint64).max
_STRAIGHT = 1e-3  # how far a direction cosine may be from 0 or 1: headers round them
_TO_RAS = ((-1, -1, 1), (1, -1, -1))  # signs of the axes of files that count to the right and forwards: xyz, zyx


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A mask over a volume; both count along the same axes.

    Attributes:
        array: Its voxels; read by region if it lies in a store.
        grid: Where they lie.
        target: The volume, or the part of it that is segmented.
        identity: What tells this mask from others, fit for JSON.
    """

    array: VoxelArray
    grid: Grid
    target: Grid
    identity: Mapping[str, Any]

    def part(self, box: Box) -> NDArray[np.bool_]:
        """Whether voxels of a box of the volume are set.

        A voxel is set if the mask is at its centre; of a finer mask, if any voxel is that lies in it.
        """
        if box.volume == 0:
            return np.zeros(box.shape, bool)
        spans = [self._span(axis, box.start[axis], box.stop[axis]) for axis in range(3)]
        first = triple(int(low[0]) for low, _ in spans)
        last = triple(int(high[-1]) for _, high in spans)
        found = self._is_set(Box(first, last))
        for axis, (low, high) in enumerate(spans):
            found = any_along(found, axis, low - first[axis], high - first[axis])
        return found

    def hull(self, box: Box) -> Box:
        """The smallest box that holds all voxels of a box that are set; without any, an empty one."""
        found = self.part(box)
        rows = [np.flatnonzero(found.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        if not len(rows[0]):
            return Box(box.start, box.start)
        return Box(triple(int(row[0]) for row in rows), triple(int(row[-1]) + 1 for row in rows)).shift(box.start)

    def touches(self, grid: Grid, box: Box) -> bool:
        """Whether a voxel of the mask is set that shares space with a box of any grid."""
        return bool(self._is_set(touched(grid, self.grid, box)).any())

    def _is_set(self, box: Box) -> NDArray[np.bool_]:
        voxels = self.array[box.slices]
        found: NDArray[np.bool_] = voxels != 0
        return found & (voxels != _CREMI_BACKGROUND) if voxels.dtype == np.uint64 else found

    def _span(self, axis: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each voxel of the volume the first of the mask's voxels that it takes, and the one after the last."""
        step, size = self.target.spacing[axis] / self.grid.spacing[axis], self.grid.shape[axis]
        shift = (self.target.origin[axis] - self.grid.origin[axis]) / self.grid.spacing[axis]
        centres = np.arange(start, stop) * step + shift + 0.5
        if step <= 1 + SAME:
            low = np.floor(centres + SAME).astype(np.int64)
            high = low + 1
        else:
            low = np.floor(centres - step / 2 + SAME).astype(np.int64)
            high = np.ceil(centres + step / 2 - SAME).astype(np.int64)
        low = low.clip(0, size - 1)
        return low, np.maximum(high.clip(1, size), low + 1)


def open_mask(where: str, whole: Grid, region: Box | None = None) -> Mask:
    """Open a mask and find out where it lies; of one in a store, no voxel is read.

    Args:
        where: A store, or a file of any format that volumes are read from.
        whole: The volume's grid.
        region: The part of it that is segmented; None for all.

    Raises:
        VolumeError: If it cannot be read, or does not show all of what is segmented.
    """
    target = whole.part(region) if region else whole
    if is_store(where):
        array, grid, identity = _from_store(where, whole)
        target = _straight(where, target)
    else:
        array, grid, identity = _from_file(Path(where))
        array, grid, target = _same_axes(where, array, grid, target)
    if beyond(target, grid, Box.whole(target.shape)) is not None:
        raise VolumeError(
            f"the mask {where} does not show all of the volume: it has {' x '.join(map(str, grid.shape))} voxels, "
            f"{extent(grid)}; the volume {' x '.join(map(str, target.shape))}, {extent(target)}",
            _remedy(target, grid, region),
        )
    return Mask(array, grid, target, identity)


def mask_over(where: str, grid: Grid) -> NDArray[np.bool_]:
    """A mask over a volume in memory, of the volume's shape.

    Raises:
        VolumeError: As of ``open_mask``, or if it is set nowhere.
    """
    found = open_mask(where, grid).part(Box.whole(grid.shape))
    if not found.any():
        raise VolumeError(f"the mask {where} is set nowhere in the volume", "Name another mask.")
    return found


def _remedy(target: Grid, grid: Grid, region: Box | None) -> str:
    """What to do about a mask that shows only a part, or nothing."""
    shared = common(target, grid)
    if shared is None:
        return "Correct spacing and origin of the mask, or name one of this volume."
    inside = shared.shift(region.start) if region else shared
    text = ",".join(f"{a}:{b}" for a, b in zip(inside.start, inside.stop, strict=True))
    return (
        "Resample the mask onto the volume's grid, or correct its spacing and origin; of a volume in a store, the part "
        f"that it shows can be named: --region {text}"
    )


def _from_store(where: str, whole: Grid) -> tuple[VoxelArray, Grid, Mapping[str, Any]]:
    """A mask in a store; one of the volume's shape that does not say its spacing has the volume's."""
    try:
        scales = open_store(where, as_labels=True)
    except VolumeError:
        try:
            scales = open_store(where, as_labels=True, spacing=whole.spacing, unit=whole.unit)
        except VolumeError as error:
            raise VolumeError(f"mask: {error.problem}", error.remedy) from error
        if scales.levels[0].grid.shape != whole.shape:
            raise
        grid = replace(whole, direction=None)
    else:
        grid = _in_unit(scales.levels[0].grid, whole.unit)
    if (count := len(scales.levels[0].channels)) > 1:
        raise VolumeError(f"the mask {where} has {count} channels", "Store the one that is meant by itself.")
    return scales.levels[0].channels[0], grid, scales.identity


def _in_unit(grid: Grid, unit: str) -> Grid:
    """A grid with its lengths in another unit."""
    factor = _UNITS[grid.unit] / _UNITS[unit]
    (a, b, c), (z, y, x) = ([value * factor for value in values] for values in (grid.spacing, grid.origin))
    return replace(grid, spacing=(a, b, c), origin=(z, y, x), unit=unit)


def _from_file(path: Path) -> tuple[NDArray[Any], Grid, Mapping[str, Any]]:
    """A mask in a file, read as a whole."""
    try:
        volume = read_volume([path])
    except VolumeError as error:
        raise VolumeError(f"mask: {error.problem}", error.remedy) from error
    (array,) = volume.channels
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return array, volume.grid, {"where": str(path), "shape": list(array.shape), "sha256": digest}


def _same_axes(where: str, array: NDArray[Any], grid: Grid, target: Grid) -> tuple[NDArray[Any], Grid, Grid]:
    """Mask and volume with the axes of the volume; lengths of a file have the volume's unit, whatever it says.

    Raises:
        VolumeError: If their axes are not parallel.
    """
    if target.direction is None or grid.direction is None:
        return array, _straight(where, replace(grid, unit=target.unit)), replace(target, direction=None)
    ours, theirs = (np.reshape(one.cosines, (3, 3))[::-1, ::-1] for one in (target, grid))
    turned = ours.T @ theirs  # columns: the mask's axes, in those of the volume
    axes = np.abs(turned).argmax(axis=1)
    signs = turned[np.arange(3), axes]
    if sorted(axes.tolist()) != [0, 1, 2] or np.abs(signs).min() < 1 - _STRAIGHT:
        raise VolumeError(
            f"the mask {where} has axes that are not parallel to those of the volume",
            "Resample the mask onto the volume's grid.",
        )
    turn = Turn(triple(axes.tolist()), tuple((signs < 0).tolist()))
    last = [size - 1 if signs[list(axes).index(axis)] < 0 else 0 for axis, size in enumerate(grid.shape)]
    first = np.array(grid.origin) + theirs @ (np.array(grid.spacing) * last)
    z, y, x = (ours.T @ (first - np.array(target.origin))).tolist()
    moved = replace(
        grid, shape=turn.sizes(grid.shape), spacing=turn.per_axis(grid.spacing), origin=(z, y, x), direction=None
    )
    here = replace(target, origin=(0.0, 0.0, 0.0), direction=None)
    return np.asarray(turn.array(array)), replace(moved, unit=target.unit), here


def _straight(where: str, grid: Grid) -> Grid:
    """The grid of a file over a volume of unknown direction.

    Its axes are the volume's if they are turned by nothing, or only as NIfTI's and ITK's conventions differ.

    Raises:
        VolumeError: If they are turned.
    """
    cosines = np.reshape(grid.cosines, (3, 3))
    if np.allclose(cosines, np.eye(3), atol=_STRAIGHT):
        return replace(grid, direction=None)
    if np.allclose(cosines, np.diag(_TO_RAS[0]), atol=_STRAIGHT):
        z, y, x = (value * sign for value, sign in zip(grid.origin, _TO_RAS[1], strict=True))
        return replace(grid, origin=(z, y, x), direction=None)
    raise VolumeError(
        f"the mask {where} has turned axes, and the volume does not say how its own lie",
        "Store the mask with axes x, y, z and without rotation, as zarr or in NRRD with the identity as directions.",
    )


def any_along(
    found: NDArray[np.bool_], axis: int, low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether anything is set in windows along an axis.

    Args:
        found: The array.
        axis: The axis.
        low: First entry of each window.
        high: The one after the last, above ``low``.
    """
    if (high - low == 1).all():
        return found.take(low, axis)
    # reduceat takes what lies between two following indices; what is between two windows is left out again.
    padded = np.concatenate([found, np.zeros_like(found.take([0], axis))], axis)
    edges = np.stack([low, high], 1).ravel()
    reduced: NDArray[np.bool_] = np.logical_or.reduceat(padded, edges, axis)
    return reduced.take(np.arange(0, len(edges), 2), axis)


def pooled(found: NDArray[np.bool_], place: Box, native: Triple, coarse: Triple, box: Box) -> NDArray[np.bool_]:
    """Which voxels of a coarser (or finer) grid over the same space touch what is set.

    Args:
        found: What is set of a box of a grid.
        place: That box; it holds all that ``box`` touches.
        native: Shape of that grid.
        coarse: Shape of the other one.
        box: The part of the other one that is wanted.
    """
    for axis, (first, size, count) in enumerate(zip(place.start, native, coarse, strict=True)):
        index = np.arange(box.start[axis], box.stop[axis])
        low, high = index * size // count - first, -(-(index + 1) * size // count) - first
        found = any_along(found, axis, low, high)
    return found


def unset_outside(labels: NDArray[Any], kept: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Labels, background outside of a mask, if there is one; they are changed in place, as a copy may be large."""
    return labels if kept is None else np.multiply(labels, kept, out=labels)
