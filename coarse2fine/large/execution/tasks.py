"""What the engines share: blocks, tasks that do one of them, and how an attempt ends."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from coarse2fine.errors import C2FError, OutputError
from coarse2fine.large.execution.work import Key
from coarse2fine.system.memory import SteadyHeap, is_memory_full, return_freed_memory
from coarse2fine.system.timing import Run

Task = Callable[[Key, Run], Mapping[str, Any]]
"""Does one block, and returns what is to be known of it."""
OnDone = Callable[[Key, Mapping[str, Any]], None]
GROWTH = 1.03
"""How many times the memory of its first pass a process may have before it returns what is free."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A block that was given up.

    Attributes:
        phase: Name of the phase; empty in what ``Engine.run`` returns, which does not know it.
        key: The block.
        where: Where that is, for people; empty in what ``Engine.run`` returns.
        attempts: How often it was tried.
        message: What went wrong the last time.
        voxels: Where that is in voxels of the input, start and stop along z, y, x; empty likewise.
        world: Likewise in ``unit``, from outer face to outer face.
        unit: Of ``world``.
    """

    phase: str
    key: Key
    where: str
    attempts: int
    message: str
    voxels: tuple[tuple[int, int], ...] = ()
    world: tuple[tuple[float, float], ...] = ()
    unit: str = ""


class Engine(Protocol):
    """Where blocks are worked off; a context manager, within which it can run any number of phases."""

    @property
    def dashboard(self) -> str | None:
        """Address of a page that shows the cluster at work; None where there is none."""

    def run(self, task: Task, keys: Sequence[Key], *, on_done: OnDone, retries: int) -> list[Failure]:
        """Works off all blocks, in any order.

        Args:
            task: Does one block. It may be called in other processes, so it can be pickled.
            keys: The blocks.
            on_done: Called in this process with each block that is done and its payload.
            retries: How often a block that fails is tried again.

        Returns:
            The blocks that failed each time, in order of ``keys``.

        Raises:
            OutputError: As soon as a task raises it: results cannot be written, so no further block is begun.
            C2FError: If the workers are lost for good.
        """

    def __enter__(self) -> Self:
        """Starts the workers."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops all workers that were started here, whatever they are doing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. Errors travel as text: not all can be pickled, and Dask would log them.

    Attributes:
        payload: Of a block that is done, else None.
        message: Of one that failed.
        fatal: Problem and remedy of an ``OutputError``.
        worker: Dask's address of the worker that tried; empty outside of a cluster.
    """

    payload: Mapping[str, Any] | None = None
    message: str = ""
    fatal: tuple[str, str] | None = None
    worker: str = ""


def attempt(task: Task, key: Key) -> Outcome:
    """Does a block; in whichever process this is called, whose memory stays level over blocks."""
    try:
        return Outcome(task(key, Run(progress=SteadyHeap(growth=GROWTH))))
    except OutputError as error:
        return Outcome(fatal=(error.problem, error.remedy))
    except Exception as error:
        return Outcome(message=explain(error))
    finally:
        return_freed_memory()


def explain(error: Exception) -> str:
    """An error in one line; one that was not meant for users names its place in the code."""
    if isinstance(error, C2FError):
        return " ".join(str(error).split())
    if is_memory_full(error):
        return "out of memory; fewer workers (--workers) or smaller cells (blocks.cell, with --restart) take less"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
