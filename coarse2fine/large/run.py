"""The main path for a volume that is read by region: a store goes in, a store comes out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.config.schema import Config
from coarse2fine.io import LabelSpec, atomic_write, create_labels
from coarse2fine.large.cells import open_volume
from coarse2fine.large.execution.engine import Engine
from coarse2fine.large.execution.work import Key, open_work
from coarse2fine.large.failed import list_failed
from coarse2fine.large.job import Job, scan_of, store_of
from coarse2fine.large.masked import Looked, find_looked
from coarse2fine.large.norm import settle_norm
from coarse2fine.large.objects import FIRST, TABLE, NumberCell, PairCell, RenumberCell, first_numbers, join_objects
from coarse2fine.large.output import PUBLISHED, Output, publish
from coarse2fine.large.phases import DEFAULTS, Phases, Settings, scan_volume
from coarse2fine.large.plan import Plan, check_by_region, job_of, manifest_of, plan_run
from coarse2fine.large.report import StoreReport, make_report, sum_labels
from coarse2fine.large.segment import MergeCell, SegmentBlock
from coarse2fine.large.shards import GatherShard, shards_of, units_box
from coarse2fine.large.source import Source
from coarse2fine.large.tabulate import tabulate
from coarse2fine.preprocessing.working_grid import volume_doubts
from coarse2fine.system.timing import Progress, Run, silent

SEGMENT = "segment"
"""The phase that takes nearly all of the time."""


def segment_store(
    config: Config,
    source: Source,
    output: Output,
    work: Path,
    engine: Engine,
    settings: Settings = DEFAULTS,
    progress: Progress = silent,
) -> StoreReport:
    """Segment a volume in a store, block by block, and write labels or objects into another.

    A run that was cut short goes on where it was when it is called again with the same arguments.

    Args:
        config: All settings.
        source: The input.
        output: What is written.
        work: Work folder, for what must outlive a crash; all processes see it. It stays; whoever called removes it.
        engine: Where blocks are done; entered already.
        settings: How.
        progress: Told about every finished block.

    Raises:
        C2FError: If anything is wrong with the input, the models, the settings or the output.
        UnfinishedError: If blocks kept failing; all others are done and kept.
    """
    check_by_region(config, source)
    began = time.perf_counter()
    plan = plan_run(config, source, settings.trust)
    manifest = manifest_of(plan, config, output)
    phases = Phases(engine, settings, progress)
    with open_work(work, manifest, restart=settings.restart) as folder:
        job = job_of(plan, source, output, folder, settings.trust)
        blocks = segment_blocks(phases, job, plan)
        looked, segmented = blocks.looked, blocks.segmented
        receivers = {triple(cell) for payload in segmented.values() for cell in payload["to"]}
        merged = phases.phase(job, "merge", MergeCell(job), sorted(receivers), job.lattice.core)
        objects = _number_objects(phases, job, looked.cells) if job.ids else None
        if settings.table and job.ids:
            names = plan.pipeline.fine.labels.values_of
            tabulate(job, partial(phases.phase, job), looked.cells, names, settings.table)
        if job.gathered:
            phases.phase(job, "gather", GatherShard(job), shards_of(job.result), partial(units_box, job.result))
        _build_pyramid(phases, job)
        with phases.clock.time("publish"):
            publish(output, job.result, folder, source)
            folder.mark(PUBLISHED, (0,), {})
    failures = tuple(failure for failure in phases.failures if failure.phase != "look")  # these leave nothing out
    list_failed(settings.failed, failures)
    return make_report(
        plan.pipeline,
        [*blocks.settled, *segmented.values()],
        sum_labels(segmented, merged),
        (*plan.warnings, *volume_doubts(plan.levels[0], plan.pipeline.models)),
        prod(job.lattice.shape),
        objects,
        looked.voxels,
        volume=plan.identity,
        layout=manifest.layout,
        seconds={**phases.clock.seconds, "total": time.perf_counter() - began},
        failures=failures,
    )


@dataclass(frozen=True, slots=True)
class Segmented:
    """What blocks say once all are segmented.

    Attributes:
        looked: Cells and blocks that were.
        settled: Payloads of what was settled before.
        segmented: Payloads of blocks.
    """

    looked: Looked
    settled: Sequence[Mapping[str, Any]]
    segmented: Mapping[Key, Mapping[str, Any]]


def segment_blocks(phases: Phases, job: Job, plan: Plan) -> Segmented:
    """Look at everything, settle what all blocks need to know, and segment them."""
    looked = find_looked(job, partial(phases.phase, job))
    with phases.step(job):  # of parts that share the work folder, one creates
        if not job.work.finished("create"):  # once: a result that has been moved to its place must not be begun anew
            for spec in {job.labels, job.written, job.result, *([job.ids] if job.ids else [])}:
                create_labels(spec)
            job.work.mark("create", (0,), {})
    scan_volume(phases, job, looked.blocks)
    packs = open_volume(plan.pipeline, plan.levels, scan_of(job), plan.coarse_level).packs
    settled = settle_norm(
        job,
        lambda name, task, keys: phases.phase(job, name, task, keys, job.lattice.core),
        packs=packs,
        cells=looked.cells,
    )
    segmented = phases.phase(job, SEGMENT, SegmentBlock(job), looked.blocks, job.lattice.extent)
    return Segmented(looked, settled, segmented)


def _number_objects(phases: Phases, job: Job, cells: Sequence[Triple]) -> int:
    """Labels -> objects with numbers that are unique in the volume; returns how many there are."""
    lattice = job.lattice
    numbered = phases.phase(job, "number", NumberCell(job), cells, lattice.core)
    counts = {key: payload["objects"] for key, payload in numbered.items()}
    _save(job.work.path(FIRST), first_numbers(lattice, counts))
    paired = phases.phase(job, "pair", PairCell(job), cells, lattice.core)
    table = join_objects([pair for payload in paired.values() for pair in payload["pairs"]])
    _save(job.work.path(TABLE), table)
    phases.phase(job, "renumber", RenumberCell(job), cells, lattice.core)
    return sum(counts.values()) - int((table[0] != table[1]).sum())


def _save(path: Path, array: NDArray[Any]) -> None:
    """Writes an array in one step, as workers of a run that was killed may still have the last one mapped."""
    with atomic_write(path) as temp, temp.open("wb") as stream:
        np.save(stream, array)


@dataclass(frozen=True, slots=True)
class BuildBlock:
    """Labels of some chunks of a coarse level of the result's pyramid."""

    job: Job
    level: int

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """Writes them."""
        store_of(self.job.result).build(self.level, pyramid_box(self.job.result, self.level, triple(key)))
        return {}


def pyramid_box(spec: LabelSpec, level: int, key: Triple) -> Box:
    """The voxels of a level that are built at once: about as many as a cell has."""
    edges = _pyramid_edges(spec)
    start = (index * edge for index, edge in zip(key, edges, strict=True))
    return Box.of(start, edges).clip(Box.whole(spec.shape(level)))


def _pyramid_edges(spec: LabelSpec) -> Triple:
    return spec.shard or triple(chunk * 4 for chunk in spec.chunk)


def _build_pyramid(phases: Phases, job: Job) -> None:
    spec = job.result
    for level in range(1, len(spec.factors)):
        ranges = (range(-(-edge // n)) for edge, n in zip(spec.shape(level), _pyramid_edges(spec), strict=True))
        keys = [triple(key) for key in itertools.product(*ranges)]
        phases.phase(job, f"level-{level}", BuildBlock(job, level), keys, lambda key: Box.whole(job.lattice.shape))
