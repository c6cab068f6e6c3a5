"""The main path for a volume that is read by region: a store goes in, a store comes out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.config.schema import Config
from coarse2fine.errors import C2FError, ConfigError, VolumeError
from coarse2fine.io import Grid, LabelSpec, Volume, atomic_write, create_labels, pyramid_factors
from coarse2fine.io.stores.presence import check_stored
from coarse2fine.large.cells import open_volume
from coarse2fine.large.execution.engine import Engine, Failure, Task, run_phase
from coarse2fine.large.execution.manifest import Manifest
from coarse2fine.large.execution.work import Key, WorkFolder, open_work
from coarse2fine.large.job import SCAN, Job, mask_of, scan_of, store_of, write_json
from coarse2fine.large.lattice import Lattice, cell_doubts, plan_lattice
from coarse2fine.large.masked import find_looked
from coarse2fine.large.norm import settle_norm
from coarse2fine.large.objects import FIRST, TABLE, NumberCell, PairCell, RenumberCell, first_numbers, join_objects
from coarse2fine.large.output import PUBLISHED, Output, publish
from coarse2fine.large.report import StoreReport, make_report, sum_labels
from coarse2fine.large.segment import MergeCell, ScanBlock, SegmentBlock
from coarse2fine.large.source import Source, chunk_of, fitting_level, identity_of, pick_level
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.statistics import Scan, blank_scan, join_scans
from coarse2fine.preprocessing.working_grid import volume_doubts
from coarse2fine.report import versions
from coarse2fine.resampling.operators import separate_axis
from coarse2fine.selection.features import feature_model_fingerprint
from coarse2fine.system.timing import Clock, Progress, Run, silent

PATCHES_PER_CELL = 4
_SKIPPED = ("scan", "look", "segment")
"""Phases that may go on without blocks that keep failing: those that read the input."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is done; none of this changes its result.

    Attributes:
        trust: Whether checkpoints may run code while they are loaded.
        retries: How often a block that fails is tried again.
        skip_failed: Whether to finish without blocks that keep failing, which then are background.
        restart: Whether to give up what an earlier run has done.
    """

    trust: bool = False
    retries: int = 2
    skip_failed: bool = False
    restart: bool = False


class UnfinishedError(C2FError):
    """Some blocks could not be done; the others are kept."""


def segment_store(
    config: Config,
    source: Source,
    output: Output,
    work: Path,
    engine: Engine,
    settings: Settings = Settings(),
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
    refuse_deadline(config, source)
    began = time.perf_counter()
    plan = _plan(config, source, settings.trust)
    lattice, layout = plan.lattice, {**plan.layout, "output": output.describe()}
    models = {role: _fingerprints(model) for role, model in _models(plan.pipeline).items()}
    manifest = Manifest(config.to_dict(), plan.identity, models, versions()["coarse2fine"], layout)
    phases = _Phases(engine, settings, progress)
    with open_work(work, manifest, restart=settings.restart) as folder:
        job = _job(plan, source, output, folder, settings.trust)
        looked = find_looked(job, partial(phases.phase, job))
        if not folder.finished("create"):  # once: a result that has been moved to its place must not be begun anew
            for spec in {job.labels, job.result, *([job.ids] if job.ids else [])}:
                create_labels(spec)
            folder.mark("create", (0,), {})
        _scan(phases, job, looked.blocks)
        packs = open_volume(plan.pipeline, plan.levels, scan_of(job), plan.coarse_level).packs
        settled = settle_norm(
            job,
            lambda name, task, keys: phases.phase(job, name, task, keys, lattice.core),
            packs=packs,
            cells=looked.cells,
        )
        segmented = phases.phase(job, "segment", SegmentBlock(job), looked.blocks, lattice.extent)
        receivers = {triple(cell) for payload in segmented.values() for cell in payload["to"]}
        merged = phases.phase(job, "merge", MergeCell(job), sorted(receivers), lattice.core)
        objects = _number_objects(phases, job, looked.cells) if job.ids else None
        _build_pyramid(phases, job)
        with phases.clock.time("publish"):
            publish(output, job.result, folder, source)
            folder.mark(PUBLISHED, (0,), {})
    return make_report(
        plan.pipeline,
        [*settled, *segmented.values()],
        sum_labels(segmented, merged),
        (*plan.warnings, *volume_doubts(plan.levels[0], plan.pipeline.models)),
        prod(lattice.shape),
        objects,
        looked.voxels,
        volume=plan.identity,
        layout=layout,
        seconds={**phases.clock.seconds, "total": time.perf_counter() - began},
        failures=tuple(failure for failure in phases.failures if failure.phase != "look"),  # these leave nothing out
    )


def refuse_deadline(config: Config, source: Source) -> None:
    """Refuse to be done at a time: blocks are done when they are, by whoever has time.

    Raises:
        ConfigError: If there is a deadline.
    """
    if config.deadline is not None:
        raise ConfigError(
            f"a deadline ({config.deadline:g} s) needs a volume that is held in memory as a whole, and "
            f"{source.where} is read by region",
            "Leave --deadline out, or add --set deadline=null if the settings have one; a part of the volume takes "
            "less time (--region).",
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What is known before any voxel is read.

    Attributes:
        pipeline: Models and settings.
        levels: The volume at each of its scales, finest first.
        identity: What the volume is told from others by.
        lattice: Its cells and blocks.
        coarse_level: Scale level that the coarse network reads.
        warnings: What the user should know of the input.
    """

    pipeline: Pipeline
    levels: Sequence[Volume[Any]]
    identity: Mapping[str, Any]
    lattice: Lattice
    coarse_level: int
    warnings: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """The volume's, at its finest scale."""
        return self.levels[0].grid

    @property
    def layout(self) -> dict[str, Any]:
        """Cells, blocks and scale level, for the manifest."""
        edges = [list(edges) for edges in self.lattice.edges]
        return {"cells": edges, "per_block": list(self.lattice.per_block), "coarse_level": self.coarse_level}


