"""The fine stage: boxes -> canvases -> network -> labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Box, Canvas, gather, scatter, to_array
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.schema import Config
from coarse2fine.fine.canvases import better_alone, cut_large, plan_canvases
from coarse2fine.fine.growth import Edges, Growth, Region, cut_faces, follow_mask, join_regions
from coarse2fine.fine.inputs import UNSETTLED, VolumeNorm, input_channels, input_reader, measure_case, norm_tiles
from coarse2fine.fine.sizes import CanvasPlan, plan_sizes
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.nnunet.cpu_layers import lean
from coarse2fine.nnunet.instance_norm import NormStatistics, mark_slots, with_frozen_statistics, with_slot_statistics
from coarse2fine.nnunet.model import Model
from coarse2fine.resampling.operators import Floats
from coarse2fine.system.timing import Clock, Run


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


@dataclass(frozen=True, slots=True, eq=False)
class FineStage:
    """The fine model, and how it segments boxes.

    Attributes:
        model: The fine model.
        config: Settings of canvas and fine stage.
        plan: Sizes.
    """

    model: Model
    config: Config
    plan: CanvasPlan

    @classmethod
    def of(cls, model: Model, config: Config) -> Self:
        """With the sizes that model and settings give; raises as ``plan_sizes`` does."""
        return cls(model, config, plan_sizes(config, model))


def segment_boxes(
    stage: FineStage,
    scene: Scene,
    boxes: Sequence[Box],
    writer: LabelWriter,
    run: Run | None = None,
    *,
    known: Sequence[Box] | None = None,
    elsewhere: Sequence[Box] = (),
    norm: VolumeNorm = UNSETTLED,
) -> FineResult:
    """Segment boxes of the working grid, following masks that reach out of them.

    Args:
        stage: The fine model and its settings.
        scene: What is segmented. The coarse result says where growing is worth it, and is an input of cascades.
        boxes: In the order in which an assigner listed them.
        writer: Receives the outputs.
        run: Books packing under ``pack`` and network passes under ``fine.network``; told of canvases done and known.
        known: All boxes of the case, chosen or not: ``norm: case`` is measured on some of them, so that what a box
            yields does not depend on which others are chosen. None = ``boxes``.
        elsewhere: Boxes that somebody else segments; masks are not followed into them.
        norm: What is known of ``norm: case`` already.
    """
    run, config, plan, volume = run or Run(), stage.config, stage.plan, scene.view.shape
    statistics, alone, measured = norm.statistics, norm.alone, 0
    if alone is None:
        alone = better_alone(boxes, config, plan, volume, measured=statistics is not None)
    if boxes and statistics is None and config.canvas.norm == "case" and not alone:
        tiles = norm_tiles(boxes if known is None else known, config, plan, stage.model, volume)
        statistics = measure_case(scene, stage.model, tiles, run.clock)
        measured = sum(tile.volume for tile in tiles)
    model = lean(stage.model) if alone else _with_norm(stage.model, config, statistics)
    marked = config.canvas.norm == "slot" and not alone
    passes = _Passes(stage, scene, model, marked, writer, run.clock)
    done: list[Canvas] = []
    counted: list[Box] = []
    grown, cut, pending = 0, 0, [Region(box) for box in boxes]
    for attempt in range(config.fine.grow + 1):
        with run.clock.time("pack"):
            regions = cut_large(pending, config, plan)
            canvases = plan_canvases([region.box for region in regions], config, plan, volume, alone=alone)
            announced = [placement.box for canvas in canvases for placement in canvas.placements]
            writer.expect(announced)
            covered, total = to_array([*elsewhere, *counted, *announced]), len(done) + len(canvases)
        growths: list[Growth] = []
        for canvas in canvases:
            growths += _segment_canvas(passes, canvas, regions, covered)
            done.append(canvas)
            run.progress("fine", len(done), total)
        counted += [growth.box for growth in growths]
        cut += sum(growth.refused for growth in growths)
        pending = join_regions((region for growth in growths for region in growth.beyond), plan.native)
        if not pending or attempt == config.fine.grow:
            break
        grown += len(pending)
    return FineResult(tuple(done), tuple(counted), grown, cut + len(pending), measured)


@dataclass(frozen=True, slots=True, eq=False)
class _Passes:
    """What stays the same from canvas to canvas.

    Attributes:
        stage: As in ``segment_boxes``.
        scene: Likewise.
        model: The stage's, with the instance normalisation that its settings ask for.
        marked: Whether the model is told where slots are, each of which has statistics of its own.
        writer: Receives the outputs.
        clock: Books network passes under ``fine.network``.
    """

    stage: FineStage
    scene: Scene
    model: Model
    marked: bool
    writer: LabelWriter
    clock: Clock

    def worth(self, region: Box) -> bool:
        """Whether a box may grow into a region."""
        view, least = self.scene.view, self.stage.config.fine.grow_above
        return self.scene.coarse.peak_in(region.shift(view.window.start), view.whole) >= least

    def run(self, canvas: Canvas) -> Floats:
        """The network's outputs for a canvas."""
        prior = self.scene.coarse if self.model.cascade else None
        data = gather(canvas, input_reader(self.scene.view, prior), input_channels(self.model))
        if self.marked:
            data = np.concatenate([data, mark_slots(canvas)[None]])
        with self.clock.time("fine.network"):
            batch = torch.from_numpy(data)[None]
            logits = self.model.forward(batch, mirroring=self.stage.config.fine.mirroring)
            return logits[0].float().cpu().numpy()


def _segment_canvas(passes: _Passes, canvas: Canvas, regions: Sequence[Region], covered: Edges) -> list[Growth]:
    """Run one canvas and hand each crop's outputs to the writer; returns what became of the crops' boxes."""
    growths, volume = [], passes.scene.view.shape
    masks: dict[Box, NDArray[np.bool_]] = {}  # by slot, which crops may share
    for placement, logits in scatter(canvas, passes.run(canvas)):
        if placement.slot not in masks:
            masks[placement.slot] = passes.model.labels.from_logits(logits) != 0
        mask = masks[placement.slot]
        others = covered[(covered != np.array(placement.box.start + placement.box.stop)).any(axis=1)]
        if passes.stage.config.fine.grow:
            seeds, step = regions[placement.crop].seeds, passes.stage.plan.step
            growth = follow_mask(placement, mask, seeds, others, volume, step, passes.worth)
        else:
            growth = Growth(placement.box, refused=cut_faces(placement, mask, others, volume))
        passes.writer.add(placement, logits, growth.box, growth.keep)
        growths.append(growth)
    return growths


def _with_norm(model: Model, config: Config, statistics: NormStatistics | None) -> Model:
    """The model with the configured instance normalisation; statistics are those of ``norm: case``."""
    if config.canvas.norm == "slot":
        return with_slot_statistics(model)
    return lean(model) if statistics is None else with_frozen_statistics(model, statistics)
