"""What a run will take, before it is begun: blocks, bytes, memory, and time from a few blocks that are measured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from canvas import Box, Triple, triple
from coarse2fine.config.schema import Config
from coarse2fine.io import LabelSpec, create_labels
from coarse2fine.io.overlap import touched
from coarse2fine.large.cells import open_volume
from coarse2fine.large.execution.engine import Key, in_process
from coarse2fine.large.execution.manifest import Manifest
from coarse2fine.large.execution.work import open_work
from coarse2fine.large.job import Job, scan_of, volume_of
from coarse2fine.large.masked import Looked, cells_to_do, find_looked
from coarse2fine.large.norm import FIRST_CELLS, needs_norm, settle_norm
from coarse2fine.large.output import Output
from coarse2fine.large.phases import DEFAULTS, Phases, Settings, scan_volume
from coarse2fine.large.plan import Plan, check_by_region, job_of, plan_run
from coarse2fine.large.report import notes_of
from coarse2fine.large.segment import MergeCell, SegmentBlock
from coarse2fine.large.source import Source
from coarse2fine.preprocessing.working_grid import volume_doubts
from coarse2fine.report import peak_memory_mb, versions
from coarse2fine.system.timing import Progress, silent

SAMPLES = 3
"""Blocks that are measured, spread over those that are looked at."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take.

    Attributes:
        volume: Identity of the input.
        voxels: Of the volume, or the region of it.
        cells: How many there are, and how many are looked at.
        blocks: Likewise.
        block: Voxels of the largest block.
        bytes_to_read: At most, unpacked: for statistics, for the coarse network, and cells with their halo.
        result: Its ``shape``, ``type`` and ``bytes``, unpacked, with all levels.
        measured: Blocks that were done, where each is, and its seconds.
        memory_mb: Highest memory of the process that did them: what each worker takes.
        seconds: Of all blocks together, by phase, on one process.
        hours: In all, with as many workers; without what merges objects and writes levels.
        hours_range: If all blocks took as long as the fastest, or the slowest, that was measured.
        workers: How many.
        in_mask: Voxels that a mask sets; None without one.
        warnings: What the user should know.
        versions: Of this package and what it stands on.
    """

    volume: Mapping[str, Any]
    voxels: int
    cells: Mapping[str, int]
    blocks: Mapping[str, int]
    block: Triple
    bytes_to_read: int
    result: Mapping[str, Any]
    measured: Sequence[Mapping[str, Any]]
    memory_mb: Mapping[str, float]
    seconds: Mapping[str, float]
    hours: float
    hours_range: tuple[float, float]
    workers: int
    in_mask: int | None
    warnings: tuple[str, ...]
    versions: Mapping[str, str]


def estimate_store(
    config: Config,
    source: Source,
    output: Output,
    settings: Settings = DEFAULTS,
    progress: Progress = silent,
    *,
    workers: int = 1,
    samples: int = SAMPLES,
) -> Estimate:
    """Plan a run and do a few of its blocks, in a temporary folder that is removed. Nothing else is written.

    Args:
        config: All settings.
        source: The input.
        output: What would be written.
        settings: How.
        progress: Told about every finished block.
        workers: Processes that will share the blocks.
        samples: Blocks that are done.

    Raises:
        C2FError: If anything is wrong with the input, the models or the settings, or a block that is tried fails.
    """
    check_by_region(config, source)
    plan = plan_run(config, source, settings.trust)
    with tempfile.TemporaryDirectory(prefix="c2f-dry-run-") as temporary, in_process() as engine:
        phases = Phases(engine, replace(settings, retries=0, skip_failed=False), progress)
        with open_work(Path(temporary) / "work", Manifest({}, {}, {}, "", {})) as folder:
            inner = replace(output, where=str(folder.path("result")))
            job = job_of(plan, source, inner, folder, settings.trust)
            looked = find_looked(job, partial(phases.phase, job))
            picked = [looked.blocks[index] for index in _spread(len(looked.blocks), samples)]
            segmented = _measure(phases, job, plan, picked)
    return _estimate(plan, job, looked, phases, segmented, workers)


def _measure(phases: Phases, job: Job, plan: Plan, picked: Sequence[Triple]) -> Mapping[Key, Mapping[str, Any]]:
    """Do all phases for a few blocks; returns what the segmentation says of each."""
    create_labels(job.labels)
    scan_volume(phases, replace(job, config=_all_scanned(job.config)), picked)
    volume_of(job)  # models are loaded once, however many blocks there are
    cells = [cell for block in picked for cell in cells_to_do(job, block)]
    packs = open_volume(plan.pipeline, plan.levels, scan_of(job), plan.coarse_level).packs
    settle_norm(
        job,
        lambda name, task, keys: phases.phase(job, name, task, keys, job.lattice.core),
        packs=packs,
        cells=cells[:FIRST_CELLS],
    )
    segmented = phases.phase(job, "segment", SegmentBlock(job), picked, job.lattice.extent)
    receivers = {triple(cell) for payload in segmented.values() for cell in payload["to"]}
    phases.phase(job, "merge", MergeCell(job), sorted(receivers), job.lattice.core)
    return segmented


def _all_scanned(config: Config) -> Config:
    return config.model_copy(update={"blocks": config.blocks.model_copy(update={"statistics": 1.0})})


def _spread(count: int, samples: int) -> list[int]:
    """Some of so many, spread evenly.

    >>> _spread(10, 3), _spread(2, 3)
    ([1, 5, 8], [0, 1])
    """
    wanted = min(count, samples)
    return [int((index + 0.5) * count / wanted) for index in range(wanted)]


def _estimate(
    plan: Plan, job: Job, looked: Looked, phases: Phases, segmented: Mapping[Key, Mapping[str, Any]], workers: int
) -> Estimate:
    lattice, spent, done = job.lattice, phases.clock.seconds, len(segmented)
    share = len(looked.blocks) / done
    scanned = max(1, round(len(looked.blocks) * job.config.blocks.statistics))
    looks = min(len(looked.cells), FIRST_CELLS) / sum(len(cells_to_do(job, triple(key))) for key in segmented)
    seconds = {
        "mask": spent.get("mask", 0.0),  # that was done for all blocks
        "scan": spent.get("scan", 0.0) / done * scanned,
        "look": spent.get("look", 0.0) * max(looks, 1.0) + spent.get("norm", 0.0),
        "segment": spent["segment"] * share,
        "merge": spent.get("merge", 0.0) * share,
    }
    each = [payload["seconds"]["total"] for payload in segmented.values()]
    others = sum(seconds.values()) - seconds["segment"]
    low, high = ((others + time_s * len(looked.blocks)) / workers / 3600 for time_s in (min(each), max(each)))
    return Estimate(
        volume=plan.identity,
        voxels=prod(lattice.shape),
        cells={"all": len(lattice.cells()), "looked_at": len(looked.cells)},
        blocks={"all": len(lattice.blocks()), "looked_at": len(looked.blocks)},
        block=max((lattice.extent(block).shape for block in lattice.blocks()), key=prod),
        bytes_to_read=_bytes_to_read(plan, job, looked, scanned),
        result=_size_of(job.result),
        measured=[
            {"where": job.where(lattice.extent(triple(key))), "seconds": payload["seconds"]["total"]}
            for key, payload in segmented.items()
        ],
        memory_mb=peak_memory_mb(plan.pipeline.fine.device),
        seconds=seconds,
        hours=sum(seconds.values()) / workers / 3600,
        hours_range=(low, high),
        workers=workers,
        in_mask=looked.voxels,
        warnings=(*notes_of(segmented.values()), *plan.warnings, *volume_doubts(plan.levels[0], plan.pipeline.models)),
        versions=versions(),
    )


def _bytes_to_read(plan: Plan, job: Job, looked: Looked, scanned: int) -> int:
    """At most, as voxels take them in memory: for statistics, by the coarse network and by the fine one."""
    finest, coarse = plan.levels[0], plan.levels[plan.coarse_level]
    itemsizes = [sum(channel.dtype.itemsize for channel in level.channels) for level in (finest, coarse)]
    halo, whole = volume_of(job).halo, Box.whole(job.lattice.shape)
    around = [job.lattice.core(cell).grow(halo).clip(whole) for cell in looked.cells]
    fine = sum(box.volume for box in around)
    scan = sum(job.lattice.core(cell).volume for cell in looked.cells) * scanned // len(looked.blocks)
    passes = 0 if plan.pipeline.segmenter is None else 1 + needs_norm(job.config)
    seen = sum(touched(finest.grid, coarse.grid, box).volume for box in around) if passes else 0
    return (scan + fine) * itemsizes[0] + passes * seen * itemsizes[1]


def _size_of(spec: LabelSpec) -> dict[str, Any]:
    voxels = sum(prod(spec.shape(level)) for level in range(len(spec.factors)))
    item = int(spec.dtype.removeprefix("uint")) // 8
    return {"shape": list(spec.grid.shape), "type": spec.dtype, "levels": len(spec.factors), "bytes": voxels * item}