def _plan(config: Config, source: Source, trust: bool) -> _Plan:
    """Open volume and models; what does not fit is found out here, before the volume is streamed."""
    scales, levels = source.open()
    pipeline = Pipeline.from_config(config, trust_checkpoint=trust)
    lattice, level = plan_cells(pipeline, levels[0]), coarse_level_of(pipeline, levels)
    # Statistics are not needed for that.
    open_volume(pipeline, levels, blank_scan(len(levels[0].channels), lattice.shape), level)
    mask = mask_of(source)
    keep = mask.touches if mask else None
    stored = check_stored(scales, source.region, keep)
    level, passed_over = fitting_level(level, config.blocks.coarse_level, scales, source.region, keep)
    doubts = cell_doubts(lattice, config.blocks.cell, chunk_of(lattice.shape))
    identity = identity_of(scales, source.region, mask)
    return _Plan(pipeline, levels, identity, lattice, level, (*stored, *passed_over, *doubts))


def plan_cells(pipeline: Pipeline, volume: Volume[Any]) -> Lattice:
    """The lattice of a volume: by default cells of some patches of the fine network."""
    fine, blocks, shape = pipeline.fine, pipeline.config.blocks, volume.grid.shape
    turned = [volume.grid.spacing[axis] for axis in fine.transpose]
    natural = [
        max(1, round(PATCHES_PER_CELL * edge * want / have))
        for edge, want, have in zip(fine.patch, fine.spacing, turned, strict=True)
    ]
    cell = blocks.cell or triple(natural[axis] for axis in fine.untranspose)
    return plan_lattice(shape, cell, chunk_of(shape), blocks.per_block)


def coarse_level_of(pipeline: Pipeline, levels: Sequence[Volume[Any]]) -> int:
    """The scale level that suits the coarse network, or that the user asks for; 0 without such a network."""
    coarse, config = pipeline.coarse, pipeline.config.coarse
    if coarse is None or pipeline.config.mode == "one-stage":
        return 0
    wanted = config.spacing or coarse.spacing
    in_file = [wanted[axis] for axis in coarse.untranspose]
    return pick_level([level.grid for level in levels], in_file, pipeline.config.blocks.coarse_level)


def _job(plan: _Plan, source: Source, output: Output, folder: WorkFolder, trust: bool) -> Job:
    """Everything that a worker needs to know."""
    grid, name = plan.grid, output.name
    chunk, dtype = chunk_of(grid.shape), np.dtype(plan.pipeline.fine.labels.dtype).name
    factors = pyramid_factors(grid.shape, grid.spacing) if output.pyramid else ((1, 1, 1),)

    def spec(where: str, dtype: str, factors: tuple[Triple, ...], of: Grid = grid) -> LabelSpec:
        return LabelSpec(where, "zarr", of, dtype, chunk, factors, name)

    inner = [str(folder.path(part)) for part in ("labels", "ids")]
    kind = "uint64" if output.objects else dtype
    result = LabelSpec(output.staged(folder), output.store_format, grid, kind, chunk, factors, name)
    return Job(
        plan.pipeline.config,
        trust,
        source,
        plan.lattice,
        _sliced_axes(plan),
        plan.coarse_level,
        spec(inner[0], dtype, ((1, 1, 1),)) if output.objects else result,
        spec(inner[1], "uint32", ((1, 1, 1),)) if output.objects else None,
        result,
        folder,
    )


