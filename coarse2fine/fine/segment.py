"""The fine stage: boxes -> canvases -> network -> labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Self

from canvas import Box, Canvas, Placement, Triple, to_array
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.schema import Config
from coarse2fine.fine.canvases import better_alone, cut_large, plan_canvases
from coarse2fine.fine.deadline import Deadline, Job, Queue, TimedQueue, trial_box
from coarse2fine.fine.fallback import Fallback
from coarse2fine.fine.growth import Growth, Region, join_regions
from coarse2fine.fine.inputs import UNSETTLED, VolumeNorm, measure_case, norm_tiles
from coarse2fine.fine.passes import Passes, Waiting
from coarse2fine.fine.sizes import CanvasPlan, plan_sizes
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.nnunet.cpu_layers import lean
from coarse2fine.nnunet.instance_norm import NormStatistics, with_frozen_statistics, with_slot_statistics
from coarse2fine.nnunet.model import Model
from coarse2fine.system.timing import Run, Stage

TRIALS = (4, 2)
"""Canvases that tell how long others take have one of so many parts of these on each axis."""


@dataclass(frozen=True, slots=True)
class FineResult:
    """What the fine stage did.

    Attributes:
        canvases: Everything that the network saw, in order.
        boxes: Regions of the working grid whose results count.
        grown: How many regions were added because a mask reached out of its box.
        cut: How many faces of boxes still cut through a mask.
        measured: Voxels that statistics of ``norm: case`` were measured on.
        left: Regions that were not segmented, or not as a whole, because time was over.
        late: How many of these were asked for by a mask that reached out of its box.
    """

    canvases: tuple[Canvas, ...]
    boxes: tuple[Box, ...]
    grown: int
    cut: int
    measured: int = 0
    left: tuple[Box, ...] = ()
    late: int = 0

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
    deadline: Deadline | None = None,
) -> FineResult:
    """Segment boxes of the working grid, following masks that reach out of them.

    Args:
        stage: The fine model and its settings.
        scene: What is segmented. The coarse result says where growing is worth it, and is an input of cascades.
        boxes: In the order in which an assigner listed them.
        writer: Receives the outputs; one that tracks if there is a deadline.
        run: Books packing under ``pack`` and network passes under ``fine.network``; told of canvases done and known.
        known: All boxes of the case, chosen or not: ``norm: case`` is measured on some of them, so that what a box
            yields does not depend on which others are chosen. None = ``boxes``.
        elsewhere: Boxes that somebody else segments; masks are not followed into them.
        norm: What is known of ``norm: case`` already.
        deadline: When to end; None = when all is done.

    Raises:
        DeadlineError: If there is no time at all.
    """
    run, config, volume = run or Run(), stage.config, scene.view.shape
    with run.clock.time(Stage.PACK):
        alone = norm.alone
        if alone is None:
            alone = better_alone(boxes, config, stage.plan, volume, measured=norm.statistics is not None)
        jobs = _pack(stage, [Region(box) for box in boxes], volume, writer, elsewhere, alone)
    model = lean(stage.model) if alone else _with_norm(stage.model, config, norm.statistics)
    marked = config.canvas.norm == "slot" and not alone
    passes = Passes(config.fine, stage.plan.step, scene, model, marked, writer, run.clock)
    queue = Queue(jobs) if deadline is None else _hurried(stage, passes, jobs, deadline)
    measured = 0
    if boxes and norm.statistics is None and config.canvas.norm == "case" and not alone:
        passes, measured = _measured(stage, passes, boxes if known is None else known, queue)
    done: list[Canvas] = []
    counted: list[Box] = []
    added: list[Region] = []
    late: list[Region] = []
    cut, pending = 0, list[Region]()
    for attempt in range(config.fine.grow + 1):
        growths = _work_off(queue, passes, done, run)
        counted += [growth.box for growth in growths]
        cut += sum(growth.refused for growth in growths)
        pending = join_regions((region for growth in growths for region in growth.beyond), stage.plan.native)
        if not pending or attempt == config.fine.grow:
            break
        added += pending
        if queue.is_over:
            late = pending
            break
        others = [*elsewhere, *counted, *queue.parts]
        with run.clock.time(Stage.PACK):
            queue.add(_pack(stage, pending, volume, writer, others, alone))
    left = queue.give_up([region.box for region in late])
    lost = sum(region.box in left for region in added)
    return FineResult(tuple(done), tuple(counted), len(added) - lost, cut + len(pending), measured, left, lost)


def _pack(
    stage: FineStage,
    regions: Sequence[Region],
    volume: Triple,
    writer: LabelWriter,
    others: Sequence[Box],
    alone: bool,
) -> list[Job]:
    """Canvases for some regions, of which the writer is told; ``others`` are boxes that are segmented otherwise."""
    regions = cut_large(regions, stage.config, stage.plan)
    canvases = plan_canvases([region.box for region in regions], stage.config, stage.plan, volume, alone=alone)
    announced = [placement.box for canvas in canvases for placement in canvas.placements]
    writer.expect(announced)
    covered = to_array([*others, *announced])
    return [Job(canvas, regions, covered) for canvas in canvases]


def _work_off(queue: Queue, passes: Passes, done: list[Canvas], run: Run) -> list[Growth]:
    """Run canvases until none waits for which there is time; returns what became of the crops' boxes."""
    found, waiting = list[Growth](), Waiting(passes)
    while job := queue.take():
        jobs = [job, *queue.take_alike(job, passes.most(job.canvas.shape) - 1)]
        with queue.running(job):
            waiting.add(jobs, passes.run([one.canvas for one in jobs]))
            if waiting.full or not queue.patient:
                found += waiting.settle()
            done += [one.canvas for one in jobs]
            run.progress("fine", len(done), len(done) + len(queue.waiting))
    return found + waiting.settle()


