"""The engines with real worker processes: what is killed is done again, and results are as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from block_runs import COUNT, FILES, KEYS, begun, results, silent, wait
from block_tasks import MANIFEST, Square

from coarse2fine.errors import C2FError, ConfigError, OutputError
from coarse2fine.large.execution import connection
from coarse2fine.large.execution.engine import Engine, Failure, Key, in_process, on_cluster, run_phase
from coarse2fine.large.execution.work import WorkFolder, open_work
from coarse2fine.system.timing import Run

psutil = pytest.importorskip("psutil", reason="comes with Dask")
distributed = pytest.importorskip("distributed", reason="the extra coarse2fine[cluster] is not installed")
ClosedClientError = distributed.client.ClosedClientError


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


@pytest.mark.alone
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


@pytest.mark.alone
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


@pytest.mark.alone
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


@pytest.mark.alone
def test_on_cluster__a_block_takes_too_long__is_given_up_and_the_rest_goes_on(tmp_path: Path, work: WorkFolder) -> None:
    """It has its time twice, the second time alone; the process that hung is gone, and others are none the worse."""
    with on_cluster(workers=2, block_timeout_s=2.5) as engine:
        payloads, failures = run_phase(
            engine, work, "square", Square(tmp_path / "out", "waits"), KEYS, retries=2, progress=silent
        )
        pids = [int(pid) for pid in begun(tmp_path / "out", 3)]
        assert not any(psutil.pid_exists(pid) for pid in pids)
    (failure,) = failures
    assert (failure.key, failure.attempts, failure.message) == ((3,), 2, "took longer than 2.5 s (--block-timeout)")
    assert len(pids) == 2
    assert len(payloads) == COUNT - 1
    assert (3,) not in work.finished("square")


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
    monkeypatch.undo()
    run_phase(cluster, work, "square", Square(tmp_path / "out"), KEYS, progress=silent)
    assert results(tmp_path / "out") == FILES


@pytest.mark.alone
def test_on_cluster__all_workers_have_died__another_run_does_the_rest(
    tmp_path: Path, cluster: Engine, work: WorkFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message tells to run the same command again."""
    dead = SimpleNamespace(status=distributed.core.Status.failed)
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_connection", replace(cluster._connection, nannies=(dead,)))  # type: ignore
        with pytest.raises(C2FError, match="all worker processes have died") as caught:
            run_phase(cluster, work, "square", Square(tmp_path / "out"), KEYS, progress=silent)
    assert caught.value.remedy.startswith("Finished blocks are kept: run the same command again")
    run_phase(cluster, work, "square", Square(tmp_path / "out"), KEYS, progress=silent)
    assert results(tmp_path / "out") == FILES


def test_on_cluster__workers_lack_the_code__says_so(
    work: WorkFolder, cluster: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same versions are needed everywhere; no block is blamed for that, and with the code there it is done."""
    module = ModuleType("only_here")
    exec(code := "def task(key, run): return {}", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(
        C2FError, match=r"cannot run the blocks: ModuleNotFoundError: No module named 'only_here'\n  Start scheduler"
    ):
        run_phase(cluster, work, "square", module.task, KEYS, progress=silent)
    (tmp_path / "only_here.py").write_text(code)
    client = cluster._connection.client  # type: ignore[attr-defined]
    client.run(lambda folder: __import__("sys").path.append(folder), str(tmp_path))
    assert run_phase(cluster, work, "square", module.task, KEYS, progress=silent)[1] == []


@pytest.mark.alone
def test_on_cluster__too_many_workers__fewer_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may have no room for so many processes; the message tells to use fewer."""
    original = distributed.SpecCluster

    def start(workers: dict[int, Any], **options: Any) -> Any:
        if len(workers) > 1:
            raise OSError("Resource temporarily unavailable")
        return original(workers=workers, **options)

    monkeypatch.setattr(distributed, "SpecCluster", start)
    with pytest.raises(C2FError, match="cannot start 2 worker processes: Resource") as caught, on_cluster(workers=2):
        pass
    assert caught.value.remedy == "Use fewer workers (--workers)."
    with on_cluster(workers=1):
        pass


def test_on_cluster__wrong_arguments__are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started."""
    for options in ({}, {"workers": 1, "scheduler": "tcp://a:1"}):
        with pytest.raises(ConfigError, match="--workers N or --scheduler"):
            on_cluster(**options)
    for options in ({"workers": 0}, {"workers": 1, "threads_per_worker": 0}, {"workers": 1, "gpus": -1}):
        with pytest.raises(ConfigError):
            on_cluster(**options)
    for options in ({"workers": 1}, {"scheduler": "tcp://a:1"}, {"workers": 1, "threads_per_worker": 1, "gpus": 0}):
        on_cluster(**options)  # as the messages say; nothing is started yet
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


@contextlib.contextmanager
def service(greeting: bytes) -> Iterator[str]:
    """What takes connections, says something of its own or nothing, and never answers; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(server.accept)
        accepted.add_done_callback(lambda future: future.result()[0].sendall(greeting))
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        accepted.result()[0].close()


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.0 400 Bad Request\r\n\r\n"])
def test_on_cluster__another_service_there__is_told_in_time(greeting: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's client would wait for ever for one that is silent."""
    monkeypatch.setattr(connection, "_CONNECT_S", 0.3)
    with service(greeting) as address, pytest.raises(C2FError, match="no Dask scheduler answers"):
        on_cluster(scheduler=address).__enter__()


@pytest.mark.alone
def test_on_cluster__address_of_no_scheduler__one_that_runs_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reached by an address of the form that the message shows."""
    monkeypatch.setattr(connection, "_CONNECT_S", 0.3)
    with pytest.raises(C2FError, match="no Dask scheduler answers") as caught, on_cluster(scheduler="127.0.0.1:1"):
        pass
    form = re.search(r"addresses look like (\S+)HOST:\d+\.", caught.value.remedy)
    assert form
    monkeypatch.undo()
    options: dict[str, Any] = {
        "n_workers": 0,
        "processes": False,
        "dashboard_address": "127.0.0.1:0",
        "protocol": "tcp",
    }
    with distributed.LocalCluster(**options, host="127.0.0.1") as there:
        assert there.scheduler_address.startswith(form[1])
        with on_cluster(scheduler=there.scheduler_address) as engine:
            assert engine.dashboard
