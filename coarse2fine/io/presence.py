"""Whether what is read from a store was ever written: missing chunks read as their fill value, without a word.

A level may lack some of its chunks, or all: a copy that was cut short, chunks under other names than its metadata say.
Formats have it that such voxels are the fill value, and volumes that really are sparse leave out chunks of background.
So nothing follows from a missing chunk alone. It is looked at beside other voxels of the same place: those of another
level, or those across the chunk's face.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.lazy import LazyArray
from coarse2fine.io.scales import Scales, Storage
from coarse2fine.io.volume import Grid

PROBES, FAR_PROBES = 256, 48  # places that are asked whether anything is stored; each is a request to a far store
READS, GAPS = 32, 16  # places that are read, and further ones where nothing is stored
EDGE = 64  # voxels of the finest level that are read at once, per axis
FACE_PAIRS = 8  # faces between missing chunks and others that are looked at

_OUTSIDE = 0.1  # share of coarse voxels, and of places, that may lie outside of what finer voxels allow
_THREADS = 8


_Summary = tuple[float, float, float]  # mean, least, greatest


@dataclass(frozen=True, slots=True)
class _Sight:
    """The same place on two levels.

    Attributes:
        stored: Whether any chunk of the coarse level is stored there; None if that cannot be known.
        coarse: Mean, least and greatest voxel of the coarse level.
        fine: The same of the fine level.
        lacks: Whether coarse voxels are the fill value where fine ones mostly are not.
        lacks_fine: The other way round.
        outside: Share of coarse voxels that are neither among the fine ones around them nor between.
    """

    stored: bool | None
    coarse: _Summary
    fine: _Summary
    lacks: bool
    lacks_fine: bool
    outside: float


def check_stored(scales: Scales, region: Box | None = None) -> tuple[str, ...]:
    """Whether the finest level is there at all, and seems to be complete.

    Args:
        scales: The volume.
        region: Voxels of the finest level that are worked on; None for all.

    Returns:
        What the user should know of chunks that seem to be missing.

    Raises:
        VolumeError: If nothing is stored, so that every voxel would be the fill value.
    """
    storage, array = scales.storage[0], scales.levels[0].channels[0]
    region = region or Box.whole(array.shape)
    places = _places(region, storage)
    stored = _ask(storage, array.shape, places)
    where = storage.where if region == Box.whole(array.shape) else f"{storage.where}, {_named(region)}"
    if all(there is False for there in stored) and not (storage.near and storage.stored(region)):
        raise VolumeError(
            f"{where}: none of the {len(places)} chunks that were looked for is stored, every voxel would be the fill "
            f"value {storage.fill:g}",
            storage.hint() or "Copy it again, or name another array (--array) or region (--region).",
        )
    there = [place for place, is_there in zip(places, stored, strict=True) if is_there is not False]
    blank = set(_blank(array, storage, there[:READS]))
    gaps = [place for place in places if place not in there or place in blank]
    if not gaps:
        return ()
    witness = _witness(scales, gaps)
    full = [place for place in there[:READS] if place not in blank]
    bare, faces = (0, 0) if witness else _broken_faces(array, storage, full, gaps)
    if not witness and not bare:
        return ()
    words = witness or f"but voxels beside them hardly ever have this value (looked at {faces} borders)"
    hint = storage.hint() or "Copy it again, or name a region that is complete (--region)."
    return (
        f"{where}: {len(gaps)} of {len(places)} chunks that were looked for are not stored or were never written; they "
        f"read as {storage.fill:g}, {words}. Nothing is found there. {hint}",
    )


def _named(region: Box) -> str:
    return f"voxels {region.start} to {region.stop} (z, y, x)"


def _blank(array: LazyArray, storage: Storage, places: Sequence[Triple]) -> list[Triple]:
    """Those of the places around which there is nothing but the fill value."""

    def is_blank(place: Triple) -> bool:
        try:
            return bool(
                (array[_chunk_part(place, (EDGE,) * 3, storage.edges, array.shape).slices] == storage.fill).all()
            )
        except VolumeError:  # damage is told where it matters: when the block is read
            return False

    with ThreadPoolExecutor(_THREADS) as pool:
        return [place for place, blank in zip(places, pool.map(is_blank, places), strict=True) if blank]


def misfit(scales: Scales, level: int, region: Box | None = None) -> str:
    """Why a level does not show what the finest one does; empty if it does.

    Args:
        scales: The volume.
        level: 1 or more.
        region: Voxels of the finest level that are worked on; None for all.
    """
    storage, grid = scales.storage[level], scales.levels[level].grid
    region = region or Box.whole(scales.levels[0].grid.shape)
    if storage.near and storage.stored(Box.whole(grid.shape)) is False:
        words = f"none of its chunks is stored, every voxel would be the fill value {storage.fill:g}"
        return _with_hint(words, storage)
    places = _places(_coarse_box(region, scales.levels[0].grid, grid), storage)
    stored = _ask(storage, grid.shape, places)
    gaps = [place for place, there in zip(places, stored, strict=True) if there is False]
    try:
        sights = _look_at(scales, level, list(dict.fromkeys([*places[:READS], *gaps[:GAPS]])))
    except VolumeError as error:
        return error.problem
    return _judge([sight for sight in sights if not sight.lacks_fine], storage)


def _with_hint(words: str, storage: Storage) -> str:
    return f"{words}. {storage.hint()}".rstrip()


def _judge(sights: Sequence[_Sight], storage: Storage) -> str:
    """Why a level does not fit, from what was seen of it and of the finest."""
    if not sights:
        return ""
    coarse, fine = [sight.coarse for sight in sights], [sight.fine for sight in sights]
    figures = (
        f"at {len(sights)} places the mean is {_mean(coarse):.4g} (finest level {_mean(fine):.4g}), the range "
        f"{_least(coarse):.4g} to {_greatest(coarse):.4g} ({_least(fine):.4g} to {_greatest(fine):.4g})"
    )
    lacking = [sight for sight in sights if sight.lacks]
    if lacking:
        kind = "not stored" if any(sight.stored is False for sight in lacking) else "never written"
        return _with_hint(
            f"at {len(lacking)} of {len(sights)} places its chunks are {kind} and read as the fill value "
            f"{storage.fill:g}, where the finest level has others; {figures}",
            storage,
        )
    outside = [sight for sight in sights if sight.outside > _OUTSIDE]
    if len(outside) > _OUTSIDE * len(sights):
        return f"at {len(outside)} of {len(sights)} places its voxels are none that the finest level has; {figures}."
    varied = float(np.std([mean for mean, *_ in fine])) > 0.01 * (_greatest(fine) - _least(fine))
    if varied and _least(coarse) == _greatest(coarse):
        return f"its voxels are all the same, those of the finest level are not; {figures}."
    return ""


def _mean(summaries: Sequence[_Summary]) -> float:
    return float(np.mean([mean for mean, _, _ in summaries]))


def _least(summaries: Sequence[_Summary]) -> float:
    return min(least for _, least, _ in summaries)


def _greatest(summaries: Sequence[_Summary]) -> float:
    return max(greatest for _, _, greatest in summaries)


def _look_at(scales: Scales, level: int, places: Sequence[Triple]) -> list[_Sight]:
    """A level beside the finest one, around some of its voxels."""
    channels = [scales.levels[index].channels[0] for index in (level, 0)]
    grids = [scales.levels[index].grid for index in (level, 0)]
    storages = [scales.storage[index] for index in (level, 0)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda place: _look(channels, storages, grids, place), places)
        return [sight for sight in found if sight is not None]


def _look(
    arrays: Sequence[LazyArray], storages: Sequence[Storage], grids: Sequence[Grid], place: Triple
) -> _Sight | None:
    """Voxels around one of the coarse level, beside those of the finest; None where these cannot be read."""
    grid, finest = grids
    ratio = [c / f for c, f in zip(grid.spacing, finest.spacing, strict=True)]
    edges = [
        max(1, min(int(EDGE / max(r, 1)), n, c)) for r, n, c in zip(ratio, grid.shape, storages[0].edges, strict=True)
    ]
    box = _chunk_part(place, edges, storages[0].edges, grid.shape)
    coarse = arrays[0][box.slices]
    lows, highs = zip(
        *(_fine_range(axis, box.start[axis], box.stop[axis], grid, finest) for axis in range(3)), strict=True
    )
    around = Box(triple(int(low.min()) for low in lows), triple(int(high.max()) for high in highs))
    try:
        fine = arrays[1][around.slices]
    except VolumeError:  # damage is told where it matters: when the block is read
        return None
    least, greatest = fine, fine
    for axis in range(3):
        begin, end = lows[axis] - around.start[axis], highs[axis] - around.start[axis]
        least, greatest = (
            _windowed(values, axis, begin, end, op) for values, op in ((least, np.minimum), (greatest, np.maximum))
        )
    values, spread = coarse.astype(np.float64), float(fine.std())
    slack = 0.1 * spread + (1.0 if coarse.dtype.kind in "iu" else 0.0)
    outside = (values < least.astype(np.float64) - slack) | (values > greatest.astype(np.float64) + slack)
    fills = [float(np.mean(part == storage.fill)) for part, storage in zip((coarse, fine), storages, strict=True)]
    stored = storages[0].stored(box)
    return _Sight(
        stored,
        _summary(coarse),
        _summary(fine),
        fills[0] == 1 and fills[1] < 0.5 and (stored is False or bool(outside.mean() > 0.5)),
        fills[1] == 1 and fills[0] < 0.5,
        float(outside.mean()),
    )


def _witness(scales: Scales, gaps: Sequence[Triple]) -> str:
    """What the coarsest level has where chunks of the finest are missing; empty if it has nothing there either."""
    level = len(scales.levels) - 1
    if level == 0:
        return ""
    grids = [scales.levels[index].grid for index in (0, level)]
    try:
        sights = _look_at(scales, level, [_coarse_place(gap, *grids) for gap in gaps[:READS]])
    except VolumeError:
        return ""
    hits = sum(sight.lacks_fine for sight in sights)
    return (
        f"although {scales.storage[level].where} has other values at {hits} of {len(sights)} such places"
        if hits
        else ""
    )


def _broken_faces(
    array: LazyArray, storage: Storage, stored: Sequence[Triple], gaps: Sequence[Triple]
) -> tuple[int, int]:
    """At how many borders to missing chunks voxels end abruptly, and how many were looked at."""
    bare = looked = 0
    for here, gap in itertools.islice(zip(itertools.cycle(stored), gaps, strict=False), FACE_PAIRS):
        found = _border(array, storage, here, gap)
        if found is not None:
            looked += 1
            face = array[found.slices]
            bare += bool(np.mean(face == storage.fill) < 0.01)
    return (bare, looked) if bare * 2 > looked else (0, looked)


def _border(array: LazyArray, storage: Storage, here: Triple, gap: Triple) -> Box | None:
    """The last voxels before a chunk that is missing, on the way from one that is there to one that is not."""
    edges, shape = storage.edges, array.shape
    start, end = ([v // e for v, e in zip(place, edges, strict=True)] for place in (here, gap))
    steps = list(_way(start, end))
    low, high = 0, len(steps) - 1
    while high - low > 1:
        middle = (low + high) // 2
        box = _chunk_box(steps[middle], edges, shape)
        if storage.stored(box) is not False and not _blank(array, storage, [box.start]):
            low = middle
        else:
            high = middle
    if high <= low:
        return None
    (axis,) = (axis for axis in range(3) if steps[low][axis] != steps[high][axis])
    box = _chunk_box(steps[low], edges, shape)
    first, last = list(box.start), list(box.stop)
    if steps[high][axis] > steps[low][axis]:
        first[axis] = last[axis] - 1
    else:
        last[axis] = first[axis] + 1
    return Box(triple(first), triple(last))


def _way(start: Sequence[int], end: Sequence[int]) -> Iterator[Triple]:
    """Chunks from one to another, axis by axis, each beside the one before."""
    at = list(start)
    yield triple(at)
    for axis in range(3):
        step = 1 if end[axis] > at[axis] else -1
        while at[axis] != end[axis]:
            at[axis] += step
            yield triple(at)


def _places(region: Box, storage: Storage) -> list[Triple]:
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


def _ask(storage: Storage, shape: Triple, places: Sequence[Triple]) -> list[bool | None]:
    """Whether the chunks of these voxels are stored."""
    boxes = [_chunk_box([v // e for v, e in zip(p, storage.edges, strict=True)], storage.edges, shape) for p in places]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(storage.stored, boxes))


def _chunk_box(index: Sequence[int], edges: Triple, shape: Triple) -> Box:
    return Box.of([i * e for i, e in zip(index, edges, strict=True)], edges).clip(Box.whole(shape))


def _chunk_part(place: Triple, size: Sequence[int], edges: Triple, shape: Triple) -> Box:
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
    return grid.origin[2 - axis] - grid.spacing[axis] / 2


def _fine_range(axis: int, start: int, stop: int, grid: Grid, finest: Grid) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each coarse voxel the finest level's voxels within it and its neighbours: first, and behind the last.

    Formats differ in whether an offset is that of a voxel's centre or corner, and in whether levels have one at all;
    neighbours are included for that.
    """
    step, length = grid.spacing[axis] / finest.spacing[axis], finest.shape[axis]
    shift = (_corner(axis, grid) - _corner(axis, finest)) / finest.spacing[axis]
    voxels = np.arange(start, stop)
    low = np.clip(np.floor((voxels - 1) * step + shift), 0, length - 1).astype(np.int64)
    high = np.clip(np.ceil((voxels + 2) * step + shift), 1, length).astype(np.int64)
    return low, np.maximum(high, low + 1)


