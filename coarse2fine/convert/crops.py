"""Cases cut out of volumes that are read by region, with labels that may cover a part of them only."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, triple
from coarse2fine.convert.samples import Part, Sample
from coarse2fine.errors import VolumeError
from coarse2fine.io import Grid, LazyArray, Scales, Volume

_WHOLE = 1e-3  # voxels that a shift may lie beside a whole number
_SLAB = 8  # planes of labels in memory at a time, which may have 64 bits


def covered(image: Scales, labels: Scales) -> Box:
    """The voxels of an image that labels cover; the box may reach outside of the image.

    Raises:
        VolumeError: If they differ in unit or voxel size, or are shifted by parts of a voxel, or one of them has
            several channels or another unit than nm.
    """
    one, other = (_grid(scales) for scales in (image, labels))
    if not np.allclose(one.spacing, other.spacing):
        raise VolumeError(
            f"{_name(image)} has a voxel size of {one.spacing} nm (z, y, x), {_name(labels)} of {other.spacing} nm",
            "Name an array of labels of the image's resolution, or resample one of them.",
        )
    shift = np.subtract(other.origin, one.origin) / one.spacing
    if np.abs(shift - np.rint(shift)).max() > _WHOLE:
        raise VolumeError(
            f"{_name(labels)} begins {', '.join(f'{part:.6g}' for part in shift)} voxels (z, y, x) after "
            f"{_name(image)}, which is not whole",
            "Correct the offset in its metadata.",
        )
    return Box.of(np.rint(shift), other.shape)


def crop_sample(
    name: str,
    image: Scales,
    labels: Scales | None,
    box: Box,
    *,
    background: frozenset[int],
    source: Mapping[str, Any],
) -> Sample:
    """A case for training, or for testing if it has no labels.

    Args:
        name: Of the case.
        image: Volume with one channel, of which the finest level is used.
        labels: Its labels; they cover ``box``.
        box: Voxels of the image. The case has their place as its origin.
        background: Values of the labels that become 0; all others become 1.
        source: For dataset.json; where the box is will be added.

    Raises:
        VolumeError: If image and labels do not fit together.
    """
    part = None
    if labels is not None:
        inner = box.relative_to(covered(image, labels))
        part = Part(_name(labels, inner), partial(_load_mask, name, labels, inner, background))
    return Sample(
        name=name,
        image=Part(_name(image, box), partial(_load, name, image, box)),
        labels=part,
        test=labels is None,
        source={**source, "start": list(box.start), "shape": list(box.shape)},
    )


def _load(name: str, scales: Scales, box: Box) -> Volume[NDArray[Any]]:
    return Volume((_array(scales)[box.slices],), _grid(scales).part(box), name)


def _load_mask(name: str, scales: Scales, box: Box, background: frozenset[int]) -> Volume[NDArray[Any]]:
    labels, mask = _array(scales), np.empty(box.shape, np.uint8)
    values = [value for value in background if value <= np.iinfo(labels.dtype).max]
    for z in range(0, box.shape[0], _SLAB):
        slab = Box.of((box.start[0] + z, *box.start[1:]), (min(_SLAB, box.shape[0] - z), *box.shape[1:]))
        mask[z : z + _SLAB] = np.isin(labels[slab.slices], values, invert=True)
    return Volume((mask,), _grid(scales).part(box), name)


def _array(scales: Scales) -> LazyArray:
    return scales.levels[0].channels[0]


def _grid(scales: Scales) -> Grid:
    """The finest level's grid, of a volume that is fit for EM."""
    volume = scales.levels[0]
    if len(volume.channels) != 1:
        raise VolumeError(f"{_name(scales)} has {len(volume.channels)} channels", "Name an array with one channel.")
    if volume.grid.unit != "nm":
        raise VolumeError(
            f"{_name(scales)} has a voxel size in {volume.grid.unit}, which is not EM's", "Correct its unit: nm."
        )
    return volume.grid


def _name(scales: Scales, box: Box | None = None) -> str:
    """What messages call a volume, or a part of it."""
    array = scales.identity.get("array")
    name = f"{scales.where}:{array}" if array else scales.where
    if box is None or box == Box.whole(scales.levels[0].grid.shape):
        return name
    return f"{name}, voxels {triple(box.start)} to {triple(box.stop)} (z, y, x)"
