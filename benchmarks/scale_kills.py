"""What ``kill -9`` costs: runs whose processes are killed at random times, resumed, and compared with one that was not.

Killed are a worker or the main process of a run with two workers, or the scheduler of a cluster that was started apart
from the run. Afterwards the same command is given again until it ends well. One cycle is one kill.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from scale_run import Command, end, end_all, run, workers_of

from canvas import Box
from coarse2fine.errors import C2FError
from coarse2fine.io import open_store

VICTIMS = ("worker", "main", "scheduler")
WORKERS = 2
_SLAB = (64, 512, 512)
_POLL_S = 0.02
_ORPHANS_S = 30.0  # for workers to notice that whom they worked for is dead
_TRIES = 3  # runs until a cycle counts as lost
_SLOW = 20.0  # times an undisturbed run's duration, after which a run counts as hung
_LEAST_S = 120.0


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """The run that all others are compared with.

    Attributes:
        output: Its result.
        begins_s: From its start until it could be resumed.
        seconds: Until its end.
    """

    output: Path
    begins_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """A scheduler and workers that outlive a run.

    Attributes:
        address: Of the scheduler.
        scheduler: Its process.
        workers: The process that starts and watches the workers.
    """

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: subprocess.Popen[bytes]


def kill_cycles(command: Command, cycles: int, seed: int, console: Console) -> dict[str, Any]:
    """Kill, resume and compare.

    Args:
        command: Without workers; its output's folder is used for all runs.
        cycles: How many kills.
        seed: Of victims and times.
        console: Told about each cycle.

    Returns:
        ``kills``; ``survived``: cycles that ended well; ``voxels_different`` over all levels of all results;
        ``left_behind``: processes that outlived the main process; ``missed``: runs that ended before the kill, which
        do not count; ``undisturbed_s``; ``cycles``: each one's victim, time, runs and outcome.

    Raises:
        C2FError: If the undisturbed run fails, or no kill ever hits.
    """
    random = np.random.default_rng(seed)
    reference = _undisturbed(command)
    rows: list[dict[str, Any]] = []
    missed = 0
    while len(rows) < cycles:
        if missed > 2 * cycles + 5:
            raise C2FError("the runs are over before anything can be killed", "Take a larger volume.")
        victim = VICTIMS[int(random.integers(len(VICTIMS)))]
        delay = float(random.random()) * (reference.seconds - reference.begins_s)
        row = _cycle(command, reference, victim, delay)
        if row is None:
            missed += 1
            continue
        rows.append(row)
        console.print(f"kill {len(rows)}/{cycles}: {row}", highlight=False, soft_wrap=True)
    return {
        "kills": len(rows),
        "survived": sum(row["survived"] for row in rows),
        "voxels_different": sum(row["voxels_different"] or 0 for row in rows),
        "left_behind": sum(row["left_behind"] for row in rows),
        "missed": missed,
        "undisturbed_s": reference.seconds,
        "cycles": rows,
    }


def _undisturbed(command: Command) -> Undisturbed:
    calm = command.on("--workers", str(WORKERS))
    process, start = calm.start(), time.perf_counter()
    try:
        _wait_for_work(calm, process)
        begins = time.perf_counter() - start
        code = process.wait(timeout=3600)
    finally:
        end(process)
    if code:
        raise C2FError(f"c2f-infer failed: {_said(calm)}")
    return Undisturbed(calm.output, begins, time.perf_counter() - start)


def _cycle(command: Command, reference: Undisturbed, victim: str, delay: float) -> dict[str, Any] | None:
    """One kill and what came of it; None if the run was over before."""
    output = command.output.with_name(f"killed{command.output.suffix}")
    limit = max(_LEAST_S, _SLOW * reference.seconds)
    port = _free_port()
    runs, said = 1, ""
    for path in output.parent.glob(f"{output.name}*"):  # of the cycle before
        _remove(path)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(_cluster(port, command)) if victim == "scheduler" else None
        place = ("--scheduler", cluster.address) if cluster else ("--workers", str(WORKERS))
        again = command.on(*place, output=output)
        process = again.start()
        stack.callback(end, process)
        _wait_for_work(again, process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=delay)
        family = workers_of(process.pid) if process.poll() is None else []
        if not _kill(victim, process, family, cluster):
            return None
        code = _wait(process, limit)
        left = psutil.wait_procs(family, timeout=_ORPHANS_S)[1] if code else []
        end_all(left)
    while code and runs < _TRIES:
        runs, said = runs + 1, _said(again)
        with _cluster(port, command) if victim == "scheduler" else contextlib.nullcontext():
            process = again.start()
            code = _wait(process, limit)
    different = voxels_different(reference.output, output) if not code else None
    row = {"victim": victim, "after_s": round(delay, 3), "runs": runs, "left_behind": len(left)}
    row |= {"survived": code == 0, "voxels_different": different}
    return row if not code else row | {"said": said or _said(again)}


def _kill(
    victim: str, process: subprocess.Popen[bytes], family: list[psutil.Process], cluster: Cluster | None
) -> bool:
    """Kill -9; returns whether there was anything to kill."""
    if process.poll() is not None or (victim == "worker" and not family):
        return False
    if victim == "worker":
        family[0].kill()
    elif cluster:
        cluster.scheduler.kill()
    else:
        process.kill()
    return True


def _wait_for_work(command: Command, process: subprocess.Popen[bytes]) -> None:
    """Wait until a run could be resumed, or is over."""
    while process.poll() is None and not (command.work / "manifest.json").exists():
        time.sleep(_POLL_S)


def _wait(process: subprocess.Popen[bytes], limit: float) -> int:
    """The exit code of a process; of one that hangs, that of a killed one."""
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        end(process)
        return process.wait()


@contextlib.contextmanager
def _cluster(port: int, command: Command) -> Iterator[Cluster]:
    """A scheduler and two workers, as users start them; all are gone at the end."""
    address = f"tcp://127.0.0.1:{port}"
    options = ["--no-dashboard", "--host", "127.0.0.1"]
    started: list[subprocess.Popen[bytes]] = []
    words = (
        ["distributed.cli.dask_scheduler", "--port", str(port), *options],
        ["distributed.cli.dask_worker", address, "--nworkers", str(WORKERS), "--nthreads", "1", *options],
    )
    try:
        for module, *rest in words:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *rest],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=command.environment(),
                cwd=command.output.parent,
                start_new_session=True,
            )
            started.append(process)
        yield Cluster(address, *started)
    finally:
        for process in started:  # each has a group of its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def voxels_different(one: Path, other: Path) -> int:
    """Voxels in which two label stores differ, over all of their levels, which are of the same shapes.

    Raises:
        C2FError: If they are not.
    """
    pair = [open_store(str(path), as_labels=True).levels for path in (one, other)]
    shapes = [[level.grid.shape for level in levels] for levels in pair]
    if shapes[0] != shapes[1]:
        raise C2FError(f"{other.name} has levels of {shapes[1]}, {one.name} of {shapes[0]}")
    count = 0
    for first, second in zip(*pair, strict=True):
        whole = Box.whole(first.grid.shape)
        for start in itertools.product(*(range(0, edge, s) for edge, s in zip(whole.shape, _SLAB, strict=True))):
            box = Box.of(start, _SLAB).clip(whole).slices
            count += int((first.channels[0][box] != second.channels[0][box]).sum())
    return count
