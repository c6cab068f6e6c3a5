"""A run over a store in parts, without a cluster: several processes, wherever they are, share one work folder.

Each does its share of the blocks up to the segmentation, which takes nearly all of the time. What is needed by all
before they can go on, such as statistics, is waited for; where nobody gets on with it, whoever waits does it. Two that
do one block write the same. What changes results of other phases (merging, numbering) is left to a last command, which
has the work folder for itself, so that nobody can come late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canvas import Box
from coarse2fine.config.schema import Config
from coarse2fine.large.execution.engine import Engine, Key, Task
from coarse2fine.large.execution.work import one_at_a_time, open_work
from coarse2fine.large.job import Job
from coarse2fine.large.output import Output
from coarse2fine.large.phases import Phases, Settings
from coarse2fine.large.plan import check_by_region, job_of, manifest_of, plan_run
from coarse2fine.large.run import SEGMENT, segment_blocks
from coarse2fine.large.source import Source
from coarse2fine.system.timing import Progress

WAIT_S = 5.0
"""How long others may be without a finished block before one that they have not done is taken over."""


@dataclass(frozen=True, slots=True)
class PartDone:
    """What came of a part.

    Attributes:
        done: Blocks that are segmented, by whomever.
        blocks: All blocks that there are.
    """

    done: int
    blocks: int


@dataclass(slots=True)
class PartPhases(Phases):
    """Runs a share of each phase.

    Attributes:
        first: The first block that is this part's, counted from 0.
        count: How many parts there are.
        wait_s: See ``WAIT_S``.
        asked: How many blocks the last phase had.
    """

    first: int = 0
    count: int = 1
    wait_s: float = WAIT_S
    asked: int = 0

    def step(self, job: Job) -> AbstractContextManager[None]:
        """Within this, no other part is within this."""
        return one_at_a_time(job.work.folder)

    def phase(
        self, job: Job, name: str, task: Task, keys: Sequence[Key], box_of: Callable[[Any], Box]
    ) -> Mapping[Key, Mapping[str, Any]]:
        """Do a share of a phase, and wait until others have done the rest; not of the last one, the segmentation.

        Raises:
            UnfinishedError: If blocks kept failing.
        """
        self.asked = len(keys)
        Phases.phase(self, job, name, task, keys[self.first :: self.count], box_of)
        before = len(keys)
        while True:
            done = job.work.finished(name)
            left = [key for key in keys if key not in done]
            if not left or name == SEGMENT:
                return {key: done[key] for key in keys if key in done}
            if len(left) == before:  # nobody has got on
                taken = left[self.first % len(left)]
                Phases.phase(self, job, name, task, [taken], box_of)
            else:
                before = len(left)
                time.sleep(self.wait_s)


def segment_part(
    config: Config,
    source: Source,
    output: Output,
    work: Path,
    engine: Engine,
    settings: Settings,
    progress: Progress,
    part: tuple[int, int],
    wait_s: float = WAIT_S,
) -> PartDone:
    """Do a share of a run; ``segment_store`` with the same arguments does what is left and ends it.

    Args:
        config: All settings.
        source: The input.
        output: What will be written.
        work: Work folder that all parts see.
        engine: Where blocks are done; entered already.
        settings: How; blocks are neither skipped nor begun anew.
        progress: Told about every finished block.
        part: Number of the part, counted from 1, and how many there are.
        wait_s: See ``WAIT_S``.

    Raises:
        C2FError: As of ``segment_store``.
    """
    check_by_region(config, source)
    plan = plan_run(config, source, settings.trust)
    number, count = part
    phases = PartPhases(engine, settings, progress, first=number - 1, count=count, wait_s=wait_s)
    with open_work(work, manifest_of(plan, config, output), shared=True) as folder:
        job = job_of(plan, source, output, folder, settings.trust)
        segmented = segment_blocks(phases, job, plan).segmented
    return PartDone(len(segmented), phases.asked)
