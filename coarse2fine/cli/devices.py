"""Cases on several devices: each device has a process of its own, which takes the next case when it has none."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import cast

from coarse2fine.cli.cases import Job, Work, segment_case
from coarse2fine.cli.guard import told
from coarse2fine.report import RunReport
from coarse2fine.system.memory import keep_freed_memory


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a case has no result, and what helps."""

    problem: str
    remedy: str


Outcome = RunReport | Failure


@dataclass(frozen=True, slots=True)
class _Bug:
    """What a worker process did not foresee, as a traceback."""

    text: str


@dataclass(frozen=True, slots=True)
class _Busy:
    """A worker process with its case."""

    device: str
    process: BaseProcess
    job: Job


def on_devices(jobs: Sequence[Job], work: Work, devices: Sequence[str]) -> Iterator[tuple[Job, Outcome]]:
    """Segment cases on several devices at once.

    Args:
        jobs: The cases.
        work: How each is done.
        devices: One process for each; a device that is named twice has two.

    Yields:
        Every case with what came of it, as soon as it is known.
    """
    waiting, busy = deque(jobs), dict[Connection, _Busy]()
    with ExitStack() as stack:

        def start(device: str) -> None:
            ours, theirs = multiprocessing.Pipe()
            # A process that is forked would share CUDA's state with this one.
            spawn = multiprocessing.get_context("spawn")
            process = spawn.Process(target=_serve, args=(theirs, work, device), name=f"cases on {device}", daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            # What is half done then is thrown away: results are written in one piece or not at all.
            stack.callback(process.terminate)
            give(ours, device, process)

        def give(worker: Connection, device: str, process: BaseProcess) -> None:
            job = waiting.popleft()
            busy[worker] = _Busy(device, process, job)
            worker.send(job)

        for device in devices[: len(jobs)]:
            start(device)
        while busy:
            for ready in wait(list(busy)):
                worker = cast(Connection, ready)  # what is waited for are these only
                at = busy.pop(worker)
                outcome = _received(worker, at)
                yield at.job, outcome
                if waiting and at.process.is_alive():
                    give(worker, at.device, at.process)
                elif waiting:
                    start(at.device)


def _received(worker: Connection, at: _Busy) -> Outcome:
    """What came of a worker's case.

    Raises:
        RuntimeError: If it met with a bug.
    """
    try:
        outcome: Outcome | _Bug = worker.recv()
    except (EOFError, ConnectionError):
        at.process.join()
        return Failure(
            f"its process on {at.device} was killed (exit code {at.process.exitcode}), perhaps because memory was full",
            "Do it alone on one device, on a machine with more memory.",
        )
    if isinstance(outcome, _Bug):
        raise RuntimeError(outcome.text)
    return outcome


def _serve(jobs: Connection, work: Work, device: str) -> None:
    """In the process of one device: segment what comes, until nothing comes any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; whoever started this process ends it
    keep_freed_memory()
    pipeline = None
    while True:
        try:
            job = jobs.recv()
        except EOFError:
            return
        outcome: Outcome | _Bug
        try:
            pipeline = pipeline or work.pipeline(device)
            outcome = segment_case(pipeline, job, work)
        except Exception as error:
            known = told(error)
            outcome = _Bug(traceback.format_exc()) if known is None else Failure(known.problem, known.remedy)
        jobs.send(outcome)
