"""A volume, in memory or read by region: voxels of one or more channels on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from canvas import Triple

Spacing = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        shape: Voxels per axis (z, y, x).
        spacing: Distance between voxel centres per axis (z, y, x), positive, in ``unit``.
        unit: Unit of spacing and origin, "mm" or "nm".
        origin: Position of the first voxel, in the file's own axis order (x, y, z); only passed on.
        direction: Direction cosines, row by row as SimpleITK gives them; only passed on.
    """

    shape: Triple
    spacing: Spacing
    unit: str = "mm"
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class VoxelArray(Protocol):
    """What can be read by region: NumPy arrays, and arrays that fetch a region from a file when it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis, (z, y, x) unless transposed."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""

    def __getitem__(self, key: tuple[slice, slice, slice], /) -> NDArray[Any]:
        """The voxels of a region."""

    def transpose(self, axes: Sequence[int], /) -> VoxelArray:
        """The same voxels with other axis order: axis i of the result is axis ``axes[i]`` of this array."""


Voxels = TypeVar("Voxels", bound=VoxelArray, covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Volume(Generic[Voxels]):
    """Voxels of a case as its files hold them, neither converted nor stacked.

    Attributes:
        channels: One array of shape (z, y, x) per channel, in the file's own voxel type; each can be read by region.
        grid: The grid that all channels share.
        name: Name of the case.

    Raises:
        ValueError: If there is no channel, or one has another shape than the grid.
    """

    channels: tuple[Voxels, ...]
    grid: Grid
    name: str

    def __post_init__(self) -> None:
        shapes = {channel.shape for channel in self.channels}
        if shapes != {self.grid.shape}:
            raise ValueError(f"channels of shapes {sorted(shapes)} do not fit a grid of shape {self.grid.shape}")
