"""The engines with real worker processes: what is killed is done again, and results are as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import block_tasks
import pytest
from block_tasks import MANIFEST, Square

import coarse2fine
from coarse2fine.errors import C2FError, ConfigError, OutputError
from coarse2fine.large.execution import connection
from coarse2fine.large.execution.engine import Engine, Failure, Key, in_process, on_cluster, run_phase
from coarse2fine.large.execution.work import WorkFolder, open_work
from coarse2fine.system.timing import Run

psutil = pytest.importorskip("psutil", reason="comes with Dask")
distributed = pytest.importorskip("distributed", reason="the extra coarse2fine[cluster] is not installed")
ClosedClientError = distributed.client.ClosedClientError

COUNT = 12
KEYS = [(number,) for number in range(COUNT)]
FILES = {f"{number}.txt": str(number**2) for number in range(COUNT)}
SOON_S = 120.0  # how long to wait for what takes a second on an idle machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[Engine]:
    """Two workers that see one GPU each, of the three that this process would have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7,9")
        patch.setenv("OMP_NUM_THREADS", "3")
        with on_cluster(workers=2, gpus=3) as engine:
            yield engine


@pytest.fixture(params=["in_process", "on_cluster"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Both engines."""
    return in_process() if request.param == "in_process" else request.getfixturevalue("cluster")


@pytest.fixture
def work(tmp_path: Path) -> Iterator[WorkFolder]:
    """A work folder, beside the folder for results."""
    (tmp_path / "out").mkdir()
    with open_work(tmp_path / "work", MANIFEST) as work:
        yield work


def silent(done: int, total: int) -> None:
    """No progress."""


def results(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in out.glob("*.txt")}


def begun(out: Path, number: int) -> list[str]:
    """The processes that began a block."""
    path = out / f"{number}.begun"
    return path.read_text().split() if path.exists() else []


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# --- phases ----------------------------------------------------------------------------------------------------------


def test_run_phase__some_blocks_done__does_the_rest(tmp_path: Path, engine: Engine, work: WorkFolder) -> None:
    """Payloads of all blocks come back in order, progress starts with what is done, and all is marked."""
    work.mark("square", (2,), {"square": 4})
    work.mark("square", (99,), {"square": 9801})  # no longer one of them
    seen: list[tuple[int, int]] = []
    payloads, failures = run_phase(
        engine, work, "square", Square(tmp_path / "out"), KEYS, progress=lambda *now: seen.append(now)
    )
    assert failures == []
    assert list(payloads) == KEYS
    assert [payload["square"] for payload in payloads.values()] == [number**2 for number in range(COUNT)]
    assert seen == [(done, COUNT) for done in range(1, COUNT + 1)]
    assert results(tmp_path / "out") == {name: text for name, text in FILES.items() if name != "2.txt"}
    assert {key: work.finished("square")[key] for key in KEYS} == payloads

    again, _ = run_phase(engine, work, "square", Square(tmp_path / "out"), KEYS, progress=silent)
    assert again == payloads
    assert len(begun(tmp_path / "out", 3)) == 1


def test_run_phase__a_block_always_fails__is_reported_and_the_rest_goes_on(
    tmp_path: Path, engine: Engine, work: WorkFolder
) -> None:
    """It is tried as often as asked for; the failure says where and why, with the place in the code."""
    payloads, failures = run_phase(
        engine, work, "square", Square(tmp_path / "out", "fails"), KEYS,
        retries=2, progress=silent, where=lambda key: f"z = {key[0] * 64}",
    )  # fmt: skip
    (failure,) = failures
    assert failure == Failure("square", (3,), "z = 192", 3, failure.message)
    assert failure.message.startswith("ValueError: bad block (block_tasks.py, line ")
    assert list(payloads) == [key for key in KEYS if key != (3,)]
    assert len(begun(tmp_path / "out", 3)) == 3
    assert list(work.finished("square")) == list(payloads)


def test_run__error_meant_for_users__is_told_in_full(tmp_path: Path) -> None:
    """With its remedy, in one line, and without places in the code."""

    def corrupt(key: Key, run: Run) -> Mapping[str, Any]:
        raise C2FError("chunk 3 is damaged", "Copy it again.")

    (failure,) = in_process().run(corrupt, [(3,)], on_done=lambda key, payload: None, retries=0)
    assert failure.message == "chunk 3 is damaged Copy it again."


def test_run_phase__disk_full__stops_at_once(tmp_path: Path, engine: Engine, work: WorkFolder) -> None:
    """The error arrives as it was raised, and hardly any of many blocks is begun after it."""
    many = [(number,) for number in range(200)]
    with pytest.raises(OutputError) as caught:
        run_phase(engine, work, "square", Square(tmp_path / "out", "disk full"), many, progress=silent)
    assert (caught.value.problem, caught.value.remedy) == (
        "cannot write labels: No space left on device",
        "Free some.",
    )
    assert len(list((tmp_path / "out").glob("*.begun"))) < 30
    payloads, _ = run_phase(engine, work, "square", Square(tmp_path / "out"), KEYS, progress=silent)
    assert len(payloads) == COUNT  # the engine goes on working


def test_run_phase__folder_of_another_run__nothing_is_written(tmp_path: Path, engine: Engine, work: WorkFolder) -> None:
    """A worker that a killed run has left behind does not touch the results of the next one."""
    with pytest.raises(OutputError, match="restarted by another run"):
        run_phase(engine, WorkFolder(work.folder, "0"), "square", Square(tmp_path / "out"), KEYS, progress=silent)
    assert list((tmp_path / "out").iterdir()) == []


# --- clusters --------------------------------------------------------------------------------------------------------


def test_on_cluster__gpus_and_threads__each_worker_has_its_own_environment(
    tmp_path: Path, cluster: Engine, work: WorkFolder
) -> None:
    """GPUs by the names that this process has for them, before anything imports PyTorch; also after a restart."""
    environments: dict[int, tuple[str, str, bool]] = {}
    phase = 0

    def both_answer(killed: int = 0) -> bool:
        nonlocal phase
        phase += 1
        payloads, _ = run_phase(cluster, work, f"phase{phase}", Square(tmp_path / "out"), KEYS, progress=silent)
        answers = {p["pid"]: (p["CUDA_VISIBLE_DEVICES"], p["OMP_NUM_THREADS"], p["torch"]) for p in payloads.values()}
        environments.update(answers)
        return len(answers.keys() - {killed}) == 2

    wait(both_answer)
    assert sorted(environments.values()) == [("5", "3", False), ("GPU-7", "3", False)]
    killed = min(environments)
    os.kill(killed, signal.SIGKILL)
    wait(lambda: both_answer(killed))
    del environments[killed]
    assert sorted(environments.values()) == [("5", "3", False), ("GPU-7", "3", False)]


def listening() -> set[tuple[str, int]]:
    """Addresses at which this process and its children take connections."""
    this = psutil.Process()
    ports = [port for process in (this, *this.children()) for port in process.net_connections("tcp")]
    return {tuple(port.laddr) for port in ports if port.status == psutil.CONN_LISTEN}


def test_on_cluster__workers_on_this_machine__nobody_else_can_give_them_work_or_look_at_it(cluster: Engine) -> None:
    """No other machine reaches them; on this one they ask for a certificate, and serve no page."""
    assert {address for address, _ in listening()} == {"127.0.0.1"}
    assert cluster.dashboard is None
    answers = []
    for address in listening():
        with socket.create_connection(address, timeout=10) as plain:
            plain.sendall(b"GET /status HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                answers.append(plain.recv(12))
    assert [answer for answer in answers if answer not in (b"", b"HTTP/1.1 404")] == []
    scheduler = cluster._connection.client.scheduler.address  # type: ignore[attr-defined]
    assert scheduler.startswith("tls://127.0.0.1:")
    # A stranger has a certificate, but not ours.
    with pytest.raises(OSError, match=r"(?i)timed out|tls|ssl|certificate|refused|closed"):
        distributed.Client(
            scheduler, security=distributed.security.Security.temporary(), timeout=2, set_as_default=False
        )


def test_on_cluster__scratch_folder__is_not_one_that_others_could_take_first(cluster: Engine) -> None:
    """Dask puts it onto the path from which Python imports."""
    folders = [Path(nanny.local_directory) for nanny in cluster._connection.nannies]  # type: ignore[attr-defined]
    (top,) = {parent for folder in folders for parent in folder.parents if parent.name.startswith("c2f-dask-")}
    assert top.stat().st_mode & 0o777 == 0o700


def test_on_cluster__many_blocks__two_per_worker_are_in_flight(
    tmp_path: Path, cluster: Engine, work: WorkFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million blocks would be too much for the scheduler."""
    submitted, most, submit = 0, 0, distributed.Client.submit

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal submitted
        submitted += 1
        return submit(self, *args, **options)

    def progress(done: int, total: int) -> None:
        nonlocal most
        most = max(most, submitted - done)

    monkeypatch.setattr(distributed.Client, "submit", counting)
    keys = [(number,) for number in range(60)]
    run_phase(cluster, work, "square", Square(tmp_path / "out"), keys, progress=progress)
    assert submitted == 60
    assert most <= 4


def test_on_cluster__a_worker_is_bad__its_block_is_tried_on_another(
    tmp_path: Path, cluster: Engine, work: WorkFolder
) -> None:
    """A full GPU or a broken mount concerns one machine."""
    _, failures = run_phase(
        cluster, work, "square", Square(tmp_path / "out", "fails on the first worker"), KEYS, retries=1, progress=silent
    )
    assert failures == []
    assert len(set(begun(tmp_path / "out", 3))) == 2
    assert results(tmp_path / "out") == FILES


def test_on_cluster__a_worker_is_killed__its_block_is_done_again(
    tmp_path: Path, cluster: Engine, work: WorkFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    """Kill -9 in the middle of a block costs no attempt, and nobody gets to read about it."""
    capfd.readouterr()
    _, failures = run_phase(
        cluster, work, "square", Square(tmp_path / "out", "killed once"), KEYS, retries=0, progress=silent
    )
    assert failures == []
    assert len(begun(tmp_path / "out", 3)) == 2
    assert results(tmp_path / "out") == FILES
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
def test_on_cluster__workers_die_with_results_that_nobody_has__blocks_are_done_again(
    tmp_path: Path, cluster: Engine, work: WorkFolder
) -> None:
    """A result lies with its worker until it is fetched; if both are gone by then, that is no end of the scheduler."""
    out, killed = tmp_path / "out", []

    def kill_workers(done: int, total: int) -> None:
        if done == 1:
            wait(lambda: len(results(out)) > 1)
            time.sleep(0.5)  # until the scheduler has heard of it
            killed.extend({pid for number in range(len(KEYS)) for pid in begun(out, number)})
            for pid in killed:
                os.kill(int(pid), signal.SIGKILL)

    _, failures = run_phase(cluster, work, "square", Square(out), KEYS, retries=0, progress=kill_workers)
    assert failures == []
    assert killed
    assert results(out) == FILES


@pytest.mark.long
def test_on_cluster__a_block_kills_its_worker__only_that_block_fails(
    tmp_path: Path, work: WorkFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a single worker all others wait behind it, and are none the worse; the worker is started again."""
    capfd.readouterr()
    with on_cluster(workers=1) as engine:
        payloads, failures = run_phase(
            engine, work, "square", Square(tmp_path / "out", "killed"), KEYS, retries=1, progress=silent
        )
    assert capfd.readouterr() == ("", "")
    (failure,) = failures
    assert (failure.key, failure.attempts) == ((3,), 2)
    assert "killed" in failure.message
    assert len(begun(tmp_path / "out", 3)) == 3  # once among others, which proves nothing, and twice alone
    assert len(payloads) == COUNT - 1


@pytest.mark.parametrize("error", [OSError("closed"), CancelledError(), ClosedClientError("closed")])
@pytest.mark.parametrize("name", ["Client.submit", "Future.result", "Client.nthreads"])
def test_on_cluster__connection_lost_at_any_moment__says_so(
    work: WorkFolder, tmp_path: Path, cluster: Engine, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    """Whatever Dask raises then, and wherever; what a task raises is something else."""

    def lost(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(f"distributed.{name}", lost)
    with pytest.raises(C2FError, match="the scheduler on this machine is gone\n  Finished blocks are kept"):
        run_phase(cluster, work, "square", Square(tmp_path / "out"), KEYS, progress=silent)


def test_on_cluster__workers_lack_the_code__says_so(
    work: WorkFolder, cluster: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same versions are needed everywhere; no block is blamed for that."""
    module = ModuleType("only_here")
    exec("def task(key, run): return {}", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(C2FError, match=r"cannot run the blocks: ModuleNotFoundError: No module named 'only_here'\n"):
        run_phase(cluster, work, "square", module.task, KEYS, progress=silent)


def test_on_cluster__wrong_arguments__are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started."""
    for options in ({}, {"workers": 1, "scheduler": "tcp://a:1"}):
        with pytest.raises(ConfigError, match="--workers N or --scheduler"):
            on_cluster(**options)
    for options in ({"workers": 0}, {"workers": 1, "threads_per_worker": 0}, {"workers": 1, "gpus": -1}):
        with pytest.raises(ConfigError):
            on_cluster(**options)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError) as caught:
        on_cluster(workers=1)
    needed = [name for name in metadata.requires("coarse2fine") or () if re.search("extra == .cluster.", name)]
    named = caught.value.remedy.removeprefix("Install what workers need: pip install ").split()
    assert sorted(named) == sorted(re.split(r"[<>=;]", name)[0] for name in needed)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://a", "127.0.0.1:x"])
def test_on_cluster__no_scheduler_there__names_the_address(
    address: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one message, without Dask's own."""
    monkeypatch.setattr(connection, "_CONNECT_S", 0.3)
    with pytest.raises(C2FError, match=f"no Dask scheduler answers at '{address}'"), on_cluster(scheduler=address):
        pass
    assert capfd.readouterr() == ("", "")


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


@pytest.mark.long
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


@pytest.mark.long
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