def _windowed(values: NDArray[Any], axis: int, begin: NDArray[Any], end: NDArray[Any], op: np.ufunc) -> NDArray[Any]:
    """Least or greatest value of windows along an axis."""
    parts = [op.reduce(np.take(values, range(a, b), axis), axis) for a, b in zip(begin, end, strict=True)]
    return np.stack(parts, axis)


def _summary(values: NDArray[Any]) -> _Summary:
    return float(values.mean(dtype=np.float64)), float(values.min()), float(values.max())


def _coarse_place(place: Triple, finest: Grid, grid: Grid) -> Triple:
    """The coarse voxel that a voxel of the finest level lies in."""
    found = []
    for axis in range(3):
        where = (place[axis] + 0.5) * finest.spacing[axis] + _corner(axis, finest) - _corner(axis, grid)
        found.append(min(max(math.floor(where / grid.spacing[axis]), 0), grid.shape[axis] - 1))
    return triple(found)


def _coarse_box(region: Box, finest: Grid, grid: Grid) -> Box:
    """The coarse voxels that lie in a region, at least one."""
    first = _coarse_place(region.start, finest, grid)
    last = _coarse_place(triple(stop - 1 for stop in region.stop), finest, grid)
    return Box(first, triple(max(b, a) + 1 for a, b in zip(first, last, strict=True)))
