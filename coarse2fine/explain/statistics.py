"""Whether maps point at what they should: numbers over a set of maps and labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import VolumeError


@dataclass(frozen=True, slots=True)
class Agreement:
    """A map against a mask.

    Attributes:
        energy: Share of the map's sum that lies inside; None of a map that is 0 everywhere.
        area: Share of all pixels or voxels that lie inside: the energy of a map that is the same everywhere.
        hit: The pointing game: whether the map's highest value lies inside; of several equal ones, most of them. A map
            that is 0 everywhere hits nothing.
    """

    energy: float | None
    area: float
    hit: bool


def agreement(values: NDArray[Any], mask: NDArray[Any]) -> Agreement:
    """Compare a map with a mask.

    Args:
        values: The map, not negative.
        mask: Same shape; inside is what is not 0.

    Raises:
        VolumeError: If shapes differ, or the map has negative values or such that are no numbers.

    >>> agreement(np.array([[0.0, 3.0], [1.0, 0.0]]), np.array([[0, 1], [0, 0]]))
    Agreement(energy=0.75, area=0.25, hit=True)
    """
    if values.shape != mask.shape:
        raise VolumeError(
            f"a map of shape {values.shape} and a mask of {mask.shape}", "Compare maps with masks of the same image."
        )
    if not np.isfinite(values).all() or values.min() < 0:
        raise VolumeError(
            f"a map with values from {values.min()} to {values.max()}", "Give maps as c2f-explain writes them."
        )
    inside = mask != 0
    total, highest = float(values.sum(dtype=np.float64)), values.max()
    energy = float(values[inside].sum(dtype=np.float64)) / total if total else None
    return Agreement(energy, float(inside.mean()), bool(highest > 0 and inside[values == highest].mean() > 0.5))


def mean_maps(maps: Iterable[tuple[str, NDArray[Any]]]) -> dict[str, NDArray[np.float64]]:
    """The mean map of each class.

    Args:
        maps: Classes and maps; all maps of a class have one shape.

    Raises:
        VolumeError: If they have not.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for name, values in maps:
        if name in sums and sums[name].shape != values.shape:
            raise VolumeError(
                f"maps of {name} have the shapes {sums[name].shape} and {values.shape}",
                "Average maps of equal shapes only, such as those of images that were resized alike.",
            )
        sums[name] = sums.get(name, np.zeros(values.shape)) + values
        counts[name] = counts.get(name, 0) + 1
    return {name: total / counts[name] for name, total in sums.items()}
