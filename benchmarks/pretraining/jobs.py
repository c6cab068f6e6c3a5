"""A study's seeds in processes of their own, several at once; nothing that is random depends on how many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks.pretraining.rows import Row
from benchmarks.pretraining.studies import Setup, find
from coarse2fine.errors import C2FError
from coarse2fine.system.memory import keep_freed_memory


def spread(name: str, setup: Setup, jobs: int) -> Iterator[Sequence[Row]]:
    """What the study gives, in the order in which it comes; the processes end when this does.

    Args:
        name: Of the study.
        setup: All seeds; those of one are trained one after the other, since they share what was pretrained.
        jobs: Processes at once.

    Raises:
        C2FError: If a seed's process does, or is ended from outside.
    """
    context, seeds = get_context("spawn"), list(setup.seeds)
    running: dict[Any, Any] = {}
    try:
        while seeds or running:
            while seeds and len(running) < jobs:
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_train, args=(name, setup.of(seeds.pop(0)), sender), daemon=True)
                process.start()
                sender.close()  # the process has the only one, so that its end is seen
                running[receiver] = process
            ready: list[Any] = wait(list(running))
            for rows in ready:
                try:
                    found = rows.recv()
                except EOFError:
                    process = running.pop(rows)
                    process.join()
                    if process.exitcode:
                        raise _ended(name, process.exitcode) from None
                    continue
                if isinstance(found, C2FError):
                    raise found
                yield found
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _train(name: str, setup: Setup, rows: Connection) -> None:
    """One process: a study, with rows or an error sent as they come."""
    keep_freed_memory()
    try:
        for found in find(name).study(setup):
            rows.send(found)
    except C2FError as error:
        rows.send(error)


def _ended(name: str, code: int) -> C2FError:
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return C2FError(f"a process of {name} ended {how}", "Use fewer --jobs if memory is short; rows so far are kept.")
