"""Which slices of a result people should see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from canvas import Box, triple
from coarse2fine.io.turn import Turn
from coarse2fine.regions.components import label_components

MOST_SLICES, FEWEST_SLICES = 9, 3
_SEEN = 0.5  # share of its largest area from which on an object counts as seen in a slice
_MOST_OBJECTS = 60  # of a label, the largest ones; each costs a look at its box


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A connected object of one label.

    Attributes:
        value: The label.
        voxels: Its size.
        box: Where it is, axes as displayed.
        areas: Its voxels in each slice of the box.
    """

    value: int
    voxels: int
    box: Box
    areas: NDArray[np.int64]

    @property
    def peak(self) -> int:
        """The slice in which it is largest; of several the middle one."""
        largest = np.flatnonzero(self.areas == self.areas.max())
        return self.box.start[0] + int(largest[len(largest) // 2])

    def slice_at(self, share: float) -> int:
        """The slice up to which this share of it lies, 0 to 1."""
        return self.box.start[0] + int(np.searchsorted(np.cumsum(self.areas), share * self.voxels))

    def seen_in(self, index: int) -> bool:
        """Whether a slice shows a good part of it."""
        place = index - self.box.start[0]
        return 0 <= place < len(self.areas) and bool(self.areas[place] >= _SEEN * self.areas.max())


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """What a result consists of.

    Attributes:
        largest: The largest objects of each label, at most some dozens.
        count: How many objects there are.
    """

    largest: tuple[Found, ...]
    count: int


def find_objects(labels: NDArray[np.unsignedinteger[Any]], turn: Turn) -> Objects:
    """Connected objects, 26 neighbours, of one label each.

    Takes five bytes for each voxel in the box of one label.

    Args:
        labels: Shape (z, y, x) as stored.
        turn: How they are displayed.
    """
    found: list[Found] = []
    count = 0
    for value, slices in enumerate(ndimage.find_objects(labels), 1):
        if slices is None:
            continue
        start = [part.start for part in slices]
        components = label_components(labels[slices] == value)
        statistics = cc3d.statistics(components)
        sizes = statistics["voxel_counts"][1:]
        count += len(sizes)
        for number in np.argsort(-sizes.astype(np.int64), kind="stable")[:_MOST_OBJECTS] + 1:
            inside = statistics["bounding_boxes"][number]
            box = Box(triple(part.start for part in inside), triple(part.stop for part in inside)).shift(start)
            areas = (turn.last_axes(components[inside]) == number).sum(axis=(1, 2), dtype=np.int64)
            found.append(Found(value, int(sizes[number - 1]), turn.box(box, triple(labels.shape)), areas))
    return Objects(tuple(sorted(found, key=lambda one: -one.voxels)), count)


def choose_slices(objects: Sequence[Found], most: int = MOST_SLICES) -> list[int]:
    """Slices in which as many objects as possible are seen well, in ascending order.

    The largest object of each label comes first, then the others by size; one that is seen in a slice already needs
    none of its own. Where that gives few, others through the largest object are added.

    Args:
        objects: The largest first.
        most: How many slices at most.
    """
    chosen: list[int] = []
    for one in _by_importance(objects):
        if len(chosen) < most and not any(map(one.seen_in, chosen)):
            chosen.append(one.peak)
    for share in (0.25, 0.75):
        if objects and len(chosen) < min(FEWEST_SLICES, most):
            chosen += {objects[0].slice_at(share)} - set(chosen)
    return sorted(chosen)


def _by_importance(objects: Sequence[Found]) -> Iterator[Found]:
    first = {one.value: one for one in reversed(objects)}
    firsts = sorted(first.values(), key=lambda one: -one.voxels)
    yield from firsts
    yield from (one for one in objects if one is not first[one.value])
