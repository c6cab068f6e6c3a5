"""Which crop lies where in which canvas: grids of equal slots, or crops of one scale packed freely.

Words: a *box* is a region of the working grid whose result counts. The *source* is what is read for it, the box and
perhaps some of its surroundings. The *slot* is where the source is shown in the canvas, one input of the network.
All axes are (z, y, x), all lengths in voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from canvas.binpack import bin_pack
from canvas.box import Box, Triple, to_array, triple


@dataclass(frozen=True, slots=True)
class Crop:
    """A region to be segmented.

    Attributes:
        box: The region of the volume whose result counts.
        index: Its position in the caller's ordered list.
    """

    box: Box
    index: int


@dataclass(frozen=True, slots=True)
class Placement:
    """One crop on its canvas.

    Attributes:
        crop: Position of the crop in the caller's ordered list.
        box: The region of the volume whose result counts.
        source: The region of the volume that is read; larger than ``box`` where real context fits. It sticks out of
            the volume only on axes where the volume is shorter than the slot.
        slot: The region of the canvas that shows ``source``.

    Raises:
        ValueError: If ``source`` does not contain ``box``, or one of them or the slot is empty.
    """

    crop: int
    box: Box
    source: Box
    slot: Box

    def __post_init__(self) -> None:
        if not self.source.contains(self.box):
            raise ValueError(f"crop {self.crop} reads {self.source}, which does not contain its {self.box}")
        if not (self.box.volume and self.slot.volume):
            raise ValueError(f"crop {self.crop} is empty: {self.box} in slot {self.slot}")

    @property
    def native(self) -> bool:
        """Whether the crop is shown voxel by voxel, not resized."""
        return self.source.shape == self.slot.shape

    @property
    def scale(self) -> tuple[float, float, float]:
        """Voxels of the volume per voxel of the canvas: above 1 the crop is shown reduced."""
        z, y, x = (read / shown for read, shown in zip(self.source.shape, self.slot.shape, strict=True))
        return z, y, x


@dataclass(frozen=True, slots=True)
class Canvas:
    """One input of the network and the crops on it.

    Attributes:
        shape: Size of the input.
        grid: Slots per axis; (1, 1, 1) if the crops are packed freely.
        placements: The crops; their slots lie inside the canvas. Two slots are one and the same, which shows what
            both crops read, or do not overlap.
    """

    shape: Triple
    grid: Triple
    placements: tuple[Placement, ...]

    @property
    def filled(self) -> int:
        """Voxels of the canvas in slots that are in use."""
        return sum(slot.volume for slot in {placement.slot for placement in self.placements})

    @property
    def fill(self) -> float:
        """Share of the canvas that slots in use cover, 0 to 1."""
        return self.filled / prod(self.shape)


def share_filled(canvases: Sequence[Canvas]) -> float:
    """Share of several canvases together that slots in use cover, 0 to 1; 0 for none."""
    total = sum(prod(canvas.shape) for canvas in canvases)
    return sum(canvas.filled for canvas in canvases) / total if total else 0.0


def canvas_grids(canvas: Triple, slot: Triple) -> tuple[Triple, ...]:
    """The grids of slots that same-size packing may use, by ascending number of slots.

    One slot as large as the canvas, one layer of slots, and all layers; without repetitions.

    Args:
        canvas: Size of the canvas.
        slot: Smallest size of a slot.

    Returns:
        Slots per axis of each grid.

    Raises:
        ValueError: If the slot is empty or does not fit into the canvas.

    >>> canvas_grids((24, 256, 256), (12, 128, 128))
    ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    """
    if any(not 1 <= edge <= limit for edge, limit in zip(slot, canvas, strict=True)):
        raise ValueError(f"slot {slot} does not fit into canvas {canvas}: choose a smaller slot or a larger canvas")
    z, y, x = (limit // edge for edge, limit in zip(slot, canvas, strict=True))
    return tuple(dict.fromkeys([(1, 1, 1), (1, y, x), (z, y, x)]))


def pack_same_size(
    boxes: Sequence[Box],
    canvas: Triple,
    slot: Triple,
    volume: Triple,
    *,
    capacity: int | None = None,
    resize_always: bool = False,
    crop_threshold: Triple | None = None,
) -> list[Canvas]:
    """Put every box into a slot of the same size, in the caller's order; consecutive slots touch each other.

    *Crop and resize*: on an axis where a box is no longer than the threshold it is read at native resolution, with
    real context up to the slot; on an axis where it is longer, exactly the box is read and resized to the slot.
    *Resize only* reads exactly the box on every axis.

    Without a capacity the full grid is used as long as it gets full. The last boxes share the grid with the fewest
    slots that holds them all: that costs no canvas more and shows each of them in a larger slot.

    Args:
        boxes: Regions of the volume, in the order in which they are to be packed.
        canvas: Size of each canvas.
        slot: Size of a slot in the full grid; a slot really is ``canvas // grid``.
        volume: Size of the volume, which limits the context.
        capacity: Slots per canvas; None chooses.
        resize_always: Resize only, instead of crop and resize.
        crop_threshold: Longest edges that are cropped natively in the full grid; None means the slot. It grows as the
            slot does in grids of fewer slots, and never exceeds the slot.

    Returns:
        Canvases in the order of the boxes; none for no boxes.

    Raises:
        ValueError: If the slot does not fit, no grid has the capacity, or a box is empty or reaches outside of the
            volume.
    """
    grids = _grids_of_capacity(canvas, slot, capacity)
    crops = _crops(boxes, volume)
    step = prod(grids[-1])
    canvases = []
    for batch in (crops[start : start + step] for start in range(0, len(crops), step)):
        grid = next(grid for grid in grids if len(batch) <= prod(grid))
        limits = (0, 0, 0) if resize_always else _native_limits(canvas, slot, grid, crop_threshold)
        placements = tuple(
            Placement(crop.index, crop.box, _native_where_short(crop.box, limits, place.shape, volume), place)
            for crop, place in zip(batch, _slots(canvas, grid), strict=False)
        )
        canvases.append(Canvas(canvas, grid, placements))
    return canvases


def pack_same_scale(
    boxes: Sequence[Box],
    canvas: Triple,
    volume: Triple,
    *,
    margin: Triple = (0, 0, 0),
    padded: Triple = (0, 0, 0),
) -> list[Canvas]:
    """Pack crops at native resolution, each as large as it is, into as few canvases as the bin packer finds.

    What is read is the box and ``margin`` voxels of real context, less where the volume or the canvas ends. A crop
    that is alone on its canvas gets all the context that fits. Only a box that is longer than the canvas on an axis is
    resized, on that axis, to the canvas.

    Args:
        boxes: Regions of the volume, in the order in which their results are wanted.
        canvas: Size of each canvas.
        volume: Size of the volume, which limits the context.
        margin: Context on both sides of each axis.
        padded: Size that shorter volumes are padded to, as far as the canvas has room.

    Returns:
        Canvases by their earliest crop, and crops within a canvas by the caller's order; none for no boxes. The packer
        is free to put crops together that are far apart in that order.

    Raises:
        ValueError: If the margin is negative, or a box is empty or reaches outside of the volume.
    """
    if min(margin) < 0:
        raise ValueError(f"margin {margin} is negative: context can only be added")
    crops = _crops(boxes, volume)
    thick = triple(
        min(most, limit) if edge < most else 0 for edge, most, limit in zip(volume, padded, canvas, strict=True)
    )
    sources = [_with_margin(crop.box, margin, canvas, volume, thick) for crop in crops]
    edges = to_array(sources)
    shapes = np.minimum(edges[:, 3:] - edges[:, :3], canvas)
    layout = bin_pack(shapes, canvas)
    members: dict[int, list[Placement]] = {}
    # Crops come in the caller's order, so a dict that remembers insertion sorts canvases and crops in one pass.
    for crop, source, shape, bin_, corner in zip(crops, sources, shapes, layout.bins, layout.corners, strict=True):
        placement = Placement(crop.index, crop.box, source, Box.of(corner, shape))
        members.setdefault(int(bin_), []).append(placement)
    return [Canvas(canvas, (1, 1, 1), _alone(placements, canvas, volume)) for placements in members.values()]


def pack_tiles(boxes: Sequence[Box], tiles: Sequence[Box], volume: Triple) -> list[Canvas]:
    """Show every tile that boxes have voxels in; each box has its part of a tile as a crop, and all crops share a slot.

    Args:
        boxes: Regions of the volume.
        tiles: Of one shape, in the order in which they are wanted; where the volume is shorter they stick out.
        volume: Size of the volume.

    Returns:
        A canvas for each tile that is touched.

    Raises:
        ValueError: If a box is empty or reaches outside of the volume.
    """
    crops, canvases = _crops(boxes, volume), []
    for tile in tiles:
        slot, parts = Box.whole(tile.shape), [(crop.index, crop.box.clip(tile)) for crop in crops]
        placements = tuple(Placement(index, part, tile, slot) for index, part in parts if part.volume)
        if placements:
            canvases.append(Canvas(tile.shape, (1, 1, 1), placements))
    return canvases


def trim(canvas: Canvas, divisor: Triple) -> Canvas:
    """Cut off the ends of a canvas that no slot reaches.

    Args:
        canvas: Crops that the packer put towards its first corner.
        divisor: The network's input edges must be multiples of these.

    Returns:
        The same crops in the same places, on the smallest canvas that holds them, never larger than before.

    >>> crop = Placement(0, *[Box.of((0, 0, 0), (4, 9, 5))] * 3)
    >>> trim(Canvas((8, 16, 16), (1, 1, 1), (crop,)), (4, 8, 8)).shape
    (4, 16, 8)
    """
    used = to_array(placement.slot for placement in canvas.placements)[:, 3:].max(axis=0)
    shape = (min(edge, -(-int(stop) // by) * by) for edge, stop, by in zip(canvas.shape, used, divisor, strict=True))
    return replace(canvas, shape=triple(shape))


def _alone(placements: list[Placement], canvas: Triple, volume: Triple) -> tuple[Placement, ...]:
    """A crop that has a canvas to itself is shown with real surroundings up to the canvas' edges."""
    if len(placements) > 1:
        return tuple(placements)
    (lone,) = placements
    source = _native_where_short(lone.box, canvas, canvas, volume)
    return (Placement(lone.crop, lone.box, source, Box.whole(canvas)),)


