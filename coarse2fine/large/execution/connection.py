"""Dask clusters: joining one that runs, and starting one on this machine whose processes never outlive this one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

from coarse2fine.errors import C2FError
from coarse2fine.system.signals import SIGHUP, put_off

if TYPE_CHECKING:
    from distributed import Client, Nanny, SpecCluster

_CONNECT_S = 10.0  # for the scheduler to answer
_CLOSE_S = 10.0  # for a connection to be closed
_QUIET = logging.CRITICAL + 1
_LOGGERS = ("distributed", "tornado", "asyncio", "bokeh")
_HOST = "127.0.0.1"
_DASHBOARD = f"{_HOST}:8787"  # Dask's usual port, but for this machine only: it has no password
_NO_PAGES = f"{_HOST}:0"  # Dask always listens for its pages, but then there are none
_HELD = {signal.SIGINT, *((SIGHUP,) if SIGHUP else ())}


@dataclass(frozen=True, slots=True)
class Connection:
    """A running cluster.

    Attributes:
        client: Dask's client.
        nannies: The watchmen of workers that were started here; empty if others started them.
        dashboard: Address of its page.
    """

    client: Client
    nannies: Sequence[Nanny]
    dashboard: str | None


def join_cluster(stack: ExitStack, address: str) -> Connection:
    """Connects to a scheduler that others started."""
    from distributed import Client

    stack.enter_context(_quiet())
    try:
        with ThreadPoolExecutor(1) as pool:  # there may be an event loop in this thread already
            pool.submit(asyncio.run, _greet(address)).result()
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except Exception as error:  # what is no scheduler may answer anything
        raise C2FError(
            f"no Dask scheduler answers at {address!r} ({error or type(error).__name__})",
            "Check that it runs and can be reached from here; addresses look like tcp://HOST:8786.",
        ) from error
    stack.callback(_close_client, client)
    return Connection(client, (), client.dashboard_link or None)


async def _greet(address: str) -> None:
    """Connects, and waits no longer than a while for an answer, as Dask's own client would."""
    from distributed.comm import connect
    from distributed.security import Security

    options = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=_CONNECT_S, **options), _CONNECT_S)
    await comm.close()


@dataclass(frozen=True, slots=True)
class Local:
    """Worker processes on this machine; arguments as of ``on_cluster``."""

    threads: int
    gpus: int
    memory_limit: int | str
    dashboard: bool

    def start(self, stack: ExitStack, count: int) -> Connection:
        """Starts a scheduler within this process, and workers in processes of their own.

        Who can talk to them can have them run anything. So they talk over TLS, with credentials that only live in
        their memory.
        """
        from distributed import Client, Nanny, Scheduler, SpecCluster
        from distributed.security import Security

        stack.enter_context(_quiet())
        self._configure(stack)
        security = Security.temporary()
        common = {"host": _HOST, "protocol": "tls://", "security": security}
        scheduler = {
            **common,
            "dashboard": self.dashboard,
            "dashboard_address": _DASHBOARD if self.dashboard else _NO_PAGES,
            "allowed_failures": 0,  # who was killed is tried again by us, alone
        }
        worker = {
            **common,
            "dashboard": False,
            "dashboard_address": _NO_PAGES,
            "nthreads": self.threads,
            "memory_limit": self.memory_limit,
            "silence_logs": _QUIET,
        }
        devices = _devices(self.gpus)
        workers = {
            index: {"cls": Nanny, "options": {**worker, "env": _pinned(devices, index)}} for index in range(count)
        }
        try:
            with _interrupts_held(), warnings.catch_warnings(action="ignore"):  # such as for a port that is taken
                cluster = SpecCluster(
                    workers=workers, scheduler={"cls": Scheduler, "options": scheduler}, security=security
                )
                stack.callback(_stop, cluster)
                client = Client(cluster, timeout=_CONNECT_S, set_as_default=False)
                stack.callback(_close_client, client)
        except (OSError, RuntimeError) as error:
            raise C2FError(
                f"cannot start {count} worker processes: {error}", "Use fewer workers (--workers)."
            ) from error
        link = cluster.dashboard_link if self.dashboard else None
        return Connection(client, tuple(cluster.workers.values()), link or None)

    def _configure(self, stack: ExitStack) -> None:
        """Dask's own settings, which scheduler and workers take over when they start."""
        import dask

        # Dask imports from its folder, which otherwise has a name in /tmp that anybody can take first.
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="c2f-dask-", ignore_cleanup_errors=True))
        hidden = () if self.dashboard else ("scheduler", "worker")
        pages: dict[str, list[str]] = {f"distributed.{role}.http.routes": [] for role in hidden}
        settings = {
            **pages,
            "temporary-directory": scratch,
            "distributed.scheduler.worker-ttl": None,  # a block may hold Python's lock for long; death is seen
            "distributed.deploy.lost-worker-timeout": "1 hour",  # importing all again may take its time
            # Workers compute in a thread, whose own heap glibc gives back and clears again after every layer.
            "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
        }
        stack.enter_context(dask.config.set(settings))


def _devices(count: int) -> list[str]:
    """What CUDA calls the GPUs that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else []
    return names[:count] if len(names) >= count else [str(index) for index in range(count)]


def _pinned(devices: Sequence[str], index: int) -> dict[str, str]:
    """The environment of a worker. CUDA reads it once per process, when the first GPU is used."""
    return {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} if devices else {}


def _stop(cluster: SpecCluster) -> None:
    """Ends the workers, whatever they are doing, and the scheduler.

    Workers are not asked: a busy one would not listen, one that is just starting answers with a traceback, and none
    holds anything that is not written yet.
    """

    async def kill() -> None:
        for nanny in cluster.workers.values():
            nanny.close_gracefully()  # or it would start another one
            if nanny.pid is not None:
                os.kill(nanny.pid, signal.SIGKILL)
        await asyncio.gather(*(nanny.close() for nanny in cluster.workers.values()))

    with suppress(Exception):  # they die with this process at the latest
        cluster.sync(kill)
    with suppress(Exception):
        cluster.close(timeout=_CLOSE_S)


def _close_client(client: Client) -> None:
    with suppress(Exception):
        client.close(timeout=_CLOSE_S)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C, a hang-up and SIGTERM back until all that is started meanwhile can be stopped.

    The terminal sends the first two to all its processes, but only this one is meant, which stops the others itself:
    threads and processes that are started meanwhile never see them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    resource_tracker.ensure_running()  # a process, too: it must not die of a hang-up before the others are stopped
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # starting it has let Ctrl-C through again
    try:
        with put_off(signal.SIGTERM):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Dask's log off the terminal: losing a worker is our message to give."""
    names = [
        name
        for name in logging.root.manager.loggerDict
        if name in _LOGGERS or name.startswith(tuple(f"{top}." for top in _LOGGERS))
    ]
    loggers = [logging.getLogger(name) for name in {*_LOGGERS, *names}]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(_QUIET)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
