"""Working off the blocks of a phase: in this process, or on a Dask cluster that may lose workers on the way.

A task does one block: it writes its results itself, returns a small payload, and may be done again at any time with
the same outcome. So nothing has to be rolled back: whatever was cut short is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from coarse2fine.errors import OutputError
from coarse2fine.large.execution.cluster import on_cluster
from coarse2fine.large.execution.tasks import Engine, Failure, OnDone, Task, attempt
from coarse2fine.large.execution.work import Key, WorkFolder
from coarse2fine.system.timing import Run, Ticks

__all__ = ["Engine", "Failure", "Key", "Task", "in_process", "on_cluster", "run_phase"]


def in_process() -> Engine:
    """One block after the other, in this process."""
    return _InProcess()


def run_phase(
    engine: Engine,
    work: WorkFolder,
    phase: str,
    task: Task,
    keys: Sequence[Key],
    *,
    retries: int = 2,
    progress: Ticks,
    where: Callable[[Key], str] = str,
) -> tuple[dict[Key, Mapping[str, Any]], list[Failure]]:
    """Works off those blocks of a phase that are not done yet.

    Each block is marked by the worker that did it, right after its results are written, so that nothing of it is
    lost when this process dies.

    Args:
        engine: Where to do it.
        work: The work folder.
        phase: Name of the phase.
        task: Does one block.
        keys: All blocks of the phase.
        retries: How often a block that fails is tried again.
        progress: Called with the number of blocks that are done and of all blocks, also at the start.
        where: Says in users' terms where a block is.

    Returns:
        The payloads of all blocks that are done, those of earlier runs included, in order of ``keys``, as they read
        from JSON (lists for tuples); and the blocks that failed.

    Raises:
        OutputError: As soon as results or markers cannot be written.
        C2FError: If the workers are lost for good.
    """
    before = work.finished(phase)
    payloads: dict[Key, Mapping[str, Any]] = {key: before[key] for key in keys if key in before}
    progress(len(payloads), len(keys))

    def on_done(key: Key, payload: Mapping[str, Any]) -> None:
        payloads[key] = payload
        progress(len(payloads), len(keys))

    rest = [key for key in keys if key not in payloads]
    failures = engine.run(_Marked(work, phase, task), rest, on_done=on_done, retries=retries) if rest else []
    return (
        {key: payloads[key] for key in keys if key in payloads},
        [replace(failure, phase=phase, where=where(failure.key)) for failure in failures],
    )


@dataclass(frozen=True, slots=True)
class _Marked:
    """A task that marks what it has done."""

    work: WorkFolder
    phase: str
    task: Task

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        self.work.check()  # a worker left over from an earlier run must not write into this one
        return self.work.mark(self.phase, key, self.task(key, run))


class _InProcess:
    """The engine without workers."""

    dashboard: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, task: Task, keys: Sequence[Key], *, on_done: OnDone, retries: int) -> list[Failure]:
        failures = []
        for key in keys:
            for _ in range(retries + 1):
                outcome = attempt(task, key)
                if outcome.fatal is not None:
                    raise OutputError(*outcome.fatal)
                if outcome.payload is not None:
                    on_done(key, outcome.payload)
                    break
            else:
                failures.append(Failure("", key, "", retries + 1, outcome.message))
        return failures