def _measured(stage: FineStage, passes: Passes, known: Sequence[Box], queue: Queue) -> tuple[Passes, int]:
    """Passes with the statistics of ``norm: case``, and the voxels that these cost.

    Without the time for that and for a canvas the queue is closed.
    """
    scene = passes.scene
    tiles = norm_tiles(known, stage.config, stage.plan, stage.model, scene.view.shape)
    voxels, statistics = sum(tile.volume for tile in tiles), None
    # Statistics are measured without mirroring.
    flips = 2 ** len(stage.model.mirror_axes) if stage.config.fine.mirroring else 1
    if queue.allows(voxels / flips + min(job.voxels for job in queue.waiting)):
        with queue.preparing(voxels / flips):
            statistics = measure_case(scene, stage.model, tiles, passes.clock)
    if statistics is None:
        queue.close()
        return passes, 0
    return replace(passes, model=_with_norm(stage.model, stage.config, statistics)), voxels


def _hurried(stage: FineStage, passes: Passes, jobs: Sequence[Job], deadline: Deadline) -> TimedQueue:
    """Canvases in the order of what they gain, which knows how long they take; errors as of ``Deadline.check``."""
    deadline.check()
    coarse = passes.scene.coarse
    wanted = stage.config.fine.outside == "background" and coarse.model.labels.agree_with(stage.model.labels)
    queue = TimedQueue(jobs, deadline, Fallback(coarse if wanted else None, passes.writer, stage.model, passes.clock))
    if jobs and queue.left_s > 0:
        _try_out(stage, passes, queue)
    return queue


def _try_out(stage: FineStage, passes: Passes, queue: TimedQueue) -> None:
    """Find out how long canvases take, on a small one and then, if there is time, on a larger one; both are dropped.

    The first pass is slow in its own way: libraries are loaded, memory is fetched.
    """
    view, plan = passes.scene.view, stage.plan
    middle = next(iter(queue.parts))
    for part in TRIALS:
        source = trial_box(middle, plan.canvas, plan.divisor, view.shape, part)
        box = source.clip(Box.whole(view.shape))
        canvas = Canvas(source.shape, (1, 1, 1), (Placement(0, box, source, Box.whole(source.shape)),))
        job, writer = Job(canvas, [Region(box)], to_array([])), LabelWriter(view, stage.model)
        if queue.allows(job.voxels):
            writer.expect([box])
            with queue.trying(job):
                waiting = Waiting(replace(passes, writer=writer))
                waiting.add([job], passes.run([canvas]))
                waiting.settle()


def _with_norm(model: Model, config: Config, statistics: NormStatistics | None) -> Model:
    """The model with the configured instance normalisation; statistics are those of ``norm: case``."""
    if config.canvas.norm == "slot":
        return with_slot_statistics(model)
    return lean(model) if statistics is None else with_frozen_statistics(model, statistics)
