"""The fine stage: boxes -> canvases -> network -> labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from assignnet import Roi, in_space_order
from assignnet.choice.cost_model import tiles_along
from canvas import (
    Box,
    Canvas,
    Read,
    Triple,
    gather,
    pack_same_scale,
    pack_same_size,
    pack_tiles,
    scatter,
    to_array,
    trim,
    triple,
)
from coarse2fine.coarse.heatmap import CoarseResult
from coarse2fine.config.schema import Config
from coarse2fine.errors import ConfigError
from coarse2fine.fine.growth import Edges, Growth, Region, cut_faces, follow_mask, join_regions
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.nnunet.cpu_layers import lean
from coarse2fine.nnunet.instance_norm import (
    NormStatistics,
    SlotLayout,
    measure_statistics,
    with_frozen_statistics,
    with_slot_statistics,
)
from coarse2fine.nnunet.model import Model, tile_starts
from coarse2fine.nnunet.sliding_window import Progress, tiles_touching
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.resampling.operators import Floats
from coarse2fine.system.timing import Clock

FEW = 8
"""Crops are packed together if they would fill so many canvases; more would come from too many places."""
SPARSE = 8
"""Boxes are not packed where a canvas for each costs so many times less than a sliding window over the volume."""


@dataclass(frozen=True, slots=True)
class CanvasPlan:
    """Sizes that the configuration leaves to the model, filled in.

    Attributes:
        canvas: Network input.
        slot: Room of one crop.
        capacity: Slots per canvas; None lets the packer choose.
        native: Largest box shown at native resolution: a slot, or in same-scale packing the canvas less context, or
            ``rois.window`` where that is larger.
        window: Largest box that a component is covered with at once.
        step: Growth of a box whose mask touches its face.
        context: Surroundings of a box in same-scale packing.
        divisor: Edges of a network input are multiples of these.
        patch: Size that the model was trained with; thinner volumes are padded to it.
        shared: Whether boxes are seen on the tiles of one sliding window over the volume, and share these.
    """

    canvas: Triple
    slot: Triple
    capacity: int | None
    native: Triple
    window: Triple
    step: Triple
    context: Triple
    divisor: Triple
    patch: Triple
    shared: bool = False


@dataclass(frozen=True, slots=True)
class FineResult:
    """What the fine stage did.

    Attributes:
        canvases: Everything that the network saw, in order.
        boxes: Regions of the working grid whose results count.
        grown: How many regions were added because a mask reached out of its box.
        cut: How many faces of boxes still cut through a mask.
        measured: Voxels that statistics of ``norm: case`` were measured on.
    """

    canvases: tuple[Canvas, ...]
    boxes: tuple[Box, ...]
    grown: int
    cut: int
    measured: int = 0

    @property
    def network_voxels(self) -> int:
        """Voxels that went into the network, for whatever purpose."""
        return sum(prod(canvas.shape) for canvas in self.canvases) + self.measured


def plan_sizes(config: Config, model: Model) -> CanvasPlan:
    """Fill in the sizes that the configuration leaves open.

    Raises:
        ConfigError: If a size does not fit the model.
    """
    settings = config.canvas
    canvas = settings.size or model.patch
    # Two-stage mode is the plain sliding window, of full patches, inside each box.
    slot = settings.slot or (canvas if config.mode == "two-stage" else triple(max(1, edge // 2) for edge in canvas))
    if not settings.enabled:
        # A crop alone is a network input, so its edges must be divisible as often as the network halves them.
        slot = canvas = triple(-(-edge // by) * by for edge, by in zip(slot, model.divisor, strict=True))
    if any(edge % by for edge, by in zip(canvas, model.divisor, strict=True)):
        raise ConfigError(
            f"canvas.size {list(canvas)} cannot be an input of the fine model {model.folder}",
            f"Each edge must be a multiple of {list(model.divisor)}; the model's patch is {list(model.patch)}.",
        )
    if any(edge > limit for edge, limit in zip(slot, canvas, strict=True)):
        raise ConfigError(
            f"canvas.slot {list(slot)} is larger than the canvas {list(canvas)}", "Choose a smaller slot."
        )
    capacity = None if settings.capacity == "auto" or not settings.enabled else settings.capacity
    context = settings.context or triple(edge // 16 for edge in canvas)
    native = slot
    if same_scale(config):
        # Boxes up to the canvas' size would stay native too, but with less context than wanted, or none. Whoever asks
        # for larger windows accepts that.
        roomy = triple(max(1, edge - 2 * side) for edge, side in zip(canvas, context, strict=True))
        native = triple(
            min(max(pair), edge) for *pair, edge in zip(roomy, config.rois.window or roomy, canvas, strict=True)
        )
    step = config.fine.grow_step or triple(max(1, edge // 4) for edge in slot)
    return CanvasPlan(
        canvas, slot, capacity, native, config.rois.window or native, step, context, model.divisor, model.patch
    )


def same_scale(config: Config) -> bool:
    """Whether crops are bin-packed at one scale; a crop alone per input is always a slot."""
    return config.canvas.packing == "same_scale" and config.canvas.enabled


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
        Region(tile, region.seeds)
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


def segment_boxes(
    view: WorkingView,
    model: Model,
    boxes: Sequence[Box],
    config: Config,
    plan: CanvasPlan,
    writer: LabelWriter,
    coarse: CoarseResult,
    clock: Clock,
    progress: Progress,
    *,
    known: Sequence[Box] | None = None,
    elsewhere: Sequence[Box] = (),
    alone: bool | None = None,
    statistics: NormStatistics | None = None,
) -> FineResult:
    """Segment boxes of the working grid, following masks that reach out of them.

    Args:
        view: The fine model's view of the volume.
        model: The fine model.
        boxes: In the order in which an assigner listed them.
        config: Settings of canvas and fine stage.
        plan: Sizes from :func:`plan_sizes`.
        writer: Receives the outputs.
        coarse: Coarse result: says where growing is worth it, and is an input of cascades.
        clock: Books packing under ``pack`` and network passes under ``fine.network``.
        progress: Called with canvases done and known so far.
        known: All boxes of the case, chosen or not: ``norm: case`` is measured on some of them, so that what a box
            yields does not depend on which others are chosen. None = ``boxes``.
        elsewhere: Boxes that somebody else segments; masks are not followed into them.
        alone: Whether each box gets a canvas to itself; None = as ``better_alone`` says.
        statistics: Of ``norm: case``, measured before; None measures them now.
    """
    read = input_reader(view, coarse if model.cascade else None)
    if alone is None:
        alone = better_alone(boxes, config, plan, view.shape, measured=statistics is not None)
    measured = 0
    if boxes and statistics is None and config.canvas.norm == "case" and not alone:
        tiles = norm_tiles(boxes if known is None else known, config, plan, model, view.shape)
        statistics = measure_case(view, model, tiles, coarse, clock)
        measured = sum(tile.volume for tile in tiles)
    model, layout = (lean(model), None) if alone else _with_norm(model, config, statistics)
    stage = _Stage(view, model, layout, read, config, plan, writer, coarse, clock)
    done: list[Canvas] = []
    counted: list[Box] = []
    grown, cut, pending = 0, 0, [Region(box) for box in boxes]
    for attempt in range(config.fine.grow + 1):
        with clock.time("pack"):
            regions = cut_large(pending, config, plan)
            canvases = plan_canvases([region.box for region in regions], config, plan, view.shape, alone=alone)
            announced = [placement.box for canvas in canvases for placement in canvas.placements]
            writer.expect(announced)
            covered, total = to_array([*elsewhere, *counted, *announced]), len(done) + len(canvases)
        growths: list[Growth] = []
        for canvas in canvases:
            growths += _segment_canvas(stage, canvas, regions, covered)
            done.append(canvas)
            progress(len(done), total)
        counted += [growth.box for growth in growths]
        cut += sum(growth.refused for growth in growths)
        pending = join_regions((region for growth in growths for region in growth.beyond), plan.native)
        if not pending or attempt == config.fine.grow:
            break
        grown += len(pending)
    return FineResult(tuple(done), tuple(counted), grown, cut + len(pending), measured)


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


@dataclass(frozen=True, slots=True, eq=False)
class _Stage:
    """What stays the same from canvas to canvas; see ``segment_boxes``."""

    view: WorkingView
    model: Model
    layout: SlotLayout | None
    read: Read
    config: Config
    plan: CanvasPlan
    writer: LabelWriter
    coarse: CoarseResult
    clock: Clock

    def worth(self, region: Box) -> bool:
        """Whether a box may grow into a region."""
        return self.coarse.peak_in(region.shift(self.view.window.start), self.view.whole) >= self.config.fine.grow_above


def _segment_canvas(stage: _Stage, canvas: Canvas, regions: Sequence[Region], covered: Edges) -> list[Growth]:
    """Run one canvas and hand each crop's outputs to the writer; returns what became of the crops' boxes."""
    output = _run(stage, canvas, gather(canvas, stage.read, input_channels(stage.model)))
    growths, volume = [], stage.view.shape
    masks: dict[Box, NDArray[np.bool_]] = {}  # by slot, which crops may share
    for placement, logits in scatter(canvas, output):
        if placement.slot not in masks:
            masks[placement.slot] = stage.model.labels.from_logits(logits) != 0
        mask = masks[placement.slot]
        others = covered[(covered != np.array(placement.box.start + placement.box.stop)).any(axis=1)]
        if stage.config.fine.grow:
            seeds = regions[placement.crop].seeds
            growth = follow_mask(placement, mask, seeds, others, volume, stage.plan.step, stage.worth)
        else:
            growth = Growth(placement.box, refused=cut_faces(placement, mask, others, volume))
        stage.writer.add(placement, logits, growth.box, growth.keep)
        growths.append(growth)
    return growths


def _run(stage: _Stage, canvas: Canvas, data: Floats) -> Floats:
    """One network pass over a canvas."""
    if stage.layout is not None:
        stage.layout.show(canvas)
    on_flip = stage.layout.flip if stage.layout is not None else lambda axes: None
    with stage.clock.time("fine.network"):
        batch = torch.from_numpy(data)[None]
        logits = stage.model.forward(batch, mirroring=stage.config.fine.mirroring, on_flip=on_flip)
        return logits[0].float().cpu().numpy()


def input_reader(view: WorkingView, prior: CoarseResult | None) -> Read:
    """Reads network inputs: the image's channels, and in a cascade the coarse labels as further channels."""

    def read(box: Box, shape: Triple) -> Floats:
        data = view.read(box, shape)
        if prior is None:
            return data
        labels = prior.one_hot(box.shift(view.window.start), view.whole)
        if shape != box.shape:
            index = [
                ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(box.shape, shape, strict=True)
            ]
            labels = labels[np.ix_(np.arange(len(labels)), *index)]
        return np.concatenate([data, labels])

    return read


