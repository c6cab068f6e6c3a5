"""The fine stage: boxes -> canvases -> network -> labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import (
    Box,
    Canvas,
    Read,
    gather,
    scatter,
    to_array,
)
from coarse2fine.coarse.heatmap import CoarseResult
from coarse2fine.config.schema import Config
from coarse2fine.fine.canvases import better_alone, cut_large, plan_canvases
from coarse2fine.fine.growth import Edges, Growth, Region, cut_faces, follow_mask, join_regions
from coarse2fine.fine.inputs import input_channels, input_reader, measure_case, norm_tiles
from coarse2fine.fine.sizes import CanvasPlan
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.nnunet.cpu_layers import lean
from coarse2fine.nnunet.instance_norm import (
    NormStatistics,
    SlotLayout,
    with_frozen_statistics,
    with_slot_statistics,
)
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.sliding_window import Progress
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.resampling.operators import Floats
from coarse2fine.system.timing import Clock


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


def _with_norm(model: Model, config: Config, statistics: NormStatistics | None) -> tuple[Model, SlotLayout | None]:
    """The model with the configured instance normalisation; statistics are those of ``norm: case``."""
    if config.canvas.norm == "slot":
        return with_slot_statistics(model)
    return (lean(model) if statistics is None else with_frozen_statistics(model, statistics)), None
