"""Boxes onto canvases: which share one, which get one of their own, and which are cut first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from assignnet import Roi, in_space_order
from assignnet.choice.cost_model import tiles_along
from canvas import (
    Box,
    Canvas,
    Triple,
    pack_same_scale,
    pack_same_size,
    pack_tiles,
    trim,
    triple,
)
from coarse2fine.config.schema import Config
from coarse2fine.errors import ConfigError
from coarse2fine.fine.growth import Region
from coarse2fine.fine.sizes import CanvasPlan, same_scale
from coarse2fine.nnunet.model import tile_starts
from coarse2fine.nnunet.sliding_window import tiles_touching

FEW = 8
"""Crops are packed together if they would fill so many canvases; more would come from too many places."""


SPARSE = 8
"""Boxes are not packed where a canvas for each costs so many times less than a sliding window over the volume."""


def plan_canvases(
    boxes: Sequence[Box], config: Config, plan: CanvasPlan, volume: Triple, *, alone: bool = False
) -> list[Canvas]:
    """Pack boxes.

    Args:
        boxes: Regions of the working grid, in the order in which they should lie on canvases.
        config: Packing and resizing.
        plan: Sizes.
        volume: Shape of the working grid.
        alone: Give every box a canvas to itself, with all the context that fits.

    Returns:
        Canvases in the order in which they run: that of the boxes, but in same-scale packing that of space after the
        largest one.

    Raises:
        ConfigError: If there is no grid with the configured capacity.
    """
    try:
        if plan.shared:
            return pack_tiles(boxes, tiles_under(boxes, plan.patch, config.fine.tile_step, volume), volume)
        if alone:
            return pack_same_size(boxes, plan.canvas, plan.canvas, volume, capacity=1)
        if same_scale(config):
            return _pack_by_place(boxes, plan, volume)
        return pack_same_size(
            boxes,
            plan.canvas,
            plan.slot,
            volume,
            capacity=plan.capacity,
            resize_always=config.fine.postprocess == "resize_only",
            crop_threshold=config.fine.crop_threshold,
        )
    except ValueError as error:
        raise ConfigError(f"canvas: {error}", "Change canvas.capacity, canvas.slot or canvas.size.") from None


def _pack_by_place(boxes: Sequence[Box], plan: CanvasPlan, volume: Triple) -> list[Canvas]:
    """Same-scale packing of a few canvases after the other, each of boxes from the same part of the volume.

    So blocks of the volume get their last crop soon, and their sums of outputs are dropped. The largest canvas runs
    first: memory that its feature maps leave is then large enough for all others.
    """
    rank = in_space_order([Roi(box, 0.0, 0.0) for box in boxes], plan.native)
    place = {roi.box: index for index, roi in enumerate(rank)}
    order = sorted(range(len(boxes)), key=lambda index: place[boxes[index]])
    filled = np.cumsum([prod(boxes[index].grow(plan.context).shape) for index in order]) // (FEW * prod(plan.canvas))
    canvases: list[Canvas] = []
    for number in np.unique(filled):
        # In the caller's order, which few boxes keep.
        part = sorted(index for index, own in zip(order, filled, strict=True) if own == number)
        some = [boxes[index] for index in part]
        for canvas in pack_same_scale(some, plan.canvas, volume, margin=plan.context, padded=plan.patch):
            crops = tuple(replace(placement, crop=part[placement.crop]) for placement in canvas.placements)
            canvases.append(trim(replace(canvas, placements=crops), plan.divisor))
    largest = max(canvases, key=lambda canvas: prod(canvas.shape), default=None)
    return sorted(canvases, key=lambda canvas: canvas is not largest)


def cut_large(regions: Sequence[Region], config: Config, plan: CanvasPlan) -> list[Region]:
    """Cut what is larger than what stays native into tiles, if large boxes are to stay native."""
    if config.fine.large_boxes != "native" or plan.shared:  # the tiles that are shared cut them
        return list(regions)
    return [
        Region(tile, region.seeds, region.box)
        for region in regions
        for tile in tiles_of(region.box, plan.native, config.fine.tile_step)
    ]


def tiles_of(box: Box, tile: Triple, step: float) -> list[Box]:
    """nnU-Net's sliding window over one box; the box itself where it is no larger than a tile."""
    tile = triple(min(edge, limit) for edge, limit in zip(tile, box.shape, strict=True))
    return [Box.of(corner, tile).shift(box.start) for corner in tile_starts(box.shape, tile, step)]


def tiles_under(boxes: Sequence[Box], tile: Triple, step: float, volume: Triple) -> list[Box]:
    """The tiles of nnU-Net's sliding window over a volume that boxes have voxels in, each once, in its order."""
    return sorted({touched for box in boxes for touched in tiles_touching(box, volume, tile, step)})


def better_alone(
    boxes: Sequence[Box], config: Config, plan: CanvasPlan, volume: Triple, *, measured: bool = False
) -> bool:
    """Whether few boxes are better not packed, but get a native-size canvas each.

    There they are seen in the surroundings, and with the instance normalisation, that the network was trained with.
    That costs little if a sliding window would cost far more, and nothing if measuring ``norm: case`` would cost the
    passes that packing saves.

    Args:
        boxes: To be segmented.
        config: Settings of canvas and fine stage.
        plan: Sizes.
        volume: Shape of the working grid.
        measured: Whether ``norm: case`` has been measured already.
    """
    if config.canvas.norm != "case" or config.fine.large_boxes == "native" or config.fine.postprocess == "resize_only":
        return False
    if same_scale(config) and SPARSE * len(boxes) <= count_tiles(volume, plan.patch, config.fine.tile_step):
        return True
    few = len(plan_canvases(boxes, config, plan, volume)) + config.canvas.norm_tiles
    return not measured and len(boxes) <= few


def count_tiles(volume: Triple, tile: Triple, step: float) -> int:
    """How many tiles nnU-Net's sliding window has over a volume."""
    return prod(tiles_along(edge, limit, step) for edge, limit in zip(volume, tile, strict=True))
