"""Runs of ``c2f-infer`` on stores in processes of their own, for ``scale.py``: their seconds and their memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import psutil  # comes with Dask

from benchmarks.common.machine import THREAD_VARIABLES, PeakMemory
from coarse2fine.config.reader import load_config
from coarse2fine.errors import C2FError
from coarse2fine.pipeline import Pipeline

STAGES = ("coarse", "fine")
_POLL_S = 0.05
_SPAWNED = "spawn_main"  # in the command line of processes that Python starts for Dask; its helpers lack it


@dataclass(frozen=True, slots=True)
class Command:
    """A call of ``c2f-infer``.

    Attributes:
        volume: The input, a store.
        output: The result; whatever else the call writes lies beside it.
        config: Settings, as ``-c`` takes them.
        models: Folders of the coarse and the fine model.
        overrides: Settings that win over these, as ``--set`` takes them.
        options: Further options.
        threads: Of each library in each process.
    """

    volume: Path
    output: Path
    config: Path | str | None
    models: tuple[Path, Path]
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    threads: int = 1

    @property
    def work(self) -> Path:
        """The work folder; once its manifest is there, the run can be resumed."""
        return self.output.with_name(f"{self.output.name}.c2f-work")

    @property
    def log(self) -> Path:
        """What the call prints."""
        return self.output.with_name(f"{self.output.name}.log")

    @property
    def report(self) -> Path:
        """The report of a run that has ended well."""
        return self.output.with_name(f"{self.output.name}.json")

    def on(self, *options: str, output: Path | None = None) -> Self:
        """The same with further options, perhaps with another output."""
        return replace(self, output=output or self.output, options=(*self.options, *options))

    def environment(self) -> dict[str, str]:
        """Environment variables of the process."""
        return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(self.threads))}

    def start(self) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own."""
        named = {"-i": self.volume, "-o": self.output, "-c": self.config, "--report": self.report, "--work": self.work}
        named |= {f"--{stage}-model": path for stage, path in zip(STAGES, self.models, strict=True)}
        words = [str(word) for option, value in named.items() if value is not None for word in (option, value)]
        words += [word for override in self.overrides for word in ("--set", override)]
        command = [sys.executable, "-m", "coarse2fine.cli.infer", *words, *self.options]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment(),
                start_new_session=True,
            )


@dataclass(frozen=True, slots=True)
class Measured:
    """What a call took.

    Attributes:
        seconds: From its start to its end, with everything that Python loads.
        main_mb: Peak resident memory of its own process; None where that cannot be measured.
        workers_mb: Of the largest of its worker processes; None without any.
        report: The report that it wrote.
    """

    seconds: float
    main_mb: float | None
    workers_mb: float | None
    report: Mapping[str, Any]


def run(command: Command) -> Measured:
    """Run a command to its end.

    Raises:
        C2FError: If it fails, with what it said.
    """
    start = time.perf_counter()
    process = command.start()
    peaks: dict[int, float] = {}
    try:
        while process.poll() is None:
            for pid in (process.pid, *(worker.pid for worker in workers_of(process.pid))):
                with contextlib.suppress(OSError):  # it has just ended
                    peaks[pid] = max(peaks.get(pid, 0.0), PeakMemory(Path(f"/proc/{pid}")).read_mb() or 0.0)
            time.sleep(_POLL_S)
    finally:
        end(process)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise C2FError(f"c2f-infer failed: {' '.join(command.log.read_text(errors='replace').split())[-2000:]}")
    main = peaks.pop(process.pid, None)
    return Measured(seconds, main, max(peaks.values(), default=None), json.loads(command.report.read_text()))


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes that a process has started."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(_SPAWNED in word for word in child.cmdline()):
                    found.append(child)
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that still runs, and those that it has started."""
    if process.poll() is None:
        end_all([psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)])
        process.wait()


def end_all(processes: Sequence[psutil.Process]) -> None:
    """Kill those of these processes that still run."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def models_mb(command: Command) -> float | None:
    """Peak memory of a process that loads the settings and models of a command, and does nothing with them.

    Raises:
        C2FError: If they cannot be loaded.
    """
    models = [f"{stage}.model={json.dumps(str(path))}" for stage, path in zip(STAGES, command.models, strict=True)]
    config = None if command.config is None else str(command.config)
    words = [sys.executable, __file__, json.dumps([config, [*models, *command.overrides]])]
    done = subprocess.run(words, env=command.environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise C2FError(f"the models cannot be loaded: {' '.join(done.stderr.split())[-2000:]}")
    peak: float | None = json.loads(done.stdout)
    return peak


def main() -> None:
    """What ``models_mb`` runs in a process of its own: load the models named by the first argument, print the peak."""
    import coarse2fine.cli.infer_run  # noqa: F401  # a run loads all of this, too

    Pipeline.from_config(load_config(*json.loads(sys.argv[1])))
    print(json.dumps(PeakMemory().read_mb()))


if __name__ == "__main__":
    main()