def _sliced_axes(plan: _Plan) -> tuple[int, ...]:
    """Axes, as in the file, that a model resamples apart, so that the extremes of each slice bound the result."""
    axes = set()
    for role, model in _models(plan.pipeline).items():
        own = plan.pipeline.config.coarse.spacing if role == "coarse" else None
        turned = [plan.grid.spacing[axis] for axis in model.transpose]
        apart = separate_axis(turned, own or model.spacing, model.data_method)
        if apart is not None:
            axes.add(model.transpose[apart])
    return tuple(sorted(axes))


def _models(pipeline: Pipeline) -> dict[str, Model]:
    models = {"coarse": pipeline.coarse, "fine": pipeline.fine}
    return {role: model for role, model in models.items() if model is not None}


def _fingerprints(model: Model) -> list[str]:
    return [feature_model_fingerprint(replace(model, networks=(network,))) for network in model.networks]


@dataclass(slots=True)
class _Phases:
    """Runs phases, and keeps book of them."""

    engine: Engine
    settings: Settings
    progress: Progress
    clock: Clock = field(default_factory=Clock)
    failures: list[Failure] = field(default_factory=list)

    def phase(
        self, job: Job, name: str, task: Task, keys: Sequence[Key], box_of: Callable[[Any], Box]
    ) -> Mapping[Key, Mapping[str, Any]]:
        """Do what is not done yet of a phase; returns the payloads of all blocks.

        Raises:
            UnfinishedError: If blocks kept failing, unless they are to be skipped.
        """
        with self.clock.time(name):
            done, failures = run_phase(
                self.engine,
                job.work,
                name,
                task,
                keys,
                retries=self.settings.retries,
                where=lambda key: job.where(box_of(triple(key))),
                progress=lambda finished, total: self.progress(name, finished, total),
            )
        self.failures += failures
        if failures and not (self.settings.skip_failed and name in _SKIPPED):
            lines = "".join(f"\n    {failure.where}: {failure.message}" for failure in failures[:10])
            more = f"\n    and {len(failures) - 10} more" if len(failures) > 10 else ""
            raise UnfinishedError(
                f"{len(failures)} of {len(keys)} blocks failed in phase {name}:{lines}{more}",
                "All others are done and kept: run the same command again to try these again"
                + (", or add --skip-failed to leave them background." if name in _SKIPPED else "."),
            )
        return done


def _scan(phases: _Phases, job: Job, blocks: Sequence[Triple]) -> None:
    """Stream the volume once for its statistics."""
    if job.work.path(SCAN).exists():  # blocks that failed then must not change what the others were normalised by
        return
    count = max(1, round(len(blocks) * job.config.blocks.statistics))
    picked = [blocks[round(index)] for index in np.linspace(0, len(blocks) - 1, count)]
    parts = phases.phase(job, "scan", ScanBlock(job), picked, job.lattice.extent)
    if not parts:
        raise VolumeError(
            f"{job.source.where}: no block of it can be read: {phases.failures[0].message}",
            "Mend the store, or what leads to it, and run the same command again with --restart.",
        )
    scanned = (Scan.from_dict(part) for payload in parts.values() for part in payload["parts"])
    scan = join_scans(scanned, job.lattice.shape)
    for index, channel in enumerate(scan.channels):
        if channel.low == channel.high and scan.crop == scan.part:
            raise VolumeError(
                f"{job.source.where}: every voxel of channel {index} that was read is {channel.low}",
                "Name another part of the volume (--region), another array (--array) or another store, with --restart.",
            )
    write_json(job.work.path(SCAN), scan.to_dict())


def _number_objects(phases: _Phases, job: Job, cells: Sequence[Triple]) -> int:
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
    edges = triple(chunk * 4 for chunk in spec.chunk)
    start = (index * edge for index, edge in zip(key, edges, strict=True))
    return Box.of(start, edges).clip(Box.whole(spec.shape(level)))


def _build_pyramid(phases: _Phases, job: Job) -> None:
    spec = job.result
    for level in range(1, len(spec.factors)):
        ranges = (range(-(-edge // (4 * chunk))) for edge, chunk in zip(spec.shape(level), spec.chunk, strict=True))
        keys = [triple(key) for key in itertools.product(*ranges)]
        phases.phase(job, f"level-{level}", BuildBlock(job, level), keys, lambda key: Box.whole(job.lattice.shape))
