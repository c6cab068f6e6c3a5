"""What ``c2f-infer`` does: from files to files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from coarse2fine.calibration.kit import is_kit, open_kit
from coarse2fine.cli import stores as large
from coarse2fine.cli.bars import show_bars
from coarse2fine.cli.guard import fail, told
from coarse2fine.cli.tables import check_table, write_measures
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.errors import C2FError, ConfigError, OutputError
from coarse2fine.io import (
    Case,
    check_writable,
    find_cases,
    input_suffixes,
    is_store,
    label_suffixes,
    output_path,
)
from coarse2fine.io.files.readers import TIFF_SUFFIXES
from coarse2fine.io.files.tiff import spacing_beside
from coarse2fine.pipeline import Pipeline
from coarse2fine.report import RunReport, write_report
from coarse2fine.system.memory import SteadyHeap, keep_freed_memory
from coarse2fine.system.terminal import plain
from coarse2fine.system.timing import Progress

SMALLER = "crop the volume, or convert it to a store, such as OME-Zarr, which is read by region"
"""What makes a run take less memory."""


def run(options: argparse.Namespace, console: Console) -> None:
    """Do what the command line asks for.

    Raises:
        C2FError: If it cannot be done.
    """
    keep_freed_memory()
    (demo if options.demo else infer)(options, console)


def demo(options: argparse.Namespace, console: Console) -> None:
    """Run the demo; what draws pictures is only imported here, because it takes long to import."""
    from coarse2fine.demo import run_demo

    with show_progress(console, "demo") as progress:
        run_demo(
            Path(options.output or "c2f-demo"),
            compare=options.compare,
            overwrite=options.overwrite,
            progress=SteadyHeap(progress),
            console=Console(),
        )


def infer(options: argparse.Namespace, console: Console) -> None:
    """Segment the input's cases one after the other; in a folder, one that fails does not stop the others.

    Raises:
        C2FError: If the only case fails, or at the end if any did.
    """
    config = configure(options)
    if is_store(options.input):
        refuse_folder_options(options)
        large.infer_store(options, config, console)
        return
    large.refuse_options(options)
    source, output = Path(options.input), Path(options.output)
    pipeline = Pipeline.from_config(config, trust_checkpoint=options.trust_checkpoint)
    reader = pipeline.fine.reader
    first, count = options.part or (1, 1)
    cases = find_cases(source, pipeline.fine.channels, input_suffixes(reader))[first - 1 :: count]
    jobs = plan_outputs(source, output, options, cases, label_suffixes(reader))
    if not jobs:
        console.print("nothing to do: there is no case in this part whose labels are not there", soft_wrap=True)
    again = (
        "The others are written. Once these are mended, run the same command again with --skip-existing"
        f"{''.join(f' and another {name}' for name, _ in told_files(options))}."
    )

    def one(case: Case, labels: Path, count: str) -> RunReport:
        return infer_case(pipeline, case, labels, console, count, options)

    def table(reports: list[RunReport]) -> None:
        if options.table:
            write_measures(reports, options, pipeline.fine.channels)

    segment_cases(jobs, one, console, options.report, again, table)


def told_files(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """Files that say something of results, with their options."""
    return [(option, file) for option, file in (("--report", options.report), ("--table", options.table)) if file]


def refuse_folder_options(options: argparse.Namespace) -> None:
    """Refuse options that have no meaning for a store.

    Raises:
        ConfigError: Naming one of them.
    """
    for option, value in (("--part", options.part), ("--skip-existing", options.skip_existing)):
        if value:
            raise ConfigError(
                f"{option} is for folders of volumes, and {options.input} is a store",
                "Leave it out: blocks that are done are not done again, and --workers shares them.",
            )
    if options.table:
        raise ConfigError(f"--table is for volumes in files, and {options.input} is a store", "Leave it out.")


def segment_cases(
    cases: Sequence[tuple[Case, Path]],
    one: Callable[[Case, Path, str], RunReport],
    console: Console,
    report: Path | None,
    again: str,
    table: Callable[[list[RunReport]], None] = lambda reports: None,
) -> None:
    """Segment cases one after the other; of several, one that fails does not stop the others.

    Args:
        cases: Each with the file of its labels.
        one: Segments one of them; also gets its number, as 1/4.
        console: Where failures are told.
        report: File for the reports of all that succeeded.
        again: What to do after the others have failed.
        table: Writes down what else there is to say of those.

    Raises:
        C2FError: If the only case fails, or at the end if any did.
    """
    reports: list[RunReport] = []
    failed: list[str] = []
    try:
        for number, (case, output) in enumerate(cases, 1):
            try:
                reports.append(one(case, output, f"{number}/{len(cases)}"))
            except Exception as error:
                known = told(error, SMALLER)
                if known is None:
                    raise
                if len(cases) == 1:
                    raise known from None
                failed.append(case.name)
                fail(console, f"{case.name}: {known}")
    finally:  # what is finished is reported, also when the run is interrupted
        if reports:
            if report:
                write_report(reports, report)
            table(reports)
    if failed:
        raise C2FError(f"{len(failed)} of {len(cases)} cases failed: {', '.join(failed)}", again)


def plan_outputs(
    source: Path, output: Path, options: argparse.Namespace, cases: Sequence[Case], suffixes: tuple[str, ...]
) -> list[tuple[Case, Path]]:
    """The cases to be done and where their labels go; all that will be written is checked before anything runs.

    Raises:
        ConfigError: If objects are asked for without a table.
        OutputError: If a result cannot be written, or would replace an input or another result.
    """
    check_table(options)
    if source.is_dir() and not output.is_dir() and output.name.endswith(suffixes):
        raise OutputError(f"{source} is a folder, but {output} names a file", "Name a folder with -o.")
    to_folder = source.is_dir() or output.is_dir()
    jobs = [(case, output_path(case, output, to_folder)) for case in cases]
    if options.skip_existing:
        jobs = [(case, file) for case, file in jobs if not file.exists()]
    outputs = [file for _, file in jobs]
    beside = [spacing_beside(file) for file in outputs if file.name.endswith(TIFF_SUFFIXES)]
    files = [*(("-o", file) for file in (*outputs, *beside)), *told_files(options)]
    taken = {file.resolve() for case in cases for file in case.files}
    for option, file in files:
        if file.resolve() in taken:
            raise OutputError(
                f"{file} is an input or another result of this run", f"Choose another name with {option}."
            )
        taken.add(file.resolve())
    for file in outputs:
        check_writable(file, options.overwrite, suffixes)
    for _, file in files[len(outputs) :]:
        check_writable(file, options.overwrite)
    return jobs


def configure(options: argparse.Namespace) -> Config:
    """The configuration file with the command line's overrides."""
    overrides = list(options.overrides)
    for key, value in (
        ("coarse.model", options.coarse_model),
        ("fine.model", options.fine_model),
        ("mode", options.mode),
        ("device", options.device),
        ("deadline", getattr(options, "deadline", None)),  # other commands have none
    ):
        if value is not None:
            overrides.append(f"{key}={json.dumps(str(value))}")
    kit = options.config is not None and is_kit(Path(options.config))
    config = load_config(open_kit(Path(options.config)) if kit else options.config, overrides)
    if config.fine.model is None:
        raise ConfigError("no fine model", "Name its folder with --fine-model or as fine.model in the configuration.")
    return config


