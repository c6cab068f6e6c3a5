"""The part of ``c2f-infer`` that segments volumes in stores."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from coarse2fine.cli.bars import show_bars
from coarse2fine.cli.dry_run import dry_run, tell_estimate
from coarse2fine.cli.profile import show_profile
from coarse2fine.config.schema import Config
from coarse2fine.config.types import seconds
from coarse2fine.errors import ConfigError, OutputError
from coarse2fine.io import atomic_write, check_writable
from coarse2fine.io.region import parse_region
from coarse2fine.large.execution.engine import Engine, in_process, on_cluster
from coarse2fine.large.execution.work import remove_work
from coarse2fine.large.failed import SUFFIX
from coarse2fine.large.output import Output, plan_output, was_published
from coarse2fine.large.parts import PartDone, segment_part
from coarse2fine.large.phases import Settings
from coarse2fine.large.plan import check_by_region
from coarse2fine.large.report import StoreReport
from coarse2fine.large.run import segment_store
from coarse2fine.large.source import Source
from coarse2fine.large.viewer import Shown, view_of
from coarse2fine.measures import TABLE_SUFFIXES
from coarse2fine.system.device import shared_gpus
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.system.terminal import plain
from coarse2fine.system.timing import Progress


def infer_store(options: argparse.Namespace, config: Config, console: Console) -> None:
    """Segment a volume in a store.

    Raises:
        C2FError: If anything is wrong; what is done is kept, and the same command goes on from there.
    """
    source = Source(
        options.input,
        options.array,
        options.spacing,
        options.unit,
        axes=options.axes,
        channel=options.channel,
        mask=options.mask,
    )
    check_by_region(config, source)
    if options.region:
        grid = source.open()[0].levels[0].grid
        source = dataclasses.replace(source, region=parse_region(options.region, grid))
    if options.dry_run:
        with show_phases(console, in_process()) as progress:
            found = dry_run(options, config, source, progress)
        tell_estimate(found, Console(highlight=False))
        for warning in found.warnings:
            console.print(plain(f"warning: {warning}"), style="yellow", soft_wrap=True)
        return
    work = (options.work or default_work(options.output)).absolute()
    output = plan_output(
        options.output,
        objects=options.instances,
        overwrite=options.overwrite,
        inputs=options.input,
        work=work,
        mask=options.mask,
        shards=options.shards,
    )
    check_files(options, output, again=options.overwrite or was_published(work))
    keep_freed_memory(steady=True)
    settings = Settings(
        options.trust_checkpoint,
        skip_failed=options.skip_failed,
        restart=options.restart,
        table=options.table,
        failed=default_work(options.output).absolute().with_suffix(SUFFIX),
    )
    if options.part:
        with pick_engine(options) as engine, show_phases(console, engine) as progress:
            done = segment_part(config, source, output, work, engine, settings, progress, options.part)
        tell_part(done, options.part, console)
        return
    with pick_engine(options) as engine, show_phases(console, engine) as progress:
        report = segment_store(config, source, output, work, engine, settings, progress)
    if options.report:
        with atomic_write(options.report) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n", encoding="utf-8")
    if options.neuroglancer:
        write_view(report, source, output, options.neuroglancer, console)
    remove_work(work)
    tell_result(report, output, console, profile=options.profile)


def tell_result(report: StoreReport, output: Output, console: Console, *, profile: bool) -> None:
    """What the user should know of a run; at a terminal also what it did, and where its time went if asked for."""
    for warning in report.warnings:
        console.print(plain(f"warning: {warning}"), style="yellow", soft_wrap=True)
    for failure in report.failures:
        console.print(plain(f"left background: {failure.where}: {failure.message}"), style="yellow", soft_wrap=True)
    if console.is_terminal:
        print_report(report, output, console)
    if profile:
        show_profile([report], console)


def tell_part(found: PartDone, part: tuple[int, int], console: Console) -> None:
    """What is left after a part."""
    left = found.blocks - found.done
    console.print(
        f"part {part[0]}/{part[1]} is done; {found.done} of {found.blocks} blocks are segmented. "
        + ("When the other parts have ended, run" if left else "Run")
        + " the same command without --part: it does what is left and writes the result",
        soft_wrap=True,
    )


def check_files(options: argparse.Namespace, output: Output, *, again: bool) -> None:
    """Refuse files beside the result that cannot be made or written.

    Args:
        options: Of the command.
        output: The result.
        again: Whether they may be there already.

    Raises:
        ConfigError: If there are no objects to fill a table with, or an option is none for parts.
        OutputError: If one cannot be written.
    """
    if options.part and options.restart:
        raise ConfigError(
            "--restart with --part would give up what other parts do",
            f"Leave it out, and remove {options.work or default_work(options.output)} before the parts are started.",
        )
    if options.part and options.skip_failed:
        raise ConfigError(
            "--skip-failed with --part would leave out what another part may still do",
            "Leave it out here, and give it to the last command, the one without --part.",
        )
    if options.table and not output.objects:
        raise ConfigError(
            f"--table of a store has a row for each object, and {output.where} gets labels only", "Add --instances."
        )
    taken = {Path(options.input).resolve(), Path(output.where).resolve()}
    for option, suffixes in (("report", ()), ("neuroglancer", ()), ("table", TABLE_SUFFIXES)):
        file = getattr(options, option)
        if file and file.resolve() in taken:
            raise OutputError(
                f"{file} is an input or another result of this run", f"Choose another name with --{option}."
            )
        if file:
            taken.add(file.resolve())
            check_writable(file, again, suffixes)


def write_view(report: StoreReport, source: Source, output: Output, file: Path, console: Console) -> None:
    """Write a state for neuroglancer, and say how to look at it.

    Raises:
        OutputError: If it cannot be written.
    """
    image = Shown(report.volume["where"], report.volume["format"], report.volume["array"] or "")
    result = Shown(output.where, {"zarr": "OME-NGFF 0.5", "cremi": "HDF5"}.get(output.format, output.format))
    view = view_of(image, result, source.open()[1][0].grid, list(report.labels), objects=output.objects)
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(view.state, indent=1) + "\n", encoding="utf-8")
    for doubt in view.doubts:
        console.print(plain(f"warning: {doubt}"), style="yellow", soft_wrap=True)
    if view.folders:
        folders = shlex.join(map(str, view.folders))
        console.print(plain(f"to look at it: python -m coarse2fine.cli.serve {folders}"), soft_wrap=True)
    console.print(plain(f"and open {view.link}"), soft_wrap=True)


def default_work(output: str) -> Path:
    """The work folder beside an output; below the current folder for a URL."""
    name = output.removeprefix("precomputed://").rstrip("/")
    if "://" in name:
        return Path(f"{name.rsplit('/', 1)[-1]}.c2f-work")
    return Path(f"{name}.c2f-work").expanduser()


def pick_engine(options: argparse.Namespace) -> Engine:
    """Where blocks are done."""
    if options.dashboard and options.workers is None:
        raise ConfigError(
            "--dashboard needs --workers", "Add --workers N; a scheduler elsewhere has a page of its own."
        )
    limit_s = _block_timeout(options)
    if options.workers is None and options.scheduler is None:
        return in_process()
    return on_cluster(
        workers=options.workers,
        scheduler=options.scheduler,
        gpus=shared_gpus(),
        dashboard=options.dashboard,
        block_timeout_s=limit_s,
    )


def _block_timeout(options: argparse.Namespace) -> float | None:
    """The time limit of a block, in seconds.

    Raises:
        ConfigError: If it is no time, or nobody else than this process does blocks.
    """
    text = options.block_timeout
    if text is None:
        return None
    limit = seconds(text)
    if not isinstance(limit, float | int) or not 0 < limit < math.inf:
        raise ConfigError(f"--block-timeout {text!r} is no time above 0", "Write it as 90s, 10m or 1h.")
    if options.workers is None and options.scheduler is None:
        raise ConfigError(
            f"--block-timeout {text} ends the process that does a block, and that is this one",
            "Add --workers 1, so that a process of its own does the blocks.",
        )
    return float(limit)


@contextmanager
def show_phases(console: Console, engine: Engine) -> Iterator[Progress]:
    """A bar for each phase, and where to watch a cluster; nothing unless stderr is a terminal."""
    if engine.dashboard and console.is_terminal:
        console.print(plain(f"dashboard: {engine.dashboard}"))
    with show_bars(console, width=12, remaining=True) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield progress


def print_report(report: StoreReport, output: Output, console: Console) -> None:
    """A few lines that say what happened."""
    counts = report.counts
    table = Table(title=plain(str(report.volume["where"])), title_justify="left", show_header=False, box=None)
    table.add_row("seconds", ", ".join(f"{phase} {value:.1f}" for phase, value in report.seconds.items()))
    cells = " x ".join(str(len(edges) - 1) for edges in report.layout["cells"])
    table.add_row("volume", f"{counts['voxels'] / 1e6:.1f} million voxels in {cells} cells")
    table.add_row("boxes", f"{counts.get('selected', 0)} selected of {counts.get('children', 0)}")
    seen = counts.get("network_voxels", 0) / max(counts["voxels"], 1)
    table.add_row("canvases", f"{counts.get('canvases', 0)}, {seen:.2f} fine network voxels per voxel of the volume")
    if output.objects:
        table.add_row("objects", str(counts.get("objects", 0)))
    table.add_row("written", plain(output.where))
    console.print(table)
