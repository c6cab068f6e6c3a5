"""The engine on a Dask cluster: what is lost on the way is done again."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Self

from coarse2fine.errors import C2FError, ConfigError, OutputError
from coarse2fine.large.execution.connection import Connection, Local, join_cluster
from coarse2fine.large.execution.tasks import Engine, Failure, OnDone, Outcome, Task, attempt
from coarse2fine.large.execution.work import Key
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.system.signals import undisturbed

if TYPE_CHECKING:
    from distributed import Future

_IN_FLIGHT = 2  # tasks per worker thread: one that runs and one that waits behind it
_POLL_S = 1.0  # how often to look for new workers and lost connections while no block ends
_TOO_LATE = 75  # exit code of a worker whose block took too long: EX_TEMPFAIL
_COUNT_S = 5.0  # how often to ask the scheduler for the number of workers


def on_cluster(
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    threads_per_worker: int = 1,
    gpus: int = 0,
    memory_limit: int | str = 0,
    dashboard: bool = False,
    block_timeout_s: float | None = None,
) -> Engine:
    """Blocks side by side on a Dask cluster: worker processes on this machine, or a cluster that runs already.

    Processes on this machine are started again when they die, and die with this process. A script that starts them
    needs Python's usual ``if __name__ == "__main__":``.

    Args:
        workers: How many processes to start on this machine.
        scheduler: Address of a running scheduler, such as ``tcp://host:8786``, instead.
        threads_per_worker: Blocks that each process started here does at a time.
        gpus: How many GPUs this process sees: worker i gets number i modulo ``gpus`` and sees no other. 0 leaves all
            workers all GPUs. Workers that were started elsewhere keep what they were given there.
        memory_limit: Bytes (or text such as ``8GiB``) at which Dask kills a process started here; 0 for never.
        dashboard: Whether processes started here serve Dask's page, to everybody on this machine: it has no password.
        block_timeout_s: How long a block may take. Whoever does a longer one ends its process, which cannot hang
            then, nor write anything late; the worker's watchman (Dask's nanny) starts another. None for any time.

    Raises:
        ConfigError: If not just one of ``workers`` and ``scheduler`` is given, a number is out of range, or Dask's
            distributed scheduler is not installed.
    """
    if (workers is None) == (scheduler is None):
        raise ConfigError(
            "a cluster has either workers on this machine or a scheduler's address",
            "Use --workers N or --scheduler ADDRESS.",
        )
    if workers is not None and workers < 1:
        raise ConfigError(f"workers: {workers}, but at least one is needed", "Use --workers N with N from 1.")
    if threads_per_worker < 1 or gpus < 0:
        raise ConfigError(
            f"threads_per_worker: {threads_per_worker}, gpus: {gpus}", "Use at least one thread and no negative number."
        )
    try:
        import distributed  # noqa: F401  # an extra, and slow to import

        if workers:
            import cryptography  # noqa: F401  # its credentials
    except ImportError as error:
        raise ConfigError(
            f"running on a cluster needs Dask's distributed scheduler ({error})",
            "Install what workers need: pip install distributed bokeh cryptography",
        ) from error
    if scheduler is not None:
        return _Cluster(f"at {scheduler}", lambda stack: join_cluster(stack, scheduler), block_timeout_s)
    count, local = workers or 1, Local(threads_per_worker, gpus, memory_limit, dashboard)
    return _Cluster("on this machine", lambda stack: local.start(stack, count), block_timeout_s)


class _Cluster:
    """The engine on a Dask cluster.

    Args:
        name: Where the scheduler is, in messages.
        connect: Starts or joins the cluster; registers on the stack what has to be undone.
        block_timeout_s: How long a block may take; None for any time.
    """

    def __init__(
        self, name: str, connect: Callable[[ExitStack], Connection], block_timeout_s: float | None = None
    ) -> None:
        self.name = name
        self.block_timeout_s = block_timeout_s
        self._connect = connect
        self._stack = ExitStack()
        self._connection: Connection | None = None

    @property
    def dashboard(self) -> str | None:
        return self._connection.dashboard if self._connection else None

    def __enter__(self) -> Self:
        try:
            self._connection = self._connect(self._stack)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        """Stops all that was started, and removes its files; a second Ctrl-C has to wait."""
        self._connection = None
        with undisturbed():
            self._stack.close()

    def run(self, task: Task, keys: Sequence[Key], *, on_done: OnDone, retries: int) -> list[Failure]:
        if self._connection is None:
            raise RuntimeError("a cluster is used as a context manager: with on_cluster(...) as engine")
        return _BlockQueue(self._connection, self.name, task, keys, on_done, retries, self.block_timeout_s).run()


class _BlockQueue:
    """One call of ``run``: which blocks wait, are in flight, or have failed.

    A block whose worker was killed is a suspect, but so is the one that waited behind it. Suspects are tried again
    one at a time when all else is done: alone, a block that needs much memory has the best chance, and one that kills
    its worker cannot take others with it. Only what happens there counts as an attempt.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        task: Task,
        keys: Sequence[Key],
        on_done: OnDone,
        retries: int,
        block_timeout_s: float | None,
    ) -> None:
        from distributed.protocol.pickle import dumps

        self.connection = connection
        self.client = connection.client
        self.name = name
        # As bytes, so that the scheduler need not import what only workers need, such as PyTorch.
        self.task = dumps(task)
        self.on_done = on_done
        self.retries = retries
        self.block_timeout_s = block_timeout_s
        self.submitted = 0.0  # when the last block was
        self.order = {key: index for index, key in enumerate(keys)}
        self.waiting = deque(keys)
        self.suspects: deque[Key] = deque()
        self.flight: dict[Future, Key] = {}
        self.ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.attempts: Counter[Key] = Counter()
        self.failed_on: dict[Key, str] = {}
        self.failures: list[Failure] = []
        self.alone = False
        self.limit = 0
        self.counted = -float("inf")

    def run(self) -> list[Failure]:
        try:
            while self.waiting or self.suspects or self.flight:
                self._fill()
                try:
                    future = self.ended.get(timeout=_POLL_S)
                except queue.Empty:  # new workers may have come meanwhile
                    continue
                key = self.flight.pop(future)
                if self._is_lost(future):
                    self._watch(future, key)
                else:
                    self._end(key, self._fetch(future))
        finally:
            with suppress(Exception):  # also when the scheduler is gone, and the first problem is the one to report
                for future in self.flight:
                    future.release()
        return sorted(self.failures, key=lambda failure: self.order[failure.key])

    def _fill(self) -> None:
        """Submits as much as the workers can take; a million blocks at once would be too much for the scheduler."""
        with self._reachable():
            self._check_workers()
            if self.suspects and not self.flight and not self.waiting:
                self.alone = True
                self._submit(self.suspects.popleft())
            while self.waiting and len(self.flight) < self.limit:
                self.alone = False
                self._submit(self.waiting.popleft())

    def _submit(self, key: Key) -> None:
        others = []
        if key in self.failed_on:
            others = [address for address in self.client.nthreads() if address != self.failed_on[key]]
        future = self.client.submit(
            _attempt_on_worker,
            self.task,
            key,
            self.block_timeout_s,
            key=f"block-{os.urandom(16).hex()}",  # no two attempts may share a result
            workers=others or None,
            allow_other_workers=bool(others),
        )
        self.submitted = time.monotonic()
        self._watch(future, key)

    def _watch(self, future: Future, key: Key) -> None:
        """Tells when an attempt has ended."""
        self.flight[future] = key
        future.add_done_callback(self.ended.put)

    def _is_lost(self, future: Future) -> bool:
        """Whether a result went down with its worker before it was here; Dask is computing it anew."""
        return self.client.status == "running" and future.status in ("lost", "pending")

    def _fetch(self, future: Future) -> Outcome | Exception:
        """How an attempt ended; what the task itself raises is an outcome, so errors are Dask's."""
        with self._reachable():
            if future.status not in ("finished", "error"):
                raise self._gone()
            try:
                outcome: Outcome = future.result()
            except Exception as error:
                if future.status != "error":
                    raise
                return error
            finally:
                future.release()
        return outcome

    def _end(self, key: Key, outcome: Outcome | Exception) -> None:
        """Takes note of how an attempt ended."""
        from distributed import KilledWorker

        if isinstance(outcome, KilledWorker):
            limit = self.block_timeout_s
            if self.alone and limit is not None and time.monotonic() - self.submitted >= limit:
                # It has had its time twice, once alone; a third time would not be shorter.
                self.failures.append(Failure("", key, "", 2, f"took longer than {limit:g} s (--block-timeout)"))
            elif self.alone:
                self._failed(key, "its worker was killed, perhaps for want of memory", self.suspects)
            else:
                self.suspects.append(key)
        elif isinstance(outcome, Exception):
            raise C2FError(
                f"the workers cannot run the blocks: {_root(outcome)}",
                "Start scheduler and workers with the versions of coarse2fine, Python and Dask that this process has.",
            )
        elif outcome.fatal is not None:
            raise OutputError(*outcome.fatal)
        elif outcome.payload is None:
            self.failed_on[key] = outcome.worker
            self._failed(key, outcome.message, self.waiting)
        else:
            self.on_done(key, outcome.payload)

    def _failed(self, key: Key, message: str, again: deque[Key]) -> None:
        """Counts an attempt; the block is tried again later, or given up."""
        self.attempts[key] += 1
        if self.attempts[key] > self.retries:
            self.failures.append(Failure("", key, "", self.attempts[key], message))
        else:
            again.append(key)

    def _check_workers(self) -> None:
        """Sees to it that somebody is there, and how much they can take."""
        from distributed.core import Status

        nannies = self.connection.nannies
        if nannies and all(nanny.status in (Status.closed, Status.failed) for nanny in nannies):
            raise C2FError(
                "all worker processes have died and could not be started again",
                "Finished blocks are kept: run the same command again, with fewer workers if memory is short.",
            )
        if self.client.status != "running":
            raise self._gone()
        if time.monotonic() - self.counted >= _COUNT_S:
            threads = sum(self.client.nthreads().values())
            self.limit = _IN_FLIGHT * max(1, threads)  # a cluster that grows on demand needs some demand
            self.counted = time.monotonic()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        """Turns what Dask raises when the connection is lost into our error."""
        from distributed.client import ClosedClientError

        try:
            yield
        except (OSError, CancelledError, ClosedClientError) as error:
            raise self._gone() from error

    def _gone(self) -> C2FError:
        return C2FError(
            f"the scheduler {self.name} is gone",
            "Finished blocks are kept: once a scheduler runs, run the same command again to resume.",
        )


@lru_cache(maxsize=1)
def _load(pickled: bytes) -> Task:
    """The task of a phase, once per worker."""
    from distributed.protocol.pickle import loads

    task: Task = loads(pickled)
    if "torch" in sys.modules:  # before its first tensor; tasks that compute have imported it by now
        keep_freed_memory(steady=True)
    return task


def _attempt_on_worker(pickled: bytes, key: Key, timeout_s: float | None) -> Outcome:
    """Does a block on a worker of a cluster; ends the process if that takes too long."""
    from distributed import get_worker

    task, address = _load(pickled), get_worker().address
    if timeout_s is None:
        return replace(attempt(task, key), worker=address)
    # What hangs in a system call or in a library hears nothing, and must not write when it comes back after all.
    watch = threading.Timer(timeout_s, os._exit, [_TOO_LATE])
    watch.daemon = True
    watch.start()
    try:
        return replace(attempt(task, key), worker=address)
    finally:
        watch.cancel()


def _root(error: BaseException) -> str:
    """The first error of a chain, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())
