"""What ``c2f-infer`` does: from files to files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from coarse2fine.calibration.kit import is_kit, open_kit
from coarse2fine.cli.cases import Job, Work, show_progress
from coarse2fine.cli.folder import segment_cases
from coarse2fine.cli.masks import mask_of
from coarse2fine.cli.pages import Pages, check_page, pages_of
from coarse2fine.cli.profile import show_profile
from coarse2fine.cli.series import check_beside, endings, is_one_series
from coarse2fine.cli.store_options import refuse_options
from coarse2fine.cli.tables import check_table, write_measures
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.errors import ConfigError, OutputError
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
from coarse2fine.report import RunReport, write_report
from coarse2fine.system.device import pick_device
from coarse2fine.system.memory import SteadyHeap, keep_freed_memory


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
    """Segment the input's cases; in a folder, one that fails does not stop the others.

    Raises:
        C2FError: If the only case fails, or at the end if any did.
    """
    if is_store(options.input):
        from coarse2fine.cli.stores import infer_store  # takes long to import

        refuse_folder_options(options)
        infer_store(options, configure(options), console)
        return
    devices = check_devices(options.device)
    options.device = devices[0] if len(devices) == 1 else None
    config = configure(options)
    refuse_options(options)
    source, output = Path(options.input), Path(options.output)
    measures = bool(options.report or options.table)
    work = Work(
        config,
        options.trust_checkpoint,
        measures=measures,
        objects=options.instances,
        viewer=options.viewer,
        explain=tuple(options.explain),
    )
    pipeline = work.pipeline("cpu" if len(devices) > 1 else None)  # of several, each loads models of its own
    reader = pipeline.fine.reader
    first, count = options.part or (1, 1)
    everything = find_cases(source, pipeline.fine.channels, input_suffixes(reader))
    pages = pages_of(options, everything)
    suffixes = (*label_suffixes(reader), *endings(everything, output, options, pipeline.fine.labels.values_of))
    jobs = plan_outputs(source, output, options, everything[first - 1 :: count], suffixes, pages)
    if not jobs:
        console.print("nothing to do: there is no case in this part whose labels are not there", soft_wrap=True)
    again = (
        "The others are written. Once these are mended, run the same command again with --skip-existing"
        f"{''.join(f' and another {name}' for name, _ in told_files(options))}."
    )

    def write_about(reports: list[RunReport], failed: dict[str, str]) -> None:
        if options.report and reports:
            write_report(reports, options.report)
        if options.table and reports:
            write_measures(reports, options, pipeline.fine.channels)
        if options.profile:
            show_profile(reports, console)
        if pages:
            pages.finish(failed)

    segment_cases(jobs, work, pipeline, console, write_about, again=again, devices=devices, verbose=console.is_terminal)


def told_files(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """Files that say something of results, with their options."""
    return [(option, file) for option, file in (("--report", options.report), ("--table", options.table)) if file]


def check_devices(text: str | None) -> list[str]:
    """The devices that a command names, as in ``cuda:0,cuda:1``; none if it names none.

    Raises:
        ConfigError: If one of several cannot be used.
    """
    names = text.split(",") if text else []
    for name in names if len(names) > 1 else ():
        pick_device(load_config(None, [f"device={json.dumps(name)}"]).device)
    return names


def refuse_folder_options(options: argparse.Namespace) -> None:
    """Refuse options that have no meaning for a store.

    Raises:
        ConfigError: Naming one of them.
    """
    if "," in (options.device or ""):
        raise ConfigError(
            f"--device {options.device} is for folders of volumes, and {options.input} is a store",
            f"Give --workers {options.device.count(',') + 1} instead: with --device cuda, workers share the GPUs.",
        )
    if options.skip_existing:
        raise ConfigError(
            f"--skip-existing is for folders of volumes, and {options.input} is a store",
            "Leave it out: blocks that are done are not done again.",
        )
    if shown := [name for name in ("page", "viewer", "explain") if getattr(options, name)]:
        raise ConfigError(
            f"--{shown[0]} is for volumes in files, and {options.input} is a store",
            "Leave it out: --report FILE says what was done, and --neuroglancer FILE shows the result.",
        )


def plan_outputs(
    source: Path,
    output: Path,
    options: argparse.Namespace,
    cases: Sequence[Case],
    suffixes: tuple[str, ...],
    pages: Pages | None = None,
) -> list[Job]:
    """The cases to be done and where their labels go; all that will be written is checked before anything runs.

    Raises:
        ConfigError: If objects are asked for without a table.
        OutputError: If a result cannot be written, or would replace an input or another result.
    """
    check_table(options)
    series = is_one_series(cases)
    several = source.is_dir() and not series
    if several and not output.is_dir() and output.name.endswith(suffixes):
        raise OutputError(f"{source} is a folder, but {output} names a file", "Name a folder with -o.")
    to_folder = several or output.is_dir() or (series and not output.suffix)
    jobs = [
        Job(case, output_path(case, output, to_folder), mask=mask_of(options.mask, case, several)) for case in cases
    ]
    if options.skip_existing:
        jobs = [job for job in jobs if not job.labels.exists()]
    if pages:
        jobs = [replace(job, page=pages.by_case[job.case.name]) for job in jobs]
    outputs = [job.labels for job in jobs]
    beside = [spacing_beside(file) for file in outputs if file.name.endswith(TIFF_SUFFIXES)]
    shown = pages.files([job.case for job in jobs]) if pages else ()
    files = [*(("-o", file) for file in (*outputs, *beside)), *told_files(options)]
    masks = {job.mask.resolve() for job in jobs if job.mask}
    taken = {file.resolve() for case in cases for file in case.files} | masks
    everything = [*files, *(("--page", file) for file in shown)]
    check_beside(cases, everything)
    for option, file in everything:
        if file.resolve() in taken:
            raise OutputError(
                f"{file} is an input or another result of this run", f"Choose another name with {option}."
            )
        taken.add(file.resolve())
    for file in outputs:
        check_writable(file, options.overwrite, suffixes)
    for _, file in files[len(outputs) :]:
        check_writable(file, options.overwrite)
    for file in shown:
        check_page(file, overwrite=options.overwrite, again=bool(options.skip_existing or options.part))
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
