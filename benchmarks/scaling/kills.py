"""What ``kill -9`` costs: runs whose processes are killed at random times, resumed, and compared with one that was not.

Killed are a worker or the main process of a run with two workers, or the scheduler of a cluster that was started apart
from the run. Afterwards the same command is given again until it ends well. One cycle is one kill.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # comes with Dask
from rich.console import Console

from benchmarks.scaling.runs import Command, end, end_all, workers_of
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
        objects: How many it found.
    """

    output: Path
    begins_s: float
    seconds: float
    objects: int


def kill_cycles(command: Command, cycles: int, seed: int, console: Console) -> dict[str, Any]:
    """Kill, resume and compare.

    Args:
        command: Without workers, and with instances; its output's folder is used for all runs.
        cycles: How many kills.
        seed: Of victims and times.
        console: Told about each cycle.

    Returns:
        ``kills``; ``survived``: cycles that ended well; ``voxels_different`` over all levels of all results;
        ``left_behind``: processes that outlived the main process; ``missed``: runs that ended before the kill, which
        do not count; ``undisturbed_s`` and ``objects`` of the undisturbed run; ``cycles``: each one's victim, time,
        runs and outcome.

    Raises:
        C2FError: If the undisturbed run fails, or no kill ever hits.
    """
    random = np.random.default_rng(seed)
    reference = _undisturbed(command)
    rows: list[dict[str, Any]] = []
    missed, first = 0, int(random.integers(len(VICTIMS)))
    while len(rows) < cycles:
        if missed > 2 * cycles + 5:
            raise C2FError("the runs are over before anything can be killed", "Take a larger volume.")
        victim = VICTIMS[(len(rows) + first) % len(VICTIMS)]
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
        "objects": reference.objects,
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
    seconds, report = time.perf_counter() - start, json.loads(calm.report.read_text())
    return Undisturbed(calm.output, begins, seconds, report["counts"]["objects"])


def _cycle(command: Command, reference: Undisturbed, victim: str, delay: float) -> dict[str, Any] | None:
    """One kill and what came of it; None if the run was over before."""
    limit, port = max(_LEAST_S, _SLOW * reference.seconds), _free_port()
    cluster = partial(_cluster, port, command) if victim == "scheduler" else contextlib.nullcontext
    place = ("--scheduler", f"tcp://127.0.0.1:{port}") if victim == "scheduler" else ("--workers", str(WORKERS))
    with tempfile.TemporaryDirectory(dir=command.output.parent) as folder:
        again = command.on(*place, output=Path(folder) / command.output.name)
        with cluster() as scheduler:
            disturbed = _disturb(again, victim, delay, scheduler, limit)
        if disturbed is None:
            return None
        (code, left), runs, said = disturbed, 1, ""
        while code and runs < _TRIES:
            runs, said = runs + 1, f"{said}{_said(again)}"
            with cluster():
                code = _wait(again.start(), limit)
        different = None if code else voxels_different(reference.output, again.output)
        row = {"victim": victim, "after_s": round(delay, 3), "runs": runs, "left_behind": left}
        row |= {"survived": code == 0, "voxels_different": different}
        return row | {"said": f"{said}{_said(again)}"} if code else row


def _disturb(
    command: Command, victim: str, delay: float, scheduler: subprocess.Popen[bytes] | None, limit: float
) -> tuple[int, int] | None:
    """Run, kill; returns the exit code and how many workers outlived the run, None if it was over before."""
    process = command.start()
    try:
        _wait_for_work(command, process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=delay)
        workers = workers_of(process.pid)
        found = {"main": process, "scheduler": scheduler, "worker": next(iter(workers), None)}[victim]
        if process.poll() is not None or found is None:
            return None
        found.kill()
        code = _wait(process, limit)
        left = psutil.wait_procs(workers, timeout=_ORPHANS_S if code else 0)[1]
        end_all(left)
        return code, len(left)
    finally:
        end(process)


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


def _said(command: Command) -> str:
    """The end of what a command printed, in one line, without the folder's name."""
    text = command.log.read_text(errors="replace").replace(str(command.output.parent), "")
    return " ".join(text.split())[-1000:]


@contextlib.contextmanager
def _cluster(port: int, command: Command) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler, which is given, and two workers, as users start them; all are gone at the end."""
    options = ["--no-dashboard", "--host", "127.0.0.1"]
    count = ["--nworkers", str(WORKERS), "--nthreads", "1"]
    with (
        _running(command, "distributed.cli.dask_scheduler", "--port", str(port), *options) as scheduler,
        _running(command, "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", *count, *options),
    ):
        yield scheduler


@contextlib.contextmanager
def _running(command: Command, module: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module as a program; it and what it has started are gone at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=command.environment(),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own group
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
