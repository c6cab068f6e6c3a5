"""Whether what is read from a store was ever written: missing chunks read as their fill value, without a word.

A level may lack some of its chunks, or all: a copy that was cut short, chunks under other names than its metadata say.
Formats have it that such voxels are the fill value, and volumes that really are sparse leave out chunks of background.
So nothing follows from a missing chunk alone. It is looked at beside other voxels of the same place: those of another
level, or those across the chunk's face.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.lazy import LazyArray
from coarse2fine.io.stores.scales import Scales, Storage
from coarse2fine.io.stores.sights import (
    EDGE,
    THREADS,
    Sight,
    Summary,
    ask,
    chunk_box,
    chunk_part,
    coarse_box,
    coarse_place,
    look_at,
    places_in,
)
from coarse2fine.io.volume import Grid

READS, GAPS = 32, 16  # places that are read, and further ones where nothing is stored
FACE_PAIRS = 8  # faces between missing chunks and others that are looked at

_OUTSIDE = 0.1  # share of coarse voxels, and of places, that may lie outside of what finer voxels allow
_ENOUGH, _VARIED = 200, 0.2  # coarse voxels, and their standard deviation beside that of fine ones, to compare them


Keep = Callable[[Grid, Box], bool]
"""Whether a box of a grid is looked at; other places are not asked for."""


def check_stored(scales: Scales, region: Box | None = None, keep: Keep | None = None) -> tuple[str, ...]:
    """Whether the finest level is there at all, and seems to be complete.

    Args:
        scales: The volume.
        region: Voxels of the finest level that are worked on; None for all.
        keep: Which parts of it are looked at; None for all.

    Returns:
        What the user should know of chunks that seem to be missing.

    Raises:
        VolumeError: If nothing is stored, so that every voxel would be the fill value.
    """
    storage, array = scales.storage[0], scales.levels[0].channels[0]
    region = region or Box.whole(array.shape)
    places = _kept(places_in(region, storage), scales, 0, keep)
    if not places:  # what is looked at is too small to be hit
        return ()
    stored = ask(storage, array.shape, places)
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


def _kept(places: list[Triple], scales: Scales, level: int, keep: Keep | None) -> list[Triple]:
    """Those of some voxels of a level around which something is looked at."""
    if keep is None:
        return places
    edges, grid = scales.storage[level].edges, scales.levels[level].grid
    size = triple(min(EDGE, edge) for edge in edges)
    return [place for place in places if keep(grid, chunk_part(place, size, edges, grid.shape))]


def _named(region: Box) -> str:
    return f"voxels {region.start} to {region.stop} (z, y, x)"


def _blank(array: LazyArray, storage: Storage, places: Sequence[Triple]) -> list[Triple]:
    """Those of the places around which there is nothing but the fill value."""

    def is_blank(place: Triple) -> bool:
        try:
            return bool(
                (array[chunk_part(place, (EDGE,) * 3, storage.edges, array.shape).slices] == storage.fill).all()
            )
        except VolumeError:  # damage is told where it matters: when the block is read
            return False

    with ThreadPoolExecutor(THREADS) as pool:
        return [place for place, blank in zip(places, pool.map(is_blank, places), strict=True) if blank]


def misfit(scales: Scales, level: int, region: Box | None = None, keep: Keep | None = None) -> str:
    """Why a level does not show what the finest one does; empty if it does.

    Args:
        scales: The volume.
        level: 1 or more.
        region: Voxels of the finest level that are worked on; None for all.
        keep: Which parts of it are looked at; None for all.
    """
    storage, grid = scales.storage[level], scales.levels[level].grid
    region = region or Box.whole(scales.levels[0].grid.shape)
    if storage.near and storage.stored(Box.whole(grid.shape)) is False:
        words = f"none of its chunks is stored, every voxel would be the fill value {storage.fill:g}"
        return _with_hint(words, storage)
    places = _kept(places_in(coarse_box(region, scales.levels[0].grid, grid), storage), scales, level, keep)
    stored = ask(storage, grid.shape, places)
    gaps = [place for place, there in zip(places, stored, strict=True) if there is False]
    try:
        sights = look_at(scales, level, list(dict.fromkeys([*places[:READS], *gaps[:GAPS]])))
    except VolumeError as error:
        return error.problem
    return _judge([sight for sight in sights if not sight.lacks_fine], storage)


def _with_hint(words: str, storage: Storage) -> str:
    return f"{words}. {storage.hint()}".rstrip()


def _judge(sights: Sequence[Sight], storage: Storage) -> str:
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
    if _unrelated(sights):
        return f"its voxels do not go with those of the finest level; {figures}."
    return ""


def _unrelated(sights: Sequence[Sight]) -> bool:
    """Whether coarse voxels have nothing to do with the means of fine ones, though these differ enough for that."""
    coarse, *means = np.concatenate([sight.pairs for sight in sights], axis=1)
    spread = float(np.mean([sight.spread for sight in sights]))
    if coarse.size < _ENOUGH or spread == 0:
        return False
    varied = float(means[1].std()) / spread  # noise is averaged out; any kind of level goes with what is left
    if varied < _VARIED:
        return False
    if coarse.std() == 0:
        return True
    return bool(max(np.corrcoef(coarse, mean)[0, 1] for mean in means) < varied / 3)


def _mean(summaries: Sequence[Summary]) -> float:
    return float(np.mean([mean for mean, _, _ in summaries]))


def _least(summaries: Sequence[Summary]) -> float:
    return min(least for _, least, _ in summaries)


def _greatest(summaries: Sequence[Summary]) -> float:
    return max(greatest for _, _, greatest in summaries)


def _witness(scales: Scales, gaps: Sequence[Triple]) -> str:
    """What the coarsest level has where chunks of the finest are missing; empty if it has nothing there either."""
    level = len(scales.levels) - 1
    if level == 0:
        return ""
    grids = [scales.levels[index].grid for index in (0, level)]
    try:
        sights = look_at(scales, level, [coarse_place(gap, *grids) for gap in gaps[:READS]])
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
        box = chunk_box(steps[middle], edges, shape)
        if storage.stored(box) is not False and not _blank(array, storage, [box.start]):
            low = middle
        else:
            high = middle
    if high <= low:
        return None
    (axis,) = (axis for axis in range(3) if steps[low][axis] != steps[high][axis])
    box = chunk_box(steps[low], edges, shape)
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
