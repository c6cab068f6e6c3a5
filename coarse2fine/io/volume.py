"""A volume, in memory or read by region: voxels of one or more channels on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple

Spacing = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        shape: Voxels per axis (z, y, x).
        spacing: Distance between voxel centres per axis (z, y, x), positive, in ``unit``.
        unit: Unit of spacing and origin, "mm" or "nm".
        origin: Position of the first voxel (z, y, x), which is SimpleITK's (x, y, z) backwards.
        direction: Direction cosines, row by row as SimpleITK gives them (x, y, z). None if nobody knows, as of stores,
            TIFF files and arrays: then no reader turns the volume.
        suffix: Ending of the file that says so; empty for volumes that are from no file.
        nifti: The 348 bytes of a NIfTI file's header. Its two affines, zooms and units need not agree; each reader
            makes of them what it does, and results get them all.
    """

    shape: Triple
    spacing: Spacing
    unit: str = "mm"
    origin: Spacing = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] | None = None
    suffix: str = field(default="", compare=False)
    nifti: bytes | None = field(default=None, compare=False, repr=False)

    @property
    def cosines(self) -> tuple[float, ...]:
        """Direction cosines to write: those of the axes themselves where nobody knows the direction."""
        return self.direction or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def part(self, box: Box) -> Grid:
        """The grid of a box of its voxels; a NIfTI header, which is the whole volume's, is not taken along."""
        steps = np.reshape(self.cosines, (3, 3))[::-1, ::-1] * self.spacing
        z, y, x = np.add(self.origin, steps @ box.start).tolist()
        return replace(self, shape=box.shape, origin=(z, y, x), nifti=None)


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
        grid: The grid of the first channel, which is that of results, too.
        name: Name of the case.
        others: The grids of the further channels; empty if all share the first one's.
        warnings: What was doubtful when it was read.

    Raises:
        ValueError: If there is no channel, or one has another shape than its grid.
    """

    channels: tuple[Voxels, ...]
    grid: Grid
    name: str
    others: tuple[Grid, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shapes = [channel.shape for channel in self.channels]
        if not shapes or shapes != [grid.shape for grid in self.grids]:
            raise ValueError(f"channels of shapes {shapes} do not fit a grid of shape {self.grid.shape}")

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grid of each channel."""
        return (self.grid, *self.others) if self.others else (self.grid,) * len(self.channels)
