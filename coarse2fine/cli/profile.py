"""Where the time went, as tables: what ``--profile`` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from rich.console import Console
from rich.table import Table

from coarse2fine.report import NetworkTime, RunReport, Timing
from coarse2fine.system.terminal import plain
from coarse2fine.system.timing import Stage


@dataclass(frozen=True, slots=True)
class Spent:
    """The time of one stage.

    Attributes:
        stage: Which; None for what of the total no stage has booked: of a store, what passes between its blocks.
        seconds: That it took.
        share: Of the total, 0 to 1; with several workers stages of a store add up to more than 1.
        network_s: Seconds of these inside network passes.
    """

    stage: Stage | None
    seconds: float
    share: float
    network_s: float


def spent(timing: Timing, network: NetworkTime) -> tuple[Spent, ...]:
    """Where the time of a run went, stage by stage; of stages that took none, nothing.

    Args:
        timing: Of the run, or of several together.
        network: Likewise.
    """
    total, left = timing.total or 1.0, timing.total - sum(timing.stages.values())
    stages = [
        Spent(stage, took, took / total, getattr(network, stage, 0.0))
        for stage, took in timing.stages.items()
        if took > 0
    ]
    return (*stages, Spent(None, left, left / total, 0.0)) if left > 0 else tuple(stages)


def add_up(reports: Sequence[RunReport]) -> tuple[Timing, NetworkTime]:
    """The times of several runs together."""
    timings, networks = [report.timing_s for report in reports], [report.network_s for report in reports]
    return (
        Timing(*(sum(getattr(one, field.name) for one in timings) for field in fields(Timing))),
        NetworkTime(*(sum(getattr(one, field.name) for one in networks) for field in fields(NetworkTime))),
    )


def show_profile(reports: Sequence[RunReport], console: Console) -> None:
    """Print a table for each run, and of several one for all together."""
    for report in reports:
        console.print(_table(report.case, report.timing_s, report.network_s, report.peak_memory_mb))
    if len(reports) > 1:
        console.print(_table(f"{len(reports)} cases", *add_up(reports), highest(reports)))


def highest(reports: Sequence[RunReport]) -> dict[str, float]:
    """The highest of several runs' peaks of memory, of each kind."""
    kinds = dict.fromkeys(kind for report in reports for kind in report.peak_memory_mb)
    return {kind: max(report.peak_memory_mb.get(kind, 0.0) for report in reports) for kind in kinds}


def _table(title: str, timing: Timing, network: NetworkTime, peak_mb: Mapping[str, float]) -> Table:
    table = Table(title=plain(f"{title}: where the time went"), title_justify="left", box=None, pad_edge=False)
    for name in ("stage", "seconds", "share", "in networks"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for one in spent(timing, network):
        passes = f"{one.network_s:.2f}" if one.network_s else ""
        table.add_row(one.stage or "elsewhere", f"{one.seconds:.2f}", f"{one.share:.1%}", passes)
    table.add_section()
    table.add_row("total", f"{timing.total:.2f}", "100.0%", f"{network.total:.2f}")
    if timing.measure:
        table.add_row("measures, afterwards", f"{timing.measure:.2f}")
    for kind, peak in peak_mb.items():
        table.add_row(f"peak memory, {kind}", f"{peak:.0f} MB")
    return table
