"""What ``c2f-predict`` does: nnU-Net's command line and files, with a coarse model where there is one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from coarse2fine.calibration.kit import open_kit
from coarse2fine.cli.cases import Job, Work
from coarse2fine.cli.folder import segment_cases
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.errors import ConfigError, ModelError, OutputError, VolumeError
from coarse2fine.io import Case, atomic_write, check_writable, find_cases, label_suffixes
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.trained import LOWRES, Trained, find_trained
from coarse2fine.report import RunReport, write_report
from coarse2fine.system.memory import keep_freed_memory

CASCADE = "3d_cascade_fullres"


def predict(options: argparse.Namespace, console: Console) -> None:
    """Segment the cases of a folder as ``nnUNetv2_predict`` does.

    Raises:
        C2FError: If something is missing or does not fit, or at the end if a case failed.
    """
    keep_freed_memory()
    check_parts(options)
    config = configure(options, find_trained(options.d, options.tr, options.p), console)
    work = Work(
        config, options.trust_checkpoint, options.save_probabilities, options.prev_stage_predictions is not None
    )
    pipeline = work.pipeline()
    jobs = plan_jobs(options, pipeline.fine)
    write_about(options, pipeline.fine)
    if not jobs:
        console.print(f"nothing to do: this is part {options.part_id} of {options.num_parts}, and it has no case left")
        return
    bars = Console(stderr=True, force_terminal=False) if options.disable_progress_bar else console

    again = "The others are written. Once these are mended, run the same command again with --continue_prediction."

    def write_report_of(reports: list[RunReport], failed: dict[str, str]) -> None:
        if options.report and reports:
            write_report(reports, options.report)

    segment_cases(jobs, work, pipeline, console, write_report_of, again=again, bars=bars, verbose=options.verbose)


def check_parts(options: argparse.Namespace) -> None:
    """Refuse a part that is none.

    Raises:
        ConfigError: If it is not one of 0 to ``num_parts`` - 1.
    """
    if options.num_parts < 1:
        raise ConfigError(f"-num_parts is {options.num_parts}", "It must be at least 1.")
    if not 0 <= options.part_id < options.num_parts:
        raise ConfigError(
            f"-part_id is {options.part_id}, of {options.num_parts} parts",
            f"Parts are counted from 0: give 0 to {options.num_parts - 1}, or more parts with -num_parts.",
        )


def configure(options: argparse.Namespace, trained: Trained, console: Console) -> Config:
    """Settings: the kit's, or the defaults, with what the options say.

    Raises:
        ConfigError: If there is no such model, or options contradict each other.
    """
    if options.kit and options.coarse_model:
        raise ConfigError("--kit and --coarse-model", "Leave out --coarse-model: a kit has one of its own.")
    settings: dict[str, Any] = {
        "fine.model": str(trained.model(options.c)),
        "fine.checkpoint": options.chk,
        "fine.folds": options.f,
        "fine.tile_step": options.step_size,
        "fine.mirroring": not options.disable_tta,
        "device": options.device,
        "mode": options.mode,
        "fine.use_prior": True if options.c == CASCADE else None,
    }
    told = options.prev_stage_predictions
    if told and options.c != CASCADE:
        raise ConfigError(
            f"-prev_stage_predictions is for cascades, and -c is {options.c}", f"Leave it out, or give -c {CASCADE}."
        )
    if not options.kit:
        coarse = options.coarse_model or (None if options.c == LOWRES else trained.lowres)
        settings |= {"coarse.model": coarse and str(coarse), "coarse.checkpoint": coarse and options.chk}
        if coarse is None and options.c == CASCADE and not told:
            trained.model(LOWRES)
        if coarse is not None and options.mode != "one-stage":
            console.print(
                f"{coarse.name} looks coarsely first: nothing is promised of what that leaves out (a kit does: "
                "c2f-prepare; --mode one-stage looks everywhere)",
                soft_wrap=True,
            )
        if coarse is None and options.mode is None:
            settings["mode"] = "one-stage"
            console.print(
                f"every voxel is looked at: {trained.folder.name} has no 3d_lowres model of this trainer and plans, "
                "and no kit is named (--kit KIT; c2f-prepare makes one)",
                soft_wrap=True,
            )
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items() if value is not None]
    return load_config(open_kit(options.kit) if options.kit else None, [*overrides, *options.overrides])


def plan_jobs(options: argparse.Namespace, fine: Model) -> list[Job]:
    """The cases of this part that are to be done; where they are written is checked before anything runs.

    Raises:
        ModelError: If the model does not say how its files end.
        VolumeError: If the folder has no cases.
        OutputError: If results cannot be written, or would lie among the images.
    """
    source, output = options.i, options.o
    if output.resolve().is_relative_to(source.resolve()):
        raise OutputError(f"the output {output} lies in the input {source}", "Choose another folder with -o.")
    ending = fine.dataset.get("file_ending")
    if not isinstance(ending, str) or not ending:
        raise ModelError(
            f"{fine.folder / 'dataset.json'} does not say how files end (file_ending)",
            "Add what it was in training, such as .nii.gz.",
        )
    cases = find_cases(source, fine.channels, (ending,), series=False)[options.part_id :: options.num_parts]
    jobs = [Job(case, output / f"{case.name}{ending}", _previous(case, ending, options)) for case in cases]
    endings = [ending, *([".npz", ".pkl"] if options.save_probabilities else [])]
    if options.continue_prediction:
        jobs = [job for job in jobs if not all(job.beside(one).is_file() for one in endings)]
    if options.report:
        written = {file.resolve() for job in jobs for file in map(job.beside, endings)}
        if options.report.resolve() in written or options.report.resolve().is_relative_to(source.resolve()):
            raise OutputError(f"{options.report} is an input or another result", "Choose another name with --report.")
    for job in jobs:
        check_writable(job.labels, overwrite=True, suffixes=label_suffixes(fine.reader))
    for file in (output / "plans.json", *(job.beside(one) for job in jobs for one in endings)):
        check_writable(file, overwrite=True)
    if options.report:
        check_writable(options.report, overwrite=True)
    return jobs


def _previous(case: Case, ending: str, options: argparse.Namespace) -> Path | None:
    """Where the labels of a cascade's previous stage are, under the name that nnU-Net gives them."""
    if options.prev_stage_predictions is None:
        return None
    file: Path = options.prev_stage_predictions / f"{case.name}{ending}"
    if not file.is_file():
        raise VolumeError(
            f"case {case.name} has no labels of the previous stage: there is no {file}",
            "Predict it with -c 3d_lowres into that folder, or leave out -prev_stage_predictions, and it is done here.",
        )
    return file


def write_about(options: argparse.Namespace, fine: Model) -> None:
    """What nnU-Net's ensembling and postprocessing read, and what was asked for, under nnU-Net's names."""
    asked = {
        "list_of_lists_or_source_folder": str(options.i),
        "output_folder_or_list_of_truncated_output_files": str(options.o),
        "save_probabilities": options.save_probabilities,
        "overwrite": not options.continue_prediction,
        "num_processes_preprocessing": options.npp,
        "num_processes_segmentation_export": options.nps,
        "folder_with_segs_from_prev_stage": options.prev_stage_predictions and str(options.prev_stage_predictions),
        "num_parts": options.num_parts,
        "part_id": options.part_id,
    }
    about = {"predict_from_raw_data_args.json": asked, "dataset.json": fine.dataset, "plans.json": fine.plans}
    for name, content in about.items():
        with atomic_write(options.o / name) as path:
            path.write_text(json.dumps(content, indent=4), encoding="utf-8")
