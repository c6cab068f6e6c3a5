"""Runs on clusters that are stopped, or whose processes are killed: nothing is left, and the next run goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import block_tasks
import pytest
from block_runs import COUNT, FILES, SOON_S, begun, results, wait

import coarse2fine
from coarse2fine.errors import C2FError
from coarse2fine.large.execution import connection
from coarse2fine.large.execution.engine import on_cluster

psutil = pytest.importorskip("psutil", reason="comes with Dask")
distributed = pytest.importorskip("distributed", reason="the extra coarse2fine[cluster] is not installed")


class Scratch:
    """Something that a cluster has to stop, and is told to stop again meanwhile."""

    def __init__(self) -> None:
        self.stopped = 0

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        self.stopped += 1


@pytest.mark.parametrize("starts", [True, False])
def test_on_cluster__ctrl_c_while_it_stops__all_is_stopped_first(starts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after a run nor after a start that failed is anything left."""
    scratch = Scratch()

    def connect(stack: contextlib.ExitStack, address: str) -> connection.Connection:
        for _ in range(2):
            stack.callback(scratch.stop)
        if starts:
            return connection.Connection(None, (), None)  # type: ignore[arg-type]
        raise C2FError("cannot start", "Do something else.")

    monkeypatch.setattr("coarse2fine.large.execution.cluster.join_cluster", connect)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
    try:
        with pytest.raises(KeyboardInterrupt), on_cluster(scheduler="tcp://a:1"):
            pass
    finally:
        signal.signal(signal.SIGINT, before)
    assert scratch.stopped == 2


# --- kills -----------------------------------------------------------------------------------------------------------


def start(*command: object) -> subprocess.Popen[str]:
    """A Python process and those that it starts, in a group of their own as on a terminal."""
    paths = (Path(block_tasks.__file__).parent, Path(coarse2fine.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"},
    )


@contextlib.contextmanager
def running(*command: object) -> Iterator[subprocess.Popen[str]]:
    """The same, and all of them are gone at the end, whatever happens."""
    process = start(*command)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextlib.contextmanager
def running_cluster(port: int) -> Iterator[subprocess.Popen[str]]:
    """A scheduler and a worker as users start them; yields the scheduler, which cannot import the tasks."""
    options = ["--no-dashboard", "--host", "127.0.0.1"]
    address = f"tcp://127.0.0.1:{port}"
    with (
        running("-I", "-m", "distributed.cli.dask_scheduler", "--port", port, *options) as scheduler,
        running("-m", "distributed.cli.dask_worker", address, "--nthreads", 1, *options),
    ):
        yield scheduler


def all_but_the_last(out: Path) -> bool:
    return len(results(out)) == COUNT - 1 and begun(out, COUNT - 1) != []


def assert_resumes(tmp_path: Path, *scheduler: str) -> None:
    """The same command does what is missing, and nothing else."""
    (tmp_path / "out" / "go").touch()
    with running(block_tasks.__file__, tmp_path / "work", tmp_path / "out", COUNT, *scheduler) as process:
        assert process.communicate(timeout=SOON_S) == ("0 failures\n", "")
    assert results(tmp_path / "out") == FILES
    assert [len(begun(tmp_path / "out", number)) for number in range(COUNT - 1)] == [1] * (COUNT - 1)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (lambda pid: os.kill(pid, signal.SIGKILL), -9),
        (lambda pid: os.killpg(pid, signal.SIGINT), 130),
        (lambda pid: os.killpg(pid, signal.SIGHUP), 129),
        (lambda pid: os.kill(pid, signal.SIGTERM), 143),
    ],
    ids=["kill -9", "Ctrl-C", "hang-up", "kill"],
)
def test_on_cluster__main_process_is_stopped__workers_die_and_the_next_run_resumes(
    tmp_path: Path, stop: Callable[[int], None], code: int
) -> None:
    """Also a worker in the middle of a block; Ctrl-C and hang-ups, which the terminal sends to all, say one word."""
    (tmp_path / "out").mkdir()
    with running(block_tasks.__file__, tmp_path / "work", tmp_path / "out", COUNT) as process:
        wait(lambda: all_but_the_last(tmp_path / "out"))
        workers = psutil.Process(process.pid).children(recursive=True)
        assert int(begun(tmp_path / "out", COUNT - 1)[0]) in {worker.pid for worker in workers}
        stop(process.pid)
        out, err = process.communicate(timeout=SOON_S)
        assert psutil.wait_procs(workers, timeout=SOON_S)[1] == []
    assert process.returncode == code
    if code > 0:
        assert (out, err) == ("interrupted\n", "")
    assert_resumes(tmp_path)


@pytest.mark.alone
def test_on_cluster__scheduler_is_killed__says_so_and_the_next_run_resumes(tmp_path: Path) -> None:
    """One message, no traceback; with a new scheduler the same command goes on."""
    (tmp_path / "out").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    command = [block_tasks.__file__, tmp_path / "work", tmp_path / "out", COUNT, address]
    with running_cluster(port) as scheduler, running(*command) as process:
        wait(lambda: all_but_the_last(tmp_path / "out"))
        scheduler.kill()
        out, err = process.communicate(timeout=SOON_S)
    assert out.startswith(f"the scheduler at {address} is gone\n  Finished blocks are kept: ")
    assert (process.returncode, err) == (1, "")
    with running_cluster(port):
        assert_resumes(tmp_path, address)