def _crops(boxes: Sequence[Box], volume: Triple) -> list[Crop]:
    """Number the boxes and check that each holds voxels of the volume only."""
    whole = Box.whole(volume)
    for index, box in enumerate(boxes):
        if not box.volume:
            raise ValueError(f"box {index} is empty: {box}")
        if not whole.contains(box):
            raise ValueError(f"box {index} reaches outside of the volume {volume}: {box}; clip it first")
    return [Crop(box, index) for index, box in enumerate(boxes)]


def _grids_of_capacity(canvas: Triple, slot: Triple, capacity: int | None) -> tuple[Triple, ...]:
    """All grids, or the one that has the wanted number of slots."""
    grids = canvas_grids(canvas, slot)
    if capacity is None:
        return grids
    available = {prod(grid): grid for grid in grids}
    if capacity not in available:
        known = ", ".join(map(str, available))
        raise ValueError(f"canvas {canvas} has no grid of {capacity} slots {slot}: capacities are {known}")
    return (available[capacity],)


def _slot_shape(canvas: Triple, grid: Triple) -> Triple:
    """The size of a slot; voxels that do not divide evenly stay unused at the canvas's end."""
    return triple(edge // count for edge, count in zip(canvas, grid, strict=True))


def _slots(canvas: Triple, grid: Triple) -> Iterator[Box]:
    """The slots of a grid in the order of a plough, so that each touches the one before."""
    shape = _slot_shape(canvas, grid)
    layers, rows, columns = grid
    for row in range(layers * rows):
        z, y = divmod(row, rows)
        y = y if z % 2 == 0 else rows - 1 - y
        for step in range(columns):
            x = step if row % 2 == 0 else columns - 1 - step
            yield Box.of((z * shape[0], y * shape[1], x * shape[2]), shape)


def _native_limits(canvas: Triple, slot: Triple, grid: Triple, threshold: Triple | None) -> Triple:
    """The longest edges that are cropped natively in a grid whose slots may be larger than the full grid's."""
    full = canvas_grids(canvas, slot)[-1]
    shown = _slot_shape(canvas, grid)
    if threshold is None:
        return shown
    scaled = (
        limit * large // small for limit, large, small in zip(threshold, shown, _slot_shape(canvas, full), strict=True)
    )
    return triple(map(min, scaled, shown))


def _native_where_short(box: Box, limits: Triple, slot: Triple, volume: Triple) -> Box:
    """What to read for a box: the slot's edge around its centre up to the limit, else just the box's own edge."""
    edges = (shown if edge <= limit else edge for edge, limit, shown in zip(box.shape, limits, slot, strict=True))
    return box.centred(triple(edges), Box.whole(volume))


def _with_margin(box: Box, margin: Triple, canvas: Triple, volume: Triple, thick: Triple) -> Box:
    """The box with context, as far as volume and canvas have room for it; as thick as that on axes where not 0."""
    grown = box.grow(margin).clip(Box.whole(volume))
    edges = [max(own, min(wide, limit)) for own, wide, limit in zip(box.shape, grown.shape, canvas, strict=True)]
    source = box.centred(triple(edges), grown)
    return source.centred(triple(map(max, edges, thick)), Box.whole(volume))