def infer_case(
    pipeline: Pipeline, case: Case, output: Path, console: Console, count: str, options: argparse.Namespace
) -> RunReport:
    """Segment one case, with progress bars if somebody watches."""
    measures = bool(options.report or options.table)
    with show_progress(console, f"{count} {case.name}") as progress:
        steady = SteadyHeap(progress)
        report = pipeline.run_files(case.files, output, steady, measures=measures, objects=options.instances).report
    tell_warnings(report, console)
    if console.is_terminal:
        print_report(report, output, console)
    return report


def tell_warnings(report: RunReport, console: Console) -> None:
    """What the user should know of one case."""
    for warning in report.warnings:
        console.print(plain(f"{report.case}: {warning}"), style="yellow", soft_wrap=True)


@contextmanager
def show_progress(console: Console, title: str) -> Iterator[Progress]:
    """One bar for each stage and one for the whole run; nothing unless stderr is a terminal."""
    stages = ("read", "coarse", "rois", "fine", "write")
    with show_bars(console, width=24) as bars:
        overall = bars.add_task(plain(title), total=len(stages))
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"  {stage}", total=total)
            bars.update(tasks[stage], completed=done, total=total)
            part = done / total if total else 1.0
            bars.update(overall, completed=stages.index(stage) + part)

        yield progress


def print_report(report: RunReport, output: Path, console: Console) -> None:
    """A few lines that say what happened."""
    table = Table(title=plain(f"{report.case}: {report.mode}"), title_justify="left", show_header=False, box=None)
    times = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in asdict(report.timing_s).items() if seconds >= 0.05)
    table.add_row("seconds", times)
    if report.mode != "one-stage":
        boxes = report.boxes
        table.add_row(
            "boxes",
            f"{boxes.selected} selected of {boxes.parents} parents, {boxes.children} children"
            + (f"; {boxes.dropped} dropped" if boxes.dropped else "")
            + (f"; {boxes.grown} grown" if boxes.grown else ""),
        )
        table.add_row("chosen by", plain(" ".join(report.agent[key] for key in ("kind", "name"))))
        table.add_row("canvases", f"{report.canvases.count:.0f}, {report.canvases.fill:.0%} filled")
        table.add_row(
            "looked at",
            f"{report.coverage.volume:.2%} of the volume, {report.coverage.heatmap_mass:.1%} of the heatmap",
        )
    if report.deadline:
        kept = report.deadline
        table.add_row("deadline", f"{kept.asked_s:.4g} s; {len(kept.left)} of {kept.boxes} boxes not reached")
    table.add_row("labels", ", ".join(f"{label}: {count} voxels" for label, count in report.labels.items()) or "none")
    table.add_row("written", plain(str(output)))
    console.print(table)
