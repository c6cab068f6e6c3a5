"""A volume in memory: voxels of one or more channels on one grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """Voxels of a case as its files hold them, neither converted nor stacked.

    Attributes:
        channels: One array of shape (z, y, x) per channel, in the file's own voxel type.
        grid: The grid that all channels share.
        name: Name of the case.

    Raises:
        ValueError: If there is no channel, or one has another shape than the grid.
    """

    channels: tuple[NDArray[Any], ...]
    grid: Grid
    name: str

    def __post_init__(self) -> None:
        shapes = {channel.shape for channel in self.channels}
        if shapes != {self.grid.shape}:
            raise ValueError(f"channels of shapes {sorted(shapes)} do not fit a grid of shape {self.grid.shape}")
