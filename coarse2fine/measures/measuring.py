"""Measures of labels and of their objects, on the volume's own grid."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from canvas import Box, triple
from coarse2fine.io import Grid, Volume
from coarse2fine.regions.components import label_components

Point = tuple[float, float, float]

_HIGHEST = 65535  # label; tables over all values up to the highest one stay small
_SLAB = 1 << 20  # values per step of a sum, so that its temporaries stay small
_QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something lies, in the unit of its grid.

    Attributes:
        frame: ``LPS``: x grows to the patient's left, y to the back, z to the head, as in DICOM and SimpleITK; ``axes``
            where nobody knows how the volume lies: x, y, z grow along its own axes.
        centroid: Mean of the voxels' centres (x, y, z).
        box_min, box_max: Corners (x, y, z) of the box along the frame's axes that holds the box of voxels, edges of
            voxels included.
    """

    frame: str
    centroid: Point
    box_min: Point
    box_max: Point


@dataclass(frozen=True, slots=True)
class Intensity:
    """Of the values of one channel, as its file means them (slope and intercept applied).

    Attributes:
        mean: Their mean.
        sd: Standard deviation, of the voxels as they are (divided by their number).
        p5, p50, p95: Percentiles; between two values they are interpolated.
    """

    mean: float
    sd: float
    p5: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Measure:
    """A label, a region of a region-based model, or one object of it.

    Attributes:
        name: Of the label, as in ``dataset.json``; empty if it has none.
        values: The label's value; of a region all values that belong to it.
        voxels: How many.
        volume: In cubes of ``unit``.
        unit: Of all lengths: that of the grid, "mm" or "nm".
        components: Connected parts, 26 neighbours; None for an object, which is one.
        number: Of the object; None for a label.
        place: Where it lies; None if there are no voxels.
        intensity: Of each channel; empty if there are no voxels, or nobody looked at them.
    """

    name: str
    values: tuple[int, ...]
    voxels: int
    volume: float
    unit: str
    components: int | None = None
    number: int | None = None
    place: Place | None = None
    intensity: tuple[Intensity, ...] = ()

    @property
    def diameter(self) -> float:
        """Of the ball of the same volume, in ``unit``."""
        return 2 * math.cbrt(3 * self.volume / (4 * math.pi))


def measure(
    labels: NDArray[np.integer[Any]],
    volume: Volume[Any],
    names: Mapping[str, Collection[int]] | None = None,
    *,
    objects: bool = False,
) -> tuple[Measure, ...]:
    """Measures of labels, or of their objects.

    Beside volume and labels it takes memory for what lies in the box of one label: 5 bytes for each voxel there, and
    the label's values of one channel.

    Args:
        labels: Label map, shape (z, y, x) of the volume, 0 for background.
        volume: Its channels; also of volumes that are read by region.
        names: Label values by name; several of one region. None for every value that occurs, without a name.
        objects: Whether each connected object (26 neighbours) is measured instead.

    Returns:
        One for each name, also of what does not occur. Of objects those of the first name first, and of these the
        largest first; their numbers count from 1 through all of them.

    Raises:
        ValueError: If the labels have another shape than the volume, or are no whole numbers from 0 to 65535.

    >>> grid = Grid((1, 2, 3), (2.0, 1.0, 1.0))
    >>> scan = Volume((np.array([[[9, 8, 7], [6, 5, 4]]]),), grid, "scan")
    >>> one, two = measure(np.array([[[1, 1, 0], [0, 0, 2]]]), scan)
    >>> one.voxels, one.volume, one.place.centroid, one.intensity[0].mean
    (2, 4.0, (0.5, 0.0, 0.0), 8.5)
    """
    if labels.shape != volume.grid.shape:
        raise ValueError(f"labels of shape {labels.shape} do not fit a volume of shape {volume.grid.shape}")
    labels = labels.view(np.uint8) if labels.dtype == np.bool_ else labels
    if labels.dtype.kind not in "iu" or (labels.size and not 0 <= labels.min() <= labels.max() <= _HIGHEST):
        raise ValueError(f"labels of type {labels.dtype} must be whole numbers from 0 to {_HIGHEST}")
    boxes = {value: found for value, found in enumerate(ndimage.find_objects(labels), 1) if found is not None}
    if names is None:
        names = {f"{value}": (value,) for value in boxes}
        return tuple(replace(found, name="") for found in _all(labels, volume, names, boxes, objects=objects))
    return tuple(_all(labels, volume, names, boxes, objects=objects))


