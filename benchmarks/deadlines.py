"""Whether deadlines are kept and what is reached in time, and which order of canvases is best when time runs out.

    python benchmarks/deadlines.py --dataset em --out em.json

For each test case (``--split train``: training case) real runs with deadlines between the least possible and what a
whole run takes. Orders are compared on one run whose canvases are looked at one by one: what each crop yields is
counted against the reference, so that the quality after any number of canvases, in any order, follows. Time goes with
the voxels of canvases, so that a busy machine changes nothing about that.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from assignnet import Roi
from assignnet.value.anytime import AnytimeCurve, anytime_curve, best_order
from assignnet.value.voxel_counts import Metric, VoxelCounts, count_outcomes
from benchmarks.common.bench import Bench
from benchmarks.common.machine import environment, forget
from benchmarks.common.registry import dataset_names, exit_code, find_case_files, load_dataset
from canvas import Box, Canvas, Placement, to_array
from coarse2fine.coarse.heatmap import paint_coarse
from coarse2fine.coarse.scene import Scene
from coarse2fine.errors import DeadlineError
from coarse2fine.evaluation.masks import dice, iou, mean_over_labels
from coarse2fine.fine.canvases import cut_large
from coarse2fine.fine.deadline import Job
from coarse2fine.fine.growth import Region
from coarse2fine.fine.segment import FineStage, segment_boxes
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.io import atomic_write, check_writable, read_volume
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.working_grid import WorkingView, view_volume
from coarse2fine.segmenter import Segmenter
from coarse2fine.selection.order import worth_of
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.system.timing import Run

Labels = NDArray[np.unsignedinteger[Any]]
ORDERS = ("doubt", "mass", "score", "space", "random")
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of the time of the fine stage that deadlines leave."""


def measure_deadlines(bench: Bench, pipeline: Pipeline, shares: Sequence[float] = SHARES) -> list[dict[str, float]]:
    """Real runs with deadlines, after one without: what was asked for, what it took, and what came of it.

    Those that are refused, because they leave no time for the fine network, are left out.

    Args:
        bench: The case.
        pipeline: Models and settings.
        shares: Of the time that the fine stage takes without a deadline.
    """
    whole = _timed(bench, pipeline, None)
    rows = []
    for share in shares:
        asked = whole["taken_s"] - (1 - share) * whole["fine_s"]
        with suppress(DeadlineError):
            rows.append({"asked_s": asked} | _timed(bench, pipeline, asked))
    return [{key: row[key] for key in ("asked_s", "taken_s", "quality", "left")} for row in rows]


def _timed(bench: Bench, pipeline: Pipeline, asked: float | None) -> dict[str, float]:
    config = pipeline.config.model_copy(update={"deadline": asked})
    timed = Pipeline(config, pipeline.coarse, pipeline.fine)
    forget()
    with tempfile.TemporaryDirectory() as folder:
        result = timed.run_files(bench.files, Path(folder) / "labels.nii.gz")
    timing, kept = result.report.timing_s, result.report.deadline
    return {
        "taken_s": timing.total,
        "fine_s": timing.fine,
        "quality": quality(bench, result.labels),
        "left": len(kept.left) if kept else 0,
    }


