"""``norm: case`` of a volume that is read by region: settled once, before any cell is segmented.

As in memory, statistics are measured on tiles around some of the volume's regions, spread over space, and boxes get
canvases of their own instead if there are few. So the regions of all cells are looked for first. Of a volume of very
many cells, only some are looked at: as many, spread over the volume, as there must be for enough regions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from canvas import Box, Triple, triple
from coarse2fine.config.schema import Config
from coarse2fine.fine.canvases import better_alone
from coarse2fine.fine.inputs import VolumeNorm, input_reader, norm_tiles
from coarse2fine.large.cells import OpenVolume, look_around, look_at_cell
from coarse2fine.large.execution.work import Key
from coarse2fine.large.job import Job, volume_of, write_json
from coarse2fine.nnunet.instance_norm import NormStatistics, measure_statistics
from coarse2fine.system.timing import Aside, Run, Stage

NORM = "norm.json"
FIRST_CELLS = 64
"""Cells that are looked at in any case, or all."""
ENOUGH = 4
"""Regions that are known for each tile that is measured, if there are so many."""
_GOLDEN = 0.6180339887498949  # its multiples, without their whole part, are spread evenly however many there are


@dataclass(frozen=True, slots=True)
class LookAtCell:
    """Regions of a cell."""

    job: Job

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """Boxes of all ``regions`` and of the ``chosen`` ones; ``seconds`` by stage, ``notes`` for the report."""
        with run.clock.time(Aside.TOTAL):
            regions, chosen = look_at_cell(volume_of(self.job), self.job.lattice.core(triple(key)), run)
        return {
            "regions": [[*box.start, *box.stop] for box in regions],
            "chosen": [[*box.start, *box.stop] for box in chosen],
            "seconds": run.clock.rounded(),
            "notes": list(run.notes),
        }


@dataclass(frozen=True, slots=True)
class MeasureTile:
    """What is settled for the volume; the phase has one key, that of the first cell."""

    job: Job
    known: tuple[Box, ...]
    chosen: tuple[Box, ...]
    complete: bool

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """The statistics, or that there are none; ``counts``, ``seconds`` and ``notes`` as of other blocks."""
        with run.clock.time(Aside.TOTAL):
            alone, statistics, voxels = settle(volume_of(self.job), self.known, self.chosen, self.complete, run)
        return {
            "alone": alone,
            "statistics": None if statistics is None else statistics.to_json(),
            "counts": {"network_voxels": voxels},
            "seconds": run.clock.rounded(),
            "notes": list(run.notes),
        }


def settle(
    opened: OpenVolume, known: Sequence[Box], chosen: Sequence[Box], complete: bool, run: Run
) -> tuple[bool, NormStatistics | None, int]:
    """Whether boxes get canvases of their own, else the statistics, and voxels that these were measured on.

    Args:
        opened: The volume.
        known: Regions, in voxels of the whole working grid.
        chosen: Those of them that were chosen.
        complete: Whether that is all that there are.
        run: Books network passes under ``fine.network``.
    """
    stage, volume = opened.pipeline.stage, opened.view.whole
    config, plan, fine = stage.config, stage.plan, stage.model
    if not known or (complete and better_alone(chosen, config, plan, volume)):
        return True, None, 0
    inputs = []
    tiles = norm_tiles(known, config, plan, fine, volume)
    for tile in tiles:
        coarse = look_around(opened, tile.clip(Box.whole(volume)), run) if fine.cascade else None
        inputs.append(input_reader(opened.view, coarse)(tile, tile.shape))
    with run.clock.time(Stage.FINE.passes):
        return False, measure_statistics(fine, inputs), sum(tile.volume for tile in tiles)


def needs_norm(config: Config) -> bool:
    """Whether anything has to be settled."""
    return config.mode == "accelerated" and config.canvas.norm == "case"


Phase = Callable[[str, Any, Sequence[Any]], Mapping[Key, Mapping[str, Any]]]
"""Runs a phase: its name, task and keys; returns the payloads."""


def settle_norm(
    job: Job, phase: Phase, *, packs: bool = True, cells: Sequence[Triple] | None = None
) -> list[Mapping[str, Any]]:
    """Look at cells, and measure; returns the payloads of what was done.

    Args:
        job: The run.
        phase: Runs a phase.
        packs: Whether regions of the volume are packed; if not, there is nothing to settle.
        cells: Those that are segmented; None for all.
    """
    if not needs_norm(job.config):
        return []
    if not packs:
        write_json(job.work.path(NORM), {"alone": None, "statistics": None})
        return []
    order = spread(job.lattice.cells() if cells is None else cells)
    count, wanted = min(FIRST_CELLS, len(order)), ENOUGH * job.config.canvas.norm_tiles
    while True:
        looks = phase("look", LookAtCell(job), order[:count])
        known = [box for payload in looks.values() for box in payload["regions"]]
        if count == len(order) or len(known) >= wanted:
            break
        count = min(2 * count, len(order))
    chosen = [box for payload in looks.values() for box in payload["chosen"]]
    task = MeasureTile(job, _boxes(known), _boxes(chosen), count == len(order))
    (settled,) = phase("norm", task, [(0, 0, 0)]).values()
    if not job.work.path(NORM).exists():  # cells that could not be looked at then must not change it later
        write_json(job.work.path(NORM), {name: settled[name] for name in ("alone", "statistics")})
    return [*looks.values(), settled]


@lru_cache(maxsize=1)
def norm_of(job: Job) -> VolumeNorm:
    """What was settled, in any process."""
    if not needs_norm(job.config):
        return VolumeNorm()
    settled = json.loads(job.work.path(NORM).read_text())
    statistics = settled["statistics"]
    return VolumeNorm(None if statistics is None else NormStatistics.from_json(statistics), settled["alone"])


def spread(cells: Sequence[Triple]) -> list[Triple]:
    """Cells in an order of which every beginning is spread over the volume."""
    return [cells[index] for index in sorted(range(len(cells)), key=lambda index: (index + 0.5) * _GOLDEN % 1.0)]


def _boxes(corners: Sequence[Sequence[int]]) -> tuple[Box, ...]:
    return tuple(Box(triple(edges[:3]), triple(edges[3:])) for edges in corners)
