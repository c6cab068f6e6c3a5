"""Three-dimensional bin packing: many small boxes into few canvases, without turning or scaling them.

Two packers with different strengths run on every problem and the better result is kept. The empty-space packer puts
every box into the first hole that it fits and wins where edges vary; the shelf packer builds layers of rows and wins
where many boxes share an edge length. There is no gravity: a box may float.

Boxes are rows of an array of shape (n, 3), edges z, y, x in voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations
from math import prod

import numpy as np
from numpy.typing import NDArray

from canvas.box import Triple

Integers = NDArray[np.int64]

_AXIS_ORDERS = tuple(permutations(range(3), 3))
_PLACEMENTS_TO_SPEND = 3000  # about 0.3 s: with few boxes there is time to try many orders


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where each box lies: the number of its canvas, shape (n,), and its first voxel there, shape (n, 3)."""

    bins: Integers
    corners: Integers

    @property
    def count(self) -> int:
        """Number of canvases."""
        return int(self.bins.max(initial=-1)) + 1


def bin_pack(shapes: Integers, canvas: Triple) -> Layout:
    """Pack boxes into as few canvases as the better of the two packers needs.

    Args:
        shapes: Edges of the boxes, shape (n, 3).
        canvas: Edges of every canvas.

    Returns:
        The layout with fewer canvases. Both hold the same voxels, so that at equal numbers the mean fill is equal,
        too; then the one whose fill is more concentrated wins (largest sum of squares, Falkenauer and Delchambre 1992).

    Raises:
        ValueError: If a box is empty or larger than the canvas.
    """
    return _best(shapes, canvas, (pack(shapes, canvas) for pack in (pack_shelves, pack_spaces)))


def pack_spaces(shapes: Integers, canvas: Triple) -> Layout:
    """Pack by empty maximal spaces: first fit over the canvases, best short side within the canvas.

    Every canvas keeps the list of its largest empty boxes, which overlap each other. The next box goes into the first
    canvas that has a space for it, to the corner of the space that leaves the thinnest gap; all spaces that it cuts
    are replaced by what is left of them on its six sides. Spaces: Lai and Chan, Computers & Industrial Engineering 32,
    1997; Parreno et al., INFORMS Journal on Computing 20, 2008.

    The boxes come once by volume and once by each of some axes, largest first; the best result counts.

    Raises:
        ValueError: If a box is empty or larger than the canvas.
    """
    _check(shapes, canvas)
    return _best(shapes, canvas, (_pack_spaces(shapes, canvas, order) for order in _orders(shapes)))


def pack_shelves(shapes: Integers, canvas: Triple) -> Layout:
    """Pack into rows on shelves in layers, for each order of the three axes; the best result counts.

    A layer is a slab of the canvas, a shelf a slab of the layer, and boxes stand in a row on the shelf. Boxes come
    by thickness, then height, largest first, so that neighbours resemble each other; each takes the smallest free
    space that holds it, on a shelf, else in a layer, else in a canvas. Levels of sorted boxes: Coffman et al., SIAM
    Journal on Computing 9, 1980; layers for three dimensions: Lodi, Martello and Vigo, European Journal of
    Operational Research 141, 2002.

    Raises:
        ValueError: If a box is empty or larger than the canvas.
    """
    _check(shapes, canvas)
    return _best(shapes, canvas, (_pack_shelves(shapes, canvas, axes) for axes in _AXIS_ORDERS))


def _check(shapes: Integers, canvas: Triple) -> None:
    wrong = np.flatnonzero(((shapes < 1) | (shapes > np.array(canvas))).any(axis=1))
    if len(wrong):
        raise ValueError(f"box {wrong[0]} of shape {tuple(shapes[wrong[0]].tolist())} does not fit canvas {canvas}")


