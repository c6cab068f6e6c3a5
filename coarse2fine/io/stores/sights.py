"""Two levels of a volume side by side, at places spread over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.lazy import LazyArray
from coarse2fine.io.stores.scales import Scales, Storage
from coarse2fine.io.volume import Grid

PROBES, FAR_PROBES = 256, 48  # places that are asked whether anything is stored; each is a request to a far store
EDGE = 64  # voxels of the finest level that are read at once, per axis
THREADS = 8


Summary = tuple[float, float, float]  # mean, least, greatest


@dataclass(frozen=True, slots=True)
class Sight:
    """The same place on two levels.

    Attributes:
        stored: Whether any chunk of the coarse level is stored there; None if that cannot be known.
        coarse: Mean, least and greatest voxel of the coarse level.
        fine: The same of the fine level.
        lacks: Whether coarse voxels are the fill value where fine ones mostly are not.
        lacks_fine: The other way round.
        outside: Share of coarse voxels that are neither among the fine ones around them nor between.
        pairs: Coarse voxels, the mean of the fine ones within each, and around it; shape (3, n).
        spread: Standard deviation of the fine voxels.
    """

    stored: bool | None
    coarse: Summary
    fine: Summary
    lacks: bool
    lacks_fine: bool
    outside: float
    pairs: NDArray[np.float64]
    spread: float


def look_at(scales: Scales, level: int, places: Sequence[Triple]) -> list[Sight]:
    """A level beside the finest one, around some of its voxels."""
    channels = [scales.levels[index].channels[0] for index in (level, 0)]
    grids = [scales.levels[index].grid for index in (level, 0)]
    storages = [scales.storage[index] for index in (level, 0)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda place: _look(channels, storages, grids, place), places)
        return [sight for sight in found if sight is not None]


def _look(
    arrays: Sequence[LazyArray], storages: Sequence[Storage], grids: Sequence[Grid], place: Triple
) -> Sight | None:
    """Voxels around one of the coarse level, beside those of the finest; None where these cannot be read."""
    grid, finest = grids
    ratio = [c / f for c, f in zip(grid.spacing, finest.spacing, strict=True)]
    edges = [
        max(1, min(int(EDGE / max(r, 1)), n, c)) for r, n, c in zip(ratio, grid.shape, storages[0].edges, strict=True)
    ]
    box = chunk_part(place, edges, storages[0].edges, grid.shape)
    coarse = arrays[0][box.slices]
    ranges = [_fine_range(axis, box.start[axis], box.stop[axis], grid, finest) for axis in range(3)]
    lows, highs = zip(*ranges, strict=True)
    around = Box(triple(int(low.min()) for low in lows), triple(int(high.max()) for high in highs))
    try:
        fine = arrays[1][around.slices]
    except VolumeError:  # damage is told where it matters: when the block is read
        return None
    windows = [(low - start, high - start) for low, high, start in zip(lows, highs, around.start, strict=True)]
    least, greatest, wide = (_windowed(fine, windows, reduce) for reduce in (np.min, np.max, np.mean))
    narrow = [
        tuple(edge - start for edge in _fine_range(axis, box.start[axis], box.stop[axis], grid, finest, margin=0))
        for axis, start in enumerate(around.start)
    ]
    values, spread = coarse.astype(np.float64), float(fine.std())
    slack = 0.1 * spread + (1.0 if coarse.dtype.kind in "iu" else 0.0)
    fill = storages[1].fill
    clean = (least != fill) & (greatest != fill)  # what the finest level lacks itself says nothing
    beyond = (values < least - slack) | (values > greatest + slack)
    fills = [float(np.mean(part == storage.fill)) for part, storage in zip((coarse, fine), storages, strict=True)]
    stored = storages[0].stored(box)
    is_blank = fills[0] == 1 and fills[1] < 0.5
    return Sight(
        stored,
        _summary(coarse),
        _summary(fine),
        is_blank and (stored is False or bool(beyond.mean() > 0.5)),
        fills[1] == 1 and fills[0] < 0.5,
        float((beyond & clean).sum() / max(clean.sum(), 1)),
        np.stack([part[clean] for part in (values, _windowed(fine, narrow, np.mean), wide)]),
        spread,
    )


def places_in(region: Box, storage: Storage) -> list[Triple]:
    """Voxels spread evenly over a region, not more than one in each chunk; the same in every run."""
    count = PROBES if storage.near else FAR_PROBES
    found: dict[Triple, Triple] = {}
    for number in range(1, count + 1):
        place = triple(
            start + min(int(_halton(number, base) * (stop - start)), stop - start - 1)
            for start, stop, base in zip(region.start, region.stop, (5, 3, 2), strict=True)
        )
        found.setdefault(triple(v // e for v, e in zip(place, storage.edges, strict=True)), place)
    return list(found.values())


def _halton(number: int, base: int) -> float:
    """A term of a sequence that fills 0 to 1 evenly, however far it is followed.

    >>> [_halton(number, 2) for number in range(1, 5)]
    [0.5, 0.25, 0.75, 0.125]
    """
    value, share = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        share /= base
        value += digit * share
    return value


def ask(storage: Storage, shape: Triple, places: Sequence[Triple]) -> list[bool | None]:
    """Whether the chunks of these voxels are stored."""
    boxes = [chunk_box([v // e for v, e in zip(p, storage.edges, strict=True)], storage.edges, shape) for p in places]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(storage.stored, boxes))


def chunk_box(index: Sequence[int], edges: Triple, shape: Triple) -> Box:
    """The voxels of a chunk."""
    return Box.of([i * e for i, e in zip(index, edges, strict=True)], edges).clip(Box.whole(shape))


def chunk_part(place: Triple, size: Sequence[int], edges: Triple, shape: Triple) -> Box:
    """A box around a voxel within its chunk."""
    starts, stops = [], []
    for voxel, length, edge, end in zip(place, size, edges, shape, strict=True):
        first = voxel // edge * edge
        last = min(first + edge, end)
        start = max(first, min(voxel - length // 2, last - length))
        starts.append(start)
        stops.append(min(start + length, last))
    return Box(triple(starts), triple(stops))


def _corner(axis: int, grid: Grid) -> float:
    """Where a grid begins along an axis (z, y, x)."""
    return grid.origin[axis] - grid.spacing[axis] / 2


def _fine_range(
    axis: int, start: int, stop: int, grid: Grid, finest: Grid, margin: int = 1
) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each coarse voxel the finest level's voxels within it and its neighbours: first, and behind the last.

    Formats differ in whether an offset is that of a voxel's centre or corner, and in whether levels have one at all;
    neighbours are included for that.
    """
    step, length = grid.spacing[axis] / finest.spacing[axis], finest.shape[axis]
    shift = (_corner(axis, grid) - _corner(axis, finest)) / finest.spacing[axis]
    voxels = np.arange(start, stop)
    low = np.clip(np.floor((voxels - margin) * step + shift), 0, length - 1).astype(np.int64)
    high = np.clip(np.ceil((voxels + 1 + margin) * step + shift), 1, length).astype(np.int64)
    return low, np.maximum(high, low + 1)


