"""Boxes that turn out to be too small: a mask that runs through a face of its box is followed.

As far as the crop already shows what lies beyond the face, the box grows inside the crop at no cost. Where the crop
ends and the mask does not, a further region beyond the face is asked for; the network then runs again there. In what a
box has grown by, only the followed mask counts: what else the network finds there was not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Placement, Triple, triple
from coarse2fine.regions.components import label_components

Mask = NDArray[np.bool_]
Edges = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Region:
    """A box to segment.

    Attributes:
        box: Region of the working grid whose result counts.
        seeds: Where masks come from that are followed into the box; only masks connected to a seed count. None: all.
        tile_of: The larger box that it is a tile of; None if it is none.
    """

    box: Box
    seeds: tuple[Box, ...] = ()
    tile_of: Box | None = None

    @property
    def whole(self) -> Box:
        """The box as it was before it was cut into tiles."""
        return self.tile_of or self.box


@dataclass(frozen=True, slots=True)
class Growth:
    """What became of one placement's box.

    Attributes:
        box: Region of the working grid whose result counts now; holds the original box.
        keep: Voxels of the slot that count; None: all in ``box``.
        beyond: Regions that the mask reaches and that the crop does not show.
        refused: Faces that the mask runs through, but behind which nothing is worth following.
    """

    box: Box
    keep: Mask | None = None
    beyond: tuple[Region, ...] = ()
    refused: int = 0


def follow_mask(
    placement: Placement,
    mask: Mask,
    seeds: tuple[Box, ...],
    covered: Edges,
    volume: Triple,
    step: Triple,
    worth: Callable[[Box], bool] = lambda region: True,
) -> Growth:
    """Grow a placement's box where its mask runs through a face.

    A face is left alone where it is the volume's own border or where another box lies beyond it.

    Args:
        placement: The crop.
        mask: Foreground on its slot, shape ``placement.slot.shape``.
        seeds: See ``Region``.
        covered: All other boxes that are processed, shape (n, 6): z0, y0, x0, z1, y1, x1.
        volume: Shape of the working grid.
        step: How far to grow at once, in voxels of the working grid.
        worth: Whether a region beyond a face may be grown into.
    """
    original, bounds = placement.box, Box.whole(volume)
    if not seeds and not _touched(placement, mask, original, covered, bounds):
        return Growth(original)
    followed = _connected(mask, placement, seeds or (original,))
    keep = followed.copy()
    if not seeds:
        keep[_to_slot(original, placement).slices] = True
    box, limit = original, placement.source.clip(bounds)
    while True:
        grown, beyond, refused = box, [], 0
        for axis, side, reach in _touched(placement, followed, box, covered, bounds):
            region = _beyond(box, reach, axis, side, step).clip(bounds)
            wider = _push(box, axis, side, step[axis]).clip(limit)
            if not worth(region):
                refused += 1
            elif wider != box:
                grown = grown.hull(wider)
            else:
                beyond.append(Region(region, (_face(reach, axis, side),)))
        if grown == box:
            return Growth(box, keep, tuple(beyond), refused)
        box = grown


def cut_faces(placement: Placement, mask: Mask, covered: Edges, volume: Triple) -> int:
    """How many faces of a placement's box its mask runs through; arguments as of ``follow_mask``."""
    return len(_touched(placement, mask, placement.box, covered, Box.whole(volume)))


def join_regions(regions: Iterable[Region], slot: Triple) -> list[Region]:
    """Join regions that mostly overlap while their hull fits into a slot."""
    joined: list[Region] = []
    for region in sorted(regions, key=lambda region: (-region.box.volume, region.box)):
        for index, other in enumerate(joined):
            hull = region.box.hull(other.box)
            if hull == other.box or (hull.fits(slot) and region.box.ios(other.box) >= 0.5):
                joined[index] = Region(hull, other.seeds + region.seeds)
                break
        else:
            joined.append(region)
    return joined


def _connected(mask: Mask, placement: Placement, seeds: tuple[Box, ...]) -> Mask:
    """The components of a slot's mask that have voxels in a seed; all of it if the crop shows no seed."""
    components = label_components(mask)[tuple(slice(edge) for edge in mask.shape)]
    shown = [seed.clip(placement.source) for seed in seeds]
    hit = [np.unique(components[_to_slot(seed, placement).slices]) for seed in shown if seed.volume]
    if not hit:
        return mask
    names = np.concatenate(hit)
    return np.isin(components, names[names > 0])