def _best(shapes: Integers, canvas: Triple, layouts: Iterable[Layout]) -> Layout:
    """The layout with the fewest, then the most unevenly filled canvases; stops where the volume allows no fewer."""
    volumes = shapes.prod(axis=1)
    bound = -(-int(volumes.sum()) // prod(canvas))

    def cost(layout: Layout) -> tuple[int, float]:
        return layout.count, -float((np.bincount(layout.bins, weights=volumes) ** 2).sum())

    remaining = iter(layouts)
    best = next(remaining)  # every caller offers at least one
    # Layouts are made as they are asked for: none after one that cannot be beaten.
    while best.count > bound and (layout := next(remaining, None)) is not None:
        best = min(best, layout, key=cost)
    return best


def _orders(shapes: Integers) -> Iterator[Integers]:
    """Orders in which to pack: by axes, beginning with the axis on which edges coincide most, and by volume."""
    tries = max(1, min(len(_AXIS_ORDERS), _PLACEMENTS_TO_SPEND // max(1, len(shapes))))
    variety = [len(np.unique(shapes[:, axis])) for axis in range(3)]
    axis_orders = sorted(_AXIS_ORDERS, key=lambda axes: [variety[axis] for axis in axes])
    for z, y, x in axis_orders[:tries]:
        yield np.lexsort((-shapes[:, x], -shapes[:, y], -shapes[:, z]))
    yield np.argsort(-shapes.prod(axis=1), kind="stable")


# --- empty maximal spaces -------------------------------------------------------------------------------------------
#
# A space is a column of six numbers, z, y, x of its first voxel and the negated z, y, x after its last, so that
# "inside of" is one comparison: a space lies inside of another if none of its six numbers is smaller.


def _pack_spaces(shapes: Integers, canvas: Triple, order: Integers) -> Layout:
    """One pass over the boxes in the given order."""
    layout = Layout(np.empty(len(shapes), dtype=np.int64), np.empty_like(shapes, dtype=np.int64))
    # No later box is thinner than this, so thinner spaces can be dropped.
    thinnest = np.minimum.accumulate(shapes[order][::-1], axis=0)[::-1]
    whole = np.array([[0, 0, 0, *(-edge for edge in canvas)]]).T
    spaces, owners, count = np.empty((6, 0), dtype=np.int64), np.empty(0, dtype=np.int64), 0
    for rank, box in enumerate(order):
        shape = shapes[box]
        choice = _choose(spaces, owners, shape, canvas)
        if choice is None:
            spaces, owners = np.hstack([spaces, whole]), np.append(owners, count)
            choice, count = len(owners) - 1, count + 1
        bin_, corner = owners[choice], spaces[:3, choice]
        layout.bins[box], layout.corners[box] = bin_, corner
        faces = np.concatenate([corner, -(corner + shape)])
        here = np.flatnonzero(owners == bin_)
        cut, new = carve(spaces[:, here], faces, thinnest[min(rank + 1, len(order) - 1)])
        keep = np.ones(len(owners), dtype=bool)
        keep[here[cut]] = False
        spaces = np.concatenate([spaces[:, keep], new], axis=1)
        owners = np.concatenate([owners[keep], np.full(new.shape[1], bin_)])
    return layout


def _choose(spaces: Integers, owners: Integers, shape: Integers, canvas: Triple) -> int | None:
    """The space for a box: in the first canvas that has room, the one that leaves the thinnest gap."""
    gaps = [-spaces[axis] - spaces[axis + 3] - shape[axis] for axis in range(3)]
    fitting = np.flatnonzero((gaps[0] >= 0) & (gaps[1] >= 0) & (gaps[2] >= 0))
    if not len(fitting):
        return None
    fitting = fitting[owners[fitting] == owners[fitting].min()]
    shares = np.sort([gap[fitting] / edge for gap, edge in zip(gaps, canvas, strict=True)], axis=0)
    return int(fitting[np.lexsort(shares[::-1])[0]])


def carve(spaces: Integers, box: Integers, thinnest: Integers) -> tuple[NDArray[np.bool_], Integers]:
    """Cut a box out of the spaces of its canvas.

    Args:
        spaces: Spaces of one canvas, shape (6, m).
        box: The box in the same form, shape (6,).
        thinnest: Edges below which a space is of no use, shape (3,).

    Returns:
        Which spaces the box cuts, shape (m,), and the maximal spaces that replace those, shape (6, k).
    """
    # Two boxes overlap if on each axis each starts before the other ends.
    opposite = -np.roll(box, 3)[:, None]
    cut = np.logical_and.reduce(spaces < opposite, axis=0)
    # What is left beyond a face starts (or ends) there: that number grows, the other five stay.
    pieces = np.repeat(spaces[:, None, cut], 6, axis=1)
    faces = np.arange(6)
    pieces[faces, faces] = np.maximum(pieces[faces, faces], opposite)
    pieces = pieces.reshape(6, -1)
    pieces = pieces[:, (-pieces[:3] - pieces[3:] >= thinnest[:, None]).all(axis=0)]
    return cut, pieces[:, ~_redundant(pieces, spaces[:, ~cut])]


def _redundant(pieces: Integers, others: Integers) -> NDArray[np.bool_]:
    """Which pieces lie inside of another space, shape (k,). No two are equal, because no space lay inside another."""
    columns = np.concatenate([pieces, others], axis=1)
    inside = np.ones((pieces.shape[1], columns.shape[1]), dtype=bool)
    for number in range(6):
        inside &= pieces[number][:, None] >= columns[number]
    np.fill_diagonal(inside, False)  # each lies inside of itself
    return np.logical_or.reduce(inside, axis=1)


# --- shelves --------------------------------------------------------------------------------------------------------


class _Slabs:
    """Open slabs of one level (canvases, layers or shelves), each of which is filled along one axis from its start."""

    def __init__(self, axis: int, capacity: int) -> None:
        self.axis = axis
        self.count = 0
        self.free = np.zeros((3, capacity), dtype=np.int64)
        self.corners = np.zeros((3, capacity), dtype=np.int64)
        self.bins = np.zeros(capacity, dtype=np.int64)

    def add(self, free: Integers, corner: Integers, bin_: int) -> int:
        """Open a slab and return its number."""
        new, self.count = self.count, self.count + 1
        self.free[:, new], self.corners[:, new], self.bins[new] = free, corner, bin_
        return new

    def find(self, shape: Integers) -> int | None:
        """The smallest free space that holds the box, None if there is none."""
        z, y, x = self.free[:, : self.count]
        fitting = np.flatnonzero((z >= shape[0]) & (y >= shape[1]) & (x >= shape[2]))
        if not len(fitting):
            return None
        return int(fitting[np.argmin(z[fitting] * y[fitting] * x[fitting])])

    def cut(self, slab: int, length: int) -> Integers:
        """Take the next ``length`` voxels of a slab and return where they begin."""
        corner = self.corners[:, slab].copy()
        self.corners[self.axis, slab] += length
        self.free[self.axis, slab] -= length
        return corner


def _pack_shelves(shapes: Integers, canvas: Triple, axes: Triple) -> Layout:
    """One pass with layers along the first of the axes, shelves along the second and rows along the third."""
    shapes, whole = shapes[:, axes], np.array(canvas)[list(axes)]
    bins, shelves, layers = (_Slabs(axis, len(shapes)) for axis in (0, 2, 1))
    layout = Layout(np.empty(len(shapes), dtype=np.int64), np.empty_like(shapes))
    for box in np.lexsort(-shapes.T[::-1]):
        depth, height, length = shape = shapes[box]
        shelf = shelves.find(shape)
        if shelf is None:
            layer = layers.find(shape)
            if layer is None:
                bin_ = bins.find(shape)
                if bin_ is None:
                    bin_ = bins.add(whole, np.zeros(3, dtype=np.int64), bins.count)
                layer = layers.add(np.array([depth, *whole[1:]]), bins.cut(bin_, depth), bin_)
            free = np.array([layers.free[0, layer], height, whole[2]])
            shelf = shelves.add(free, layers.cut(layer, height), layers.bins[layer])
        layout.bins[box], layout.corners[box] = shelves.bins[shelf], shelves.cut(shelf, length)
    return Layout(layout.bins, layout.corners[:, np.argsort(axes)])
