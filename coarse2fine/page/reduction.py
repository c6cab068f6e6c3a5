"""A volume small enough to travel in a page."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import nibabel
import numpy as np
from isal import igzip
from numpy.typing import NDArray

from canvas import Triple, triple
from coarse2fine.io import Grid

_MOST_EDGE = 1024  # voxels; what graphics chips of today take without complaint is twice that
_BEST = 12  # how many times smaller than its bytes a volume gets at the very best; fewer are not even tried
_SHRINKS = 0.7  # means of more voxels have less noise and get somewhat smaller than their number says
_ALIKE = 1.01
_HOUNSFIELD = (-1024, 3071)

Voxels = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Reduced:
    """What travels.

    Attributes:
        image, labels: Compressed NIfTI files as base64 text.
        factors: How many voxels one of it stands for along each axis (z, y, x).
        low, high: What is drawn black and white at first.
    """

    image: str
    labels: str
    factors: Triple
    low: float
    high: float


def reduce_volume(
    image: Voxels, labels: Voxels, grid: Grid, window: tuple[float, float], *, ct: bool, most: int
) -> Reduced:
    """The least reduced version of a volume that is small enough.

    Image voxels are means of blocks, labels the largest label in them, so that no object disappears. Hounsfield units
    stay what they are; other images get 255 grey values.

    Args:
        image: One channel, (z, y, x).
        labels: Of the same shape.
        grid: Of both.
        window: What is drawn black and white at first.
        ct: Whether the image is in Hounsfield units.
        most: Bytes of both together.
    """
    encode, bytes_of = (_hounsfield, 2) if ct else (_greys(image), 1)
    factors: Triple = (1, 1, 1)
    least = 1.0  # voxels of a block, below which it is not worth trying
    while True:
        shape = [-(-size // factor) for size, factor in zip(image.shape, factors, strict=True)]
        fits = max(shape) <= _MOST_EDGE and math.prod(shape) * bytes_of <= _BEST * most
        smallest = max(shape) == 1  # of one voxel nothing is left to reduce
        if smallest or (fits and math.prod(factors) >= least):
            low, high = sorted(float(encode(np.array([edge]))[0]) for edge in window)
            shown = _nifti(in_blocks(image, factors, mean, encode), grid, factors)
            painted = _nifti(in_blocks(labels, factors, largest, np.asarray), grid, factors)
            if smallest or len(shown) + len(painted) <= most:
                return Reduced(shown, painted, factors, low, high)
            least = _SHRINKS * math.prod(factors) * (len(shown) + len(painted)) / most
        factors = _coarser(factors, grid)


def _coarser(factors: Triple, grid: Grid) -> Triple:
    """Blocks that are one voxel longer along the axis where they are shortest, or those where they are so alike."""
    axes = zip(factors, grid.spacing, grid.shape, strict=True)
    edges = [factor * edge if factor < size else np.inf for factor, edge, size in axes]
    return triple(factor + (edge <= _ALIKE * min(edges)) for factor, edge in zip(factors, edges, strict=True))


def in_blocks(
    voxels: Voxels, factors: Triple, what: Callable[[Sequence[Voxels]], Voxels], encode: Callable[[Voxels], Voxels]
) -> Voxels:
    """One value for each block of voxels, slab by slab; blocks at the end are filled up with the last voxels.

    Args:
        voxels: (z, y, x).
        factors: Voxels of a block along each axis.
        what: ``mean`` or ``largest``; gets the first voxels of all blocks, the second ones, and so on.
        encode: Applied to what comes of a slab.
    """
    offsets = list(itertools.product(*map(range, factors)))
    slabs = []
    for start in range(0, voxels.shape[0], factors[0]):
        slab = np.asarray(voxels[start : start + factors[0]])
        missing = [-size % factor for size, factor in zip(slab.shape, factors, strict=True)]
        if any(missing):
            slab = np.pad(slab, [(0, more) for more in missing], mode="edge")
        slabs.append(encode(what([slab[z, y :: factors[1], x :: factors[2]] for z, y, x in offsets])))
    return np.stack(slabs)


def mean(parts: Sequence[Voxels]) -> NDArray[np.float32]:
    """Of several arrays, place by place."""
    total = np.zeros(parts[0].shape, np.float32)
    for part in parts:
        total += part
    return total / np.float32(len(parts))


def largest(parts: Sequence[Voxels]) -> Voxels:
    """Of several arrays, place by place."""
    return reduce(np.maximum, parts)


def _hounsfield(values: Voxels) -> NDArray[np.int16]:
    return np.asarray(np.clip(np.rint(np.nan_to_num(values)), *_HOUNSFIELD), np.int16)


def _greys(image: Voxels) -> Callable[[Voxels], NDArray[np.uint8]]:
    """From intensities to 255 grey values; the brightest thousandth is cut off."""
    sample = np.asarray(image[tuple(slice(None, None, max(1, size // 128)) for size in image.shape)], np.float32)
    low, high = np.percentile(sample[np.isfinite(sample)], (0.1, 99.9)) if np.isfinite(sample).any() else (0.0, 1.0)
    span = max(float(high - low), 1e-9)

    def grey(values: Voxels) -> NDArray[np.uint8]:
        shares = (np.nan_to_num(np.asarray(values, np.float32), nan=low) - low) / span
        return np.asarray(np.clip(shares, 0, 1) * 255 + 0.5, np.uint8)

    return grey


def _nifti(voxels: Voxels, grid: Grid, factors: Triple) -> str:
    """A compressed NIfTI file as text; its affine is that of the grid, less what blocks make of it."""
    content = nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine_of(grid, factors)).to_bytes()
    return base64.b64encode(igzip.compress(content, 3)).decode("ascii")


def affine_of(grid: Grid, factors: Triple) -> NDArray[np.float64]:
    """From voxels (x, y, z) of blocks to RAS, as NIfTI wants it."""
    steps = np.reshape(grid.cosines, (3, 3)) * np.array(grid.spacing[::-1])
    offset = (np.array(factors[::-1]) - 1) / 2  # from a block's first voxel to its centre
    affine = np.eye(4)
    affine[:3, :3] = steps * np.array(factors[::-1])
    affine[:3, 3] = np.array(grid.origin[::-1]) + steps @ offset
    affine[:2] *= -1
    return affine