def _face(reach: Box, axis: int, side: int) -> Box:
    """The outermost layer of a box."""
    start, stop = list(reach.start), list(reach.stop)
    if side == 0:
        stop[axis] = start[axis] + 1
    else:
        start[axis] = stop[axis] - 1
    return Box(triple(start), triple(stop))


def _push(box: Box, axis: int, side: int, by: int) -> Box:
    """The box with one face moved outwards."""
    start, stop = list(box.start), list(box.stop)
    if side == 0:
        start[axis] -= by
    else:
        stop[axis] += by
    return Box(triple(start), triple(stop))


def _beyond(box: Box, reach: Box, axis: int, side: int, step: Triple) -> Box:
    """The region one step beyond a face, as wide as the mask that reaches the face and a step on each side."""
    start = [edge - by for edge, by in zip(reach.start, step, strict=True)]
    stop = [edge + by for edge, by in zip(reach.stop, step, strict=True)]
    face = box.start[axis] if side == 0 else box.stop[axis]
    start[axis], stop[axis] = (face - step[axis], face) if side == 0 else (face, face + step[axis])
    return Box(triple(start), triple(stop))


def _touched(placement: Placement, mask: Mask, box: Box, covered: Edges, bounds: Box) -> list[tuple[int, int, Box]]:
    """Faces that the mask runs through: (axis, 0 for the lower or 1 for the upper face, where on the face)."""
    inside = _to_slot(box, placement)
    found = []
    for axis in range(3):
        for side in (0, 1):
            at_border = box.start[axis] <= bounds.start[axis] if side == 0 else box.stop[axis] >= bounds.stop[axis]
            if at_border:
                continue
            layer = inside.start[axis] if side == 0 else inside.stop[axis] - 1
            face = _layer(mask, inside, axis, layer)
            next_layer = layer - 1 if side == 0 else layer + 1
            if 0 <= next_layer < mask.shape[axis]:  # the crop shows whether the object goes on
                face = face & _layer(mask, inside, axis, next_layer)
            if face.any():
                face = _uncovered(face, placement, inside, box, axis, side, covered)
                if face.any():
                    found.append((axis, side, _reach(face, placement, inside, box, axis)))
    return found


def _layer(mask: Mask, inside: Box, axis: int, index: int) -> Mask:
    """One layer of the mask across an axis, cut to the box; shape with length 1 along the axis."""
    slices = list(inside.slices)
    slices[axis] = slice(index, index + 1)
    return mask[tuple(slices)]


def _uncovered(face: Mask, placement: Placement, inside: Box, box: Box, axis: int, side: int, covered: Edges) -> Mask:
    """The part of a face that has no other box right beyond it."""
    outer = box.start[axis] - 1 if side == 0 else box.stop[axis]
    start, stop = np.array(box.start), np.array(box.stop)
    start[axis], stop[axis] = outer, outer + 1
    near = covered[((covered[:, :3] < stop) & (covered[:, 3:] > start)).all(axis=1)]
    face = face.copy()
    for edges in near:
        part = Box(triple(edges[:3]), triple(edges[3:])).clip(box)
        slices = list(_to_slot(part, placement).relative_to(inside).slices)
        slices[axis] = slice(None)
        face[tuple(slices)] = False
    return face


def _reach(face: Mask, placement: Placement, inside: Box, box: Box, axis: int) -> Box:
    """The part of the face that the mask covers, as a box of the working grid."""
    start, stop = list(box.start), list(box.stop)
    for other in range(3):
        if other != axis:
            hit = np.flatnonzero(face.any(axis=tuple(a for a in range(3) if a != other)))
            scale, offset = placement.scale[other], placement.source.start[other]
            start[other] = offset + int((inside.start[other] + hit[0]) * scale)
            stop[other] = offset + int(np.ceil((inside.start[other] + hit[-1] + 1) * scale))
    return Box(triple(start), triple(stop))


def _to_slot(box: Box, placement: Placement) -> Box:
    """A box of the working grid in voxels of the slot; never thinner than one voxel."""
    start, stop = [], []
    for axis, scale in enumerate(placement.scale):
        edge, offset = placement.slot.shape[axis], placement.source.start[axis]
        low = min(max(int((box.start[axis] - offset) / scale), 0), edge - 1)
        start.append(low)
        stop.append(min(max(int(np.ceil((box.stop[axis] - offset) / scale)), low + 1), edge))
    return Box(triple(start), triple(stop))