def place_of(grid: Grid, centroid: Point, box: Box) -> Place:
    """Where something lies whose centroid (z, y, x) and box are given in voxels of a grid."""
    steps = np.reshape(grid.cosines, (3, 3)) * grid.spacing[::-1]
    origin = np.array(grid.origin[::-1])
    start, stop = np.array([box.start[::-1], box.stop[::-1]])
    # A voxel reaches half a step to either side of its centre; of the eight corners, the farthest ones count.
    middle, reach = origin + steps @ ((start + stop - 1) / 2), np.abs(steps) @ ((stop - start) / 2)
    return Place(
        "axes" if grid.direction is None else "LPS",
        _point(origin + steps @ centroid[::-1]),
        _point(middle - reach),
        _point(middle + reach),
    )


def _all(
    labels: NDArray[np.integer[Any]],
    volume: Volume[Any],
    names: Mapping[str, Collection[int]],
    boxes: Mapping[int, tuple[slice, ...]],
    *,
    objects: bool,
) -> Iterator[Measure]:
    """The measures of all names, where the box of each value that occurs is known."""
    number = 0
    for name, of in names.items():
        values = tuple(sorted(of))
        held = [boxes[value] for value in values if value in boxes]
        if not held:
            if not objects:
                yield Measure(name, values, 0, 0.0, volume.grid.unit, 0)
            continue
        box = Box(
            triple(min(box[axis].start for box in held) for axis in range(3)),
            triple(max(box[axis].stop for box in held) for axis in range(3)),
        )
        numbers = _numbered(labels[box.slices], values)
        if not objects:
            yield _of_label(name, values, numbers, box, volume)
            continue
        for found in _of_objects(name, values, numbers, box, volume):
            number += 1
            yield replace(found, number=number)


def _numbered(labels: NDArray[np.integer[Any]], values: tuple[int, ...]) -> NDArray[np.unsignedinteger[Any]]:
    """Objects of these values numbered from 1, shape of ``labels``."""
    mask = labels == values[0]
    for value in values[1:]:
        mask |= labels == value
    return label_components(mask)[tuple(slice(edge) for edge in mask.shape)]


def _of_label(
    name: str, values: tuple[int, ...], numbers: NDArray[np.unsignedinteger[Any]], box: Box, volume: Volume[Any]
) -> Measure:
    found = cc3d.statistics(numbers, no_slice_conversion=True)
    counts = found["voxel_counts"][1:].astype(np.int64)
    centroid = np.average(found["centroids"][1:], axis=0, weights=counts) + box.start
    return Measure(
        name,
        values,
        int(counts.sum()),
        float(counts.sum() * np.prod(volume.grid.spacing)),
        volume.grid.unit,
        len(counts),
        None,
        place_of(volume.grid, _point(centroid), box),
        tuple(_intensity(channel[box.slices][numbers != 0]) for channel in volume.channels),
    )


def _of_objects(
    name: str, values: tuple[int, ...], numbers: NDArray[np.unsignedinteger[Any]], box: Box, volume: Volume[Any]
) -> Iterator[Measure]:
    """The objects of one label, the largest first; of equal ones the first in the volume."""
    found = cc3d.statistics(numbers, no_slice_conversion=True)
    counts = found["voxel_counts"].astype(np.int64)
    counts[0] = 0
    for one in np.argsort(-counts, kind="stable")[: len(counts) - 1]:
        low, high = found["bounding_boxes"][one].astype(np.int64).reshape(3, 2).T
        inner = Box(triple(low), triple(high + 1))
        mask = numbers[inner.slices] == one
        whole = Box(triple(low + box.start), triple(high + 1 + box.start))
        yield Measure(
            name,
            values,
            int(counts[one]),
            float(counts[one] * np.prod(volume.grid.spacing)),
            volume.grid.unit,
            place=place_of(volume.grid, _point(found["centroids"][one] + box.start), whole),
            intensity=tuple(_intensity(channel[whole.slices][mask]) for channel in volume.channels),
        )


def _intensity(values: NDArray[Any]) -> Intensity:
    """Of some values, which are reordered."""
    mean = float(values.mean(dtype=np.float64))
    parts = (values[start : start + _SLAB] for start in range(0, values.size, _SLAB))
    variance = math.fsum(float(np.square(part.astype(np.float64) - mean).sum()) for part in parts) / values.size
    places = [(values.size - 1) * quantile for quantile in _QUANTILES]
    values.partition(sorted({step(place) for place in places for step in (math.floor, math.ceil)}))
    p5, p50, p95 = (_between(values, place) for place in places)
    return Intensity(mean, math.sqrt(variance), p5, p50, p95)


def _between(values: NDArray[Any], place: float) -> float:
    """The value at a place between two that lie in order."""
    low, high = float(values[math.floor(place)]), float(values[math.ceil(place)])
    return low + (high - low) * (place - math.floor(place))


def _point(values: NDArray[np.floating[Any]]) -> Point:
    first, second, third = (float(value) for value in values)
    return first, second, third
