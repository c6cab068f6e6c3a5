"""Whether a case is like those that a promise was measured on: voxel size, intensities, and how much is found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coarse2fine.coarse.scene import Scene
from coarse2fine.io import Volume

SAME = 1.05
"""Factor by which voxel sizes may differ and still count as one: headers round."""
_SAMPLE = 1 << 20  # voxels
_ENDS = (1, 99)  # percentiles, between which most voxels lie, whatever a few broken ones say

Ends = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Likeness:
    """What one case is like.

    Attributes:
        spacing: Voxel size (z, y, x), axes and unit as in the file.
        low, high: First and 99th percentile of each channel's intensities.
        mass: Volume of what the coarse model finds: the heatmap's sum times a heatmap voxel's volume, in units cubed.
    """

    spacing: tuple[float, float, float]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mass: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        z, y, x = values["spacing"]
        return cls((z, y, x), tuple(values["low"]), tuple(values["high"]), values["mass"])


def likeness_of(volume: Volume[NDArray[Any]], scene: Scene) -> Likeness:
    """What a case is like.

    Args:
        volume: In memory.
        scene: The same, as the models see it.
    """
    ends = [_percentiles(channel) for channel in volume.channels]
    heatmap, spacing = scene.coarse.heatmap, volume.grid.spacing
    voxel = prod(scene.view.crop.shape) * prod(spacing) / prod(heatmap.shape)
    mass = float(heatmap.sum(dtype=np.float64)) * voxel
    return Likeness(spacing, tuple(low for low, _ in ends), tuple(high for _, high in ends), mass)


def _percentiles(channel: NDArray[Any]) -> Ends:
    flat = channel.reshape(-1)
    low, high = np.percentile(flat[:: max(1, flat.size // _SAMPLE)], _ENDS)
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Known:
    """Between which ends the cases lie that a promise was measured on.

    Attributes:
        spacing: Of each axis (z, y, x).
        low, high: Of each channel.
        mass: Of all cases.
    """

    spacing: tuple[Ends, ...]
    low: tuple[Ends, ...]
    high: tuple[Ends, ...]
    mass: Ends

    @classmethod
    def of(cls, cases: Sequence[Likeness]) -> Self:
        """The ends of some cases."""
        spacing, low, high = (
            tuple(map(_ends, zip(*rows, strict=True)))
            for rows in ([c.spacing for c in cases], [c.low for c in cases], [c.high for c in cases])
        )
        return cls(spacing, low, high, _ends([case.mass for case in cases]))


def _ends(values: Sequence[float]) -> Ends:
    return min(values), max(values)


def unlike(case: Likeness, known: Known) -> Iterator[str]:
    """In what a case is unlike those that are known, in words.

    Voxel sizes may lie outside by a rounding error; intensities and masses by as much as the known ones differ among
    themselves, for the next of a few cases often is a little beyond them.
    """
    for axis, value, (least, most) in zip("zyx", case.spacing, known.spacing, strict=True):
        if not least / SAME <= value <= most * SAME:
            yield f"voxel size along {axis} {value:g}, there {least:g} to {most:g}"
    for name, values, ends in (("first", case.low, known.low), ("99th", case.high, known.high)):
        for channel, (value, (least, most)) in enumerate(zip(values, ends, strict=True)):
            if not least - (most - least) <= value <= most + (most - least):
                yield f"{name} percentile of channel {channel} {value:g}, there {least:g} to {most:g}"
    least, most = known.mass
    if not least - (most - least) <= case.mass <= most + (most - least):
        yield f"volume that the coarse model finds {case.mass:g}, there {least:g} to {most:g}"