def _windowed(
    values: NDArray[Any], windows: Sequence[tuple[NDArray[Any], ...]], reduce: Callable[..., NDArray[Any]]
) -> NDArray[np.float64]:
    """Least, greatest or mean value of windows, which are (first, behind the last) along each axis."""
    for axis, (begin, end) in enumerate(windows):
        parts = [reduce(np.take(values, range(a, b), axis), axis=axis) for a, b in zip(begin, end, strict=True)]
        values = np.stack(parts, axis)
    return values.astype(np.float64)


def _summary(values: NDArray[Any]) -> Summary:
    return float(values.mean(dtype=np.float64)), float(values.min()), float(values.max())


def coarse_place(place: Triple, finest: Grid, grid: Grid) -> Triple:
    """The coarse voxel that a voxel of the finest level lies in."""
    found = []
    for axis in range(3):
        where = (place[axis] + 0.5) * finest.spacing[axis] + _corner(axis, finest) - _corner(axis, grid)
        found.append(min(max(math.floor(where / grid.spacing[axis]), 0), grid.shape[axis] - 1))
    return triple(found)


def coarse_box(region: Box, finest: Grid, grid: Grid) -> Box:
    """The coarse voxels that lie in a region, at least one."""
    first = coarse_place(region.start, finest, grid)
    last = coarse_place(triple(stop - 1 for stop in region.stop), finest, grid)
    return Box(first, triple(max(b, a) + 1 for a, b in zip(first, last, strict=True)))
