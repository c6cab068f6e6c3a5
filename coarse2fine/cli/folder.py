"""The cases of a command, one after the other or on several devices; one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from coarse2fine.cli.cases import Job, Read, Work, print_report, segment_case, show_progress, tell_warnings
from coarse2fine.cli.devices import Failure, Outcome, on_devices
from coarse2fine.cli.guard import fail, told
from coarse2fine.errors import C2FError
from coarse2fine.io import Volume
from coarse2fine.pipeline import Pipeline
from coarse2fine.report import RunReport
from coarse2fine.system.memory import available_bytes
from coarse2fine.system.terminal import plain

SMALLER = "crop the volume, or convert it to a store, such as OME-Zarr, which is read by region"
"""What makes a run take less memory."""
ROOM = 4
"""The next volume is read ahead if memory has room for so many like the one in work."""


def segment_cases(
    jobs: Sequence[Job],
    work: Work,
    pipeline: Pipeline,
    console: Console,
    write_about: Callable[[list[RunReport], dict[str, str]], None],
    *,
    again: str,
    devices: Sequence[str] = (),
    bars: Console | None = None,
    verbose: bool = False,
) -> None:
    """Segment cases; of several, one that fails does not stop the others.

    Args:
        jobs: The cases.
        work: How each is done.
        pipeline: From ``work``; does it unless there are several devices.
        console: Where warnings, failures and, of several cases, a summary are told.
        write_about: Writes down what there is to say of those that succeeded, and why others failed, by name.
        again: What to do after some have failed.
        devices: Of several, each takes the next case as soon as it has none, in a process of its own.
        bars: Where progress is shown, instead of the console.
        verbose: Whether what happened to every case is told.

    Raises:
        C2FError: If the only case fails, or at the end if any did.
    """
    reports: dict[str, RunReport] = {}
    failed: dict[str, str] = {}
    several = len(devices) > 1
    outcomes = on_devices(jobs, work, devices) if several else _one_by_one(jobs, work, pipeline, bars or console)
    try:
        for done, (job, outcome) in enumerate(outcomes, 1):
            name = job.case.name
            if isinstance(outcome, Failure):
                if len(jobs) == 1:
                    raise C2FError(outcome.problem, outcome.remedy)
                failed[name] = outcome.problem
                fail(console, f"{name}: {C2FError(outcome.problem, outcome.remedy)}")
                continue
            reports[name] = outcome
            tell_warnings(outcome, console)
            if verbose:
                print_report(outcome, job.labels, console)
            elif several:
                console.print(plain(f"{done}/{len(jobs)} {name}: {outcome.timing_s.total:.1f} s on {outcome.device}"))
    finally:  # what is finished is reported, also when the run is interrupted
        ordered = [reports[job.case.name] for job in jobs if job.case.name in reports]
        if ordered or failed:
            write_about(ordered, failed)
    if len(jobs) > 1:
        console.print(summary([job.case.name for job in jobs], reports, failed))
    if failed:
        raise C2FError(f"{len(failed)} of {len(jobs)} cases failed: {', '.join(map(plain, failed))}", again)


def _one_by_one(jobs: Sequence[Job], work: Work, pipeline: Pipeline, bars: Console) -> Iterator[tuple[Job, Outcome]]:
    """In this process; while one case is in work, the next one is read."""
    with ExitStack() as stack:
        read = None
        if len(jobs) > 1 and work.config.deadline is None:  # under a deadline reading counts, and nothing may disturb
            read = stack.enter_context(read_ahead(pipeline, jobs))
        for number, job in enumerate(jobs, 1):
            try:
                with show_progress(bars, f"{number}/{len(jobs)} {job.case.name}") as progress:
                    report = segment_case(pipeline, job, work, progress, read)
            except Exception as error:
                known = told(error, SMALLER)
                if known is None:
                    raise
                yield job, Failure(known.problem, known.remedy)
            else:
                yield job, report


@contextmanager
def read_ahead(pipeline: Pipeline, jobs: Sequence[Job]) -> Iterator[Read]:
    """A reader of the jobs' images, which reads the next one's in a thread as soon as it has handed out one's.

    Where memory has no room for that, it waits until it is asked.

    Args:
        pipeline: Reads.
        jobs: In the order in which they will be asked for.
    """
    following = {job.case.files: after.case.files for job, after in pairwise(jobs)}
    pending: dict[Sequence[Path], Future[Volume[NDArray[Any]]]] = {}
    with ThreadPoolExecutor(1, "read ahead") as thread:

        def read(files: Sequence[Path]) -> Volume[NDArray[Any]]:
            ahead = pending.pop(tuple(files), None)
            volume = pipeline.read(files) if ahead is None else ahead.result()
            after = following.get(tuple(files))
            if after and ROOM * sum(channel.nbytes for channel in volume.channels) < available_bytes():
                pending[after] = thread.submit(pipeline.read, after)
            return volume

        yield read


def summary(names: Sequence[str], reports: dict[str, RunReport], failed: dict[str, str]) -> Table:
    """What came of the cases of a folder, a line each, and of all together.

    Args:
        names: Of the cases, in order.
        reports: Of those that succeeded.
        failed: Why the others did not.
    """
    table = Table(box=None, title="", title_justify="left", pad_edge=False)
    for column, side in (("case", "left"), ("seconds", "right"), ("looked at", "right"), ("voxels", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    table.add_column("remarks")
    for name in names:
        report = reports.get(name)
        if report is None:
            table.add_row(plain(name), "", "", "", plain(f"failed: {failed[name]}") if name in failed else "not done")
            continue
        found = ", ".join(f"{label}: {count}" for label, count in report.labels.items()) or "none"
        remarks = f"{len(report.warnings)} warning(s)" if report.warnings else ""
        seconds, share = f"{report.timing_s.total:.1f}", f"{report.coverage.volume:.1%}"
        table.add_row(plain(name), seconds, share, found, remarks)
    total = sum(report.timing_s.total for report in reports.values())
    table.add_section()
    table.add_row(f"{len(reports)} of {len(names)}", f"{total:.1f}", "", "", f"{len(failed)} failed" if failed else "")
    return table