def input_channels(model: Model) -> int:
    """Input channels of a model: the image's, and in a cascade one for each foreground label."""
    return model.channels + (len(model.labels.foreground) if model.cascade else 0)


def norm_tiles(boxes: Sequence[Box], config: Config, plan: CanvasPlan, model: Model, volume: Triple) -> list[Box]:
    """The native tiles that ``norm: case`` is measured on: around some of the boxes, spread over space.

    Which they are does not depend on the order of the boxes.

    Args:
        boxes: Of the case.
        config: Says how many.
        plan: Sizes.
        model: Its patch is the size of a tile.
        volume: Shape of the working grid.
    """
    spread = in_space_order([Roi(box, 0.0, 0.0) for box in boxes], plan.native)
    count = min(config.canvas.norm_tiles, len(boxes))
    picked = [spread[round(index)].box for index in np.linspace(0, len(boxes) - 1, count)]
    return [box.centred(model.patch, Box.whole(volume)) for box in picked]


def measure_case(
    view: WorkingView, model: Model, tiles: Sequence[Box], coarse: CoarseResult, clock: Clock
) -> NormStatistics:
    """The statistics of ``norm: case``.

    Args:
        view: The fine model's view of the volume.
        model: The fine model.
        tiles: From ``norm_tiles``.
        coarse: Coarse result, an input of cascades.
        clock: Books network passes under ``fine.network``.
    """
    read = input_reader(view, coarse if model.cascade else None)
    inputs = [read(tile, tile.shape) for tile in tiles]
    with clock.time("fine.network"):
        return measure_statistics(model, inputs)


def _with_norm(model: Model, config: Config, statistics: NormStatistics | None) -> tuple[Model, SlotLayout | None]:
    """The model with the configured instance normalisation; statistics are those of ``norm: case``."""
    if config.canvas.norm == "slot":
        return with_slot_statistics(model)
    return (lean(model) if statistics is None else with_frozen_statistics(model, statistics)), None
