"""Phases of a run: their blocks are worked off, what is done is not done again, and book is kept of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from canvas import Box, Triple, triple
from coarse2fine.errors import C2FError, VolumeError
from coarse2fine.large.execution.engine import Engine, Failure, Task, run_phase
from coarse2fine.large.execution.work import Key
from coarse2fine.large.failed import list_failed, located
from coarse2fine.large.job import SCAN, Job, write_json
from coarse2fine.large.segment import ScanBlock
from coarse2fine.preprocessing.statistics import Scan, join_scans
from coarse2fine.system.timing import Clock, Progress

SKIPPED = ("scan", "look", "segment")
"""Phases that may go on without blocks that keep failing: those that read the input."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is done; none of this changes its result.

    Attributes:
        trust: Whether checkpoints may run code while they are loaded.
        retries: How often a block that fails is tried again.
        skip_failed: Whether to finish without blocks that keep failing, which then are background.
        restart: Whether to give up what an earlier run has done.
        failed: File for the list of blocks that failed; None for none.
        table: File for a table of all objects; None for none.
    """

    trust: bool = False
    retries: int = 2
    skip_failed: bool = False
    restart: bool = False
    failed: Path | None = None
    table: Path | None = None


DEFAULTS = Settings()


class UnfinishedError(C2FError):
    """Some blocks could not be done; the others are kept."""


@dataclass(slots=True)
class Phases:
    """Runs phases, and keeps book of them."""

    engine: Engine
    settings: Settings
    progress: Progress
    clock: Clock[str] = field(default_factory=Clock[str])
    failures: list[Failure] = field(default_factory=list)

    def step(self, job: Job) -> AbstractContextManager[None]:
        """Within this, nobody else who works on the same run is within this."""
        return nullcontext()

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
                progress=lambda finished, total: self.progress(name, finished, total),
            )
        failures = [located(job, failure, box_of(triple(failure.key))) for failure in failures]
        self.failures += failures
        if failures and not (self.settings.skip_failed and name in SKIPPED):
            list_failed(self.settings.failed, self.failures)
            lines = "".join(f"\n    {failure.where}: {failure.message}" for failure in failures[:10])
            more = f"\n    and {len(failures) - 10} more" if len(failures) > 10 else ""
            raise UnfinishedError(
                f"{len(failures)} of {len(keys)} blocks failed in phase {name}:{lines}{more}",
                "All others are done and kept: run the same command again to try these again"
                + (", or add --skip-failed to leave them background." if name in SKIPPED else "."),
            )
        return done


def scan_volume(phases: Phases, job: Job, blocks: Sequence[Triple]) -> None:
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
