"""The input of a run: a volume in a store, or a region of it, at all of its scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canvas import Box, Triple, triple
from coarse2fine.errors import ConfigError, VolumeError
from coarse2fine.io import Grid, LazyArray, Scales, Volume, open_store
from coarse2fine.io.stores.hdf5 import RAW, is_hdf5, read_attributes
from coarse2fine.io.stores.presence import Keep, misfit
from coarse2fine.large.levels import part_of, reaches_over, uncovered
from coarse2fine.preprocessing.mask import Mask, open_mask

TOLERANCE = 1.02
"""By how much a level's voxels may exceed those that the coarse network wants: spacings are rounded numbers."""


@dataclass(frozen=True, slots=True)
class Source:
    """What any process needs in order to open the input.

    Attributes:
        where: Path or URL.
        array: Name of an array inside of it; None for the format's own.
        spacing: Voxel size (z, y, x), where the store does not say it or is wrong.
        unit: Its unit, likewise.
        region: Voxels of the finest level that are worked on; None for all.
        axes: Letters of the array's axes in their order, where the store does not say them or is wrong.
        channel: The only channel that is read, counted from 0; None for all.
        mask: A store or file that is set where something is to be looked at; None for everywhere.
    """

    where: str
    array: str | None = None
    spacing: tuple[float, float, float] | None = None
    unit: str | None = None
    region: Box | None = None
    axes: str | None = None
    channel: int | None = None
    mask: str | None = None

    def open(self) -> tuple[Scales, tuple[Volume[LazyArray], ...]]:
        """The store, and its scales, finest first: of the finest one the region, of others everything.

        Raises:
            VolumeError: If it cannot be read as an image.
        """
        scales = open_store(
            self.where,
            array=self.array,
            spacing=self.spacing,
            unit=self.unit,
            axes=self.axes,
            channel=self.channel,
        )
        region = self.region or Box.whole(scales.levels[0].grid.shape)
        return scales, (part_of(scales.levels[0], region), *scales.levels[1:])

    def open_mask(self) -> Mask | None:
        """The mask over the region; None if there is none.

        Raises:
            VolumeError: If it cannot be read, or does not fit the volume.
        """
        return None if self.mask is None else open_mask(self.mask, self.open()[0].levels[0].grid, self.region)

    def attributes(self) -> Mapping[str, Any]:
        """What a CREMI file says about its raw data; empty for other formats."""
        path = Path(self.where).expanduser()
        return read_attributes(path, self.array or RAW) if is_hdf5(path) else {}


def pick_level(grids: Sequence[Grid], wanted: Sequence[float], level: int | None) -> int:
    """The scale level that a network reads which wants voxels of a size.

    Args:
        grids: Of the levels, finest first, axes as in the file.
        wanted: Voxel size of the network's working grid, axes as in the file.
        level: The level that the user asks for; None for the coarsest that is at least as fine as wanted.

    Raises:
        ConfigError: If there is no such level.
    """
    if level is not None:
        if level >= len(grids):
            raise ConfigError(
                f"blocks.coarse_level is {level}, but the volume has {len(grids)} scale level(s), counted from 0",
                "Name one of them, or leave it out.",
            )
        return level
    fitting = [
        index
        for index, grid in enumerate(grids)
        if all(size <= want * TOLERANCE for size, want in zip(grid.spacing, wanted, strict=True))
    ]
    return fitting[-1] if fitting else 0


def fitting_level(
    level: int, asked: int | None, scales: Scales, region: Box | None, keep: Keep | None = None
) -> tuple[int, tuple[str, ...]]:
    """The scale level that the coarse network reads: the next finer one for each that does not show the volume.

    Args:
        level: The one that suits the network.
        asked: The one that the user asks for, if any.
        scales: The store.
        region: Voxels of the finest level that are worked on; None for all.
        keep: Which parts of a grid are looked at; None for all.

    Returns:
        The level, a warning for each that is passed over, and one if it shows more than the finest one.

    Raises:
        VolumeError: If the one that the user asks for does not show the volume.
    """
    finest = scales.levels[0].grid
    wanted, warnings = region or Box.whole(finest.shape), []
    while level > 0 and (
        why := uncovered(finest, scales.levels[level].grid, wanted) or misfit(scales, level, region, keep)
    ):
        problem = f"{scales.storage[level].where}, scale level {level}: {why}"
        if asked is not None:
            raise VolumeError(problem, f"Leave blocks.coarse_level out, or name another level (below {level}).")
        level -= 1
        warnings.append(f"{problem} The coarse network reads level {level} instead.")
    if more := reaches_over(finest, scales.levels[level].grid):
        warnings.append(f"{scales.storage[level].where}, scale level {level}: {more}")
    return level, tuple(warnings)


def identity_of(scales: Scales, region: Box | None, mask: Mask | None = None) -> Mapping[str, Any]:
    """What tells this input from others."""
    identity = {**scales.identity, "region": None if region is None else [*region.start, *region.stop]}
    return identity if mask is None else identity | {"mask": dict(mask.identity)}


def chunk_of(shape: Triple, largest: Triple = (64, 128, 128)) -> Triple:
    """Storage chunk of a result."""
    return triple(min(edge, limit) for edge, limit in zip(shape, largest, strict=True))