def quality(bench: Bench, labels: Labels) -> float:
    """Of labels, as the data set measures it."""
    measure = dice if bench.dataset.quality == "dice" else iou
    return mean_over_labels(measure, bench.decided(labels), bench.reference, bench.labels)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The canvases of a run, and what each crop on them yields.

    Attributes:
        jobs: The canvases.
        rows: Crops of each, as rows of ``outcomes``.
        outcomes: What crops yield; where none is done the coarse labels stand if these mean the same, else background.
        chosen: The regions, in the order in which they were chosen.
        scene: What they are of.
    """

    jobs: tuple[Job, ...]
    rows: tuple[tuple[int, ...], ...]
    outcomes: VoxelCounts
    chosen: tuple[Roi, ...]
    scene: Scene

    @property
    def seconds(self) -> list[float]:
        """What canvases cost, in voxels."""
        return [float(job.voxels) for job in self.jobs]

    def curve(self, order: Sequence[int], metric: Metric, total: float | None = None) -> AnytimeCurve:
        """Quality against time, if canvases run in an order."""
        steps, seconds = [self.rows[index] for index in order], [self.seconds[index] for index in order]
        return anytime_curve(self.outcomes, steps, seconds, metric, regions=sum(map(len, self.rows)), total=total)

    def best(self, metric: Metric) -> list[int]:
        """The best order in hindsight."""
        return best_order(self.outcomes, self.rows, self.seconds, metric, regions=sum(map(len, self.rows)))


class Recorder(LabelWriter):
    """A writer that keeps what each crop alone yields."""

    def __init__(self, view: WorkingView, model: Model) -> None:
        super().__init__(view, model)
        self._of = view, model
        self.found: dict[Placement, tuple[Box, Labels]] = {}

    def add(
        self, placement: Placement, logits: torch.Tensor, box: Box | None = None, keep: torch.Tensor | None = None
    ) -> None:
        """See ``LabelWriter``."""
        alone = LabelWriter(*self._of)
        alone.expect([placement.box])
        alone.add(placement, logits, box, keep)
        place = self.native(box or placement.box)
        self.found[placement] = place, alone.labels[place.slices].copy()
        super().add(placement, logits, box, keep)


def look_at_steps(bench: Bench, pipeline: Pipeline) -> Steps | None:
    """Run all canvases once, without growing; None where nothing is found."""
    segmenter, run = pipeline.segmenter, Run()
    if segmenter is None:
        return None
    scene = look(pipeline, segmenter, bench, run)
    tree = segmenter.regions(scene, run)
    choice = segmenter.choose(tree, scene, run)
    if not choice.rois:
        return None
    stage, view = _without_growth(choice.stage), scene.view
    writer = Recorder(view, stage.model)
    boxes = [roi.box for roi in choice.rois]
    result = segment_boxes(stage, scene, boxes, writer, run, known=[roi.box for roi in tree.leaves])
    writer.finish()
    truth = np.ascontiguousarray(np.asarray(view.turn.array(bench.reference))[view.crop.slices])
    outside = np.zeros(truth.shape, writer.labels.dtype)
    if segmenter.keeps_coarse:
        paint_in(scene, boxes, writer, outside)
    regions = cut_large([Region(box) for box in boxes], stage.config, stage.plan)
    jobs = tuple(Job(canvas, regions, to_array([])) for canvas in result.canvases)
    return Steps(jobs, *_counted(result.canvases, writer, truth, outside, stage.model), choice.rois, scene)


def look(pipeline: Pipeline, segmenter: Segmenter, bench: Bench, run: Run) -> Scene:
    """The coarse result of a case."""
    volume = read_volume(bench.files, [model.reader for model in pipeline.models])
    seen = view_volume(volume, segmenter.coarse, pipeline.config.coarse.spacing)
    coarse = segmenter.heatmap(seen, run)
    return Scene(view_volume(volume, pipeline.fine), coarse)


def _without_growth(stage: FineStage) -> FineStage:
    fine = stage.config.fine.model_copy(update={"grow": 0})
    return FineStage(stage.model, stage.config.model_copy(update={"fine": fine}), stage.plan)


def paint_in(scene: Scene, boxes: Sequence[Box], writer: LabelWriter, labels: Labels) -> None:
    """Coarse labels in boxes, as regions get them that are not reached."""
    for place in map(writer.native, boxes):
        if place.volume:
            paint_coarse(scene.coarse, labels[place.slices], place, writer.back.shape_out)


def _counted(
    canvases: Sequence[Canvas], writer: Recorder, truth: Labels, outside: Labels, model: Model
) -> tuple[tuple[tuple[int, ...], ...], VoxelCounts]:
    """Rows of each canvas, and what these yield."""
    results: list[tuple[tuple[slice, slice, slice], Labels]] = []
    rows = []
    for canvas in canvases:
        first = len(results)
        for placement in canvas.placements:
            place, labels = writer.found[placement]
            results.append((place.slices, labels))
        rows.append(tuple(range(first, len(results))))
    ignored = np.zeros(truth.shape, bool) if model.labels.ignore is None else truth == model.labels.ignore
    truth = np.where(ignored, 0, truth).astype(np.uint16)
    outside[ignored] = 0
    results = [(where, np.where(ignored[where], 0, labels)) for where, labels in results]
    return tuple(rows), count_outcomes(truth, outside.astype(np.uint16), results, tuple(model.labels.foreground))


def anytime_areas(
    bench: Bench, pipeline: Pipeline, agents: Mapping[str, Pipeline] = {}
) -> tuple[dict[str, float], dict[str, AnytimeCurve]]:
    """Area under quality against time by order, from 0 to 1, and the curves; empty where nothing is found.

    Time 1 is when the pipeline's own choice of regions is done, for everybody. ``best`` is the best order in hindsight.

    Args:
        bench: The case.
        pipeline: Models and settings, whose choice of regions is put in order by each rule.
        agents: Others that choose regions and put them in order.
    """
    steps = look_at_steps(bench, pipeline)
    if steps is None or pipeline.segmenter is None:
        return {}, {}
    metric: Metric = bench.dataset.quality
    kept, slot, total = pipeline.segmenter.keeps_coarse, pipeline.stage.plan.slot, sum(steps.seconds)
    curves = {}
    for name in ORDERS:
        worth = worth_of(name, steps.chosen, steps.scene, slot, kept=kept)
        order = sorted(range(len(steps.jobs)), key=lambda index: -steps.jobs[index].promise(worth))
        curves[name] = steps.curve(order, metric)
    curves["best"] = steps.curve(steps.best(metric), metric)
    for name, agent in agents.items():
        its = look_at_steps(bench, agent)
        if its is not None:
            worth = worth_of("agent", its.chosen, its.scene, slot, kept=kept)
            order = sorted(range(len(its.jobs)), key=lambda index: -its.jobs[index].promise(worth))
            curves[name] = its.curve(order, metric, total)
    return {name: curve.area for name, curve in curves.items()}, curves


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--dataset", required=True, choices=dataset_names(), help="whose cases")
    add("--out", type=Path, required=True, metavar="FILE", help="JSON file for all figures")
    add("--split", choices=("test", "train"), default="test", help="which cases")
    add("--data", type=Path, metavar="DIR", help="where the data lie, if not where the data set's file says")
    add("--models", default="ours", help="ours: benchmarks/models, then ../shared/models; shared; or a folder")
    add("--agent", action="append", default=[], metavar="DIR", help="compare this agent's order; may be repeated")
    add("--shares", type=float, nargs="*", default=SHARES, help="of the fine stage's time, for real runs")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting")
    return parser


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure, write, show."""
    check_writable(options.out, overwrite=True)
    dataset, rows = load_dataset(options.dataset), []
    for case in find_case_files(dataset, options.data):
        if case.split != options.split:
            continue
        bench = Bench(dataset, case, source=options.models, overrides=["assign.agent=greedy", *options.overrides])
        pipeline = bench.pipeline()
        agents = {Path(folder).name: bench.pipeline(f"assign.agent={folder}") for folder in options.agent}
        areas, curves = anytime_areas(bench, pipeline, agents)
        deadlines = measure_deadlines(bench, pipeline, options.shares)
        rows.append(
            {
                "case": case.name,
                "deadlines": deadlines,
                "anytime_area": areas,
                "curves": {name: [curve.times, curve.qualities] for name, curve in curves.items()},
            }
        )
        console.print(case.name, {name: round(area, 4) for name, area in areas.items()})
        for row in deadlines:
            console.print({key: round(value, 3) for key, value in row.items()})
    document = {
        "dataset": dataset.name,
        "split": options.split,
        "cases": rows,
        "environment": environment(),
        "command": shlex.join(["python", "benchmarks/deadlines.py", *options.arguments]),
    }
    with atomic_write(options.out) as path:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = build_parser().parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True, width=150, highlight=False)
    keep_freed_memory()
    return exit_code(lambda: run(options, console), console)


if __name__ == "__main__":
    sys.exit(main())
