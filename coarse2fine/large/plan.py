"""What is known of a run before any voxel is read: models, cells and blocks, scale level, and what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from canvas import Triple, triple
from coarse2fine.config.schema import Config
from coarse2fine.errors import ConfigError
from coarse2fine.io import Grid, LabelSpec, Volume, pyramid_factors
from coarse2fine.io.stores.presence import check_stored
from coarse2fine.large.cells import open_volume
from coarse2fine.large.execution.manifest import Manifest
from coarse2fine.large.execution.work import WorkFolder
from coarse2fine.large.job import Job, mask_of
from coarse2fine.large.lattice import Lattice, cell_doubts, plan_lattice
from coarse2fine.large.output import Output
from coarse2fine.large.shards import parse_shard
from coarse2fine.large.source import Source, chunk_of, fitting_level, identity_of, pick_level
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.statistics import blank_scan
from coarse2fine.report import versions
from coarse2fine.resampling.operators import separate_axis
from coarse2fine.selection.features import feature_model_fingerprint

PATCHES_PER_CELL = 4


def check_by_region(config: Config, source: Source) -> None:
    """Refuse what blocks cannot do, which are done when they are, by whoever has time, and know nothing of each other.

    Raises:
        ConfigError: If there is a deadline, or each block would choose its own precision.
    """
    if config.fine.precision == "auto":
        raise ConfigError(
            f"fine.precision: auto looks at a whole volume, and {source.where} is read by region: each block would "
            "choose for itself",
            "Set fine.precision: bf16 or fp32.",
        )
    if config.deadline is not None:
        raise ConfigError(
            f"a deadline ({config.deadline:g} s) needs a volume that is held in memory as a whole, and "
            f"{source.where} is read by region",
            "Leave --deadline out, or add --set deadline=null if the settings have one; a part of the volume takes "
            "less time (--region).",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
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


def plan_run(config: Config, source: Source, trust: bool) -> Plan:
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
    return Plan(pipeline, levels, identity, lattice, level, (*stored, *passed_over, *doubts))


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


def manifest_of(plan: Plan, config: Config, output: Output) -> Manifest:
    """What tells the run from others.

    Raises:
        ConfigError: If the output cannot be as it is wanted.
    """
    shard_of(plan, output)
    models = {role: fingerprints_of(model) for role, model in models_of(plan.pipeline).items()}
    layout = {**plan.layout, "output": output.describe()}
    return Manifest(config.to_dict(), plan.identity, models, versions()["coarse2fine"], layout)


def job_of(plan: Plan, source: Source, output: Output, folder: WorkFolder, trust: bool) -> Job:
    """Everything that a worker needs to know."""
    grid, name = plan.grid, output.name
    chunk, shard, dtype = chunk_of(grid.shape), shard_of(plan, output), np.dtype(plan.pipeline.fine.labels.dtype).name
    factors = pyramid_factors(grid.shape, grid.spacing) if output.pyramid else ((1, 1, 1),)

    def inner(part: str, dtype: str) -> LabelSpec:
        return LabelSpec(str(folder.path(part)), "zarr", grid, dtype, chunk, ((1, 1, 1),), name)

    kind = "uint64" if output.objects else dtype
    result = LabelSpec(output.staged(folder), output.store_format, grid, kind, chunk, factors, name, shard)
    gathered = inner("gathered", kind) if shard else None
    return Job(
        plan.pipeline.config,
        trust,
        source,
        plan.lattice,
        _sliced_axes(plan),
        plan.coarse_level,
        inner("labels", dtype) if output.objects else gathered or result,
        inner("ids", "uint32") if output.objects else None,
        result,
        folder,
        gathered,
    )


def shard_of(plan: Plan, output: Output) -> Triple | None:
    """Shape of the result's shards; None if it has none.

    Raises:
        ConfigError: If it is none that they can have.
    """
    return None if output.shards is None else parse_shard(output.shards, chunk_of(plan.grid.shape))


def _sliced_axes(plan: Plan) -> tuple[int, ...]:
    """Axes, as in the file, that a model resamples apart, so that the extremes of each slice bound the result."""
    axes = set()
    for role, model in models_of(plan.pipeline).items():
        own = plan.pipeline.config.coarse.spacing if role == "coarse" else None
        turned = [plan.grid.spacing[axis] for axis in model.transpose]
        apart = separate_axis(turned, own or model.spacing, model.data_method)
        if apart is not None:
            axes.add(model.transpose[apart])
    return tuple(sorted(axes))


def models_of(pipeline: Pipeline) -> dict[str, Model]:
    """The models by role."""
    models = {"coarse": pipeline.coarse, "fine": pipeline.fine}
    return {role: model for role, model in models.items() if model is not None}


def fingerprints_of(model: Model) -> list[str]:
    """What tells the networks of a model from others, one for each fold."""
    return [feature_model_fingerprint(replace(model, networks=(network,))) for network in model.networks]
