"""What ``c2f-prepare`` does: two models and some cases in, a kit out."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from canvas import Triple, triple
from coarse2fine.calibration.calibrate import Asked, Calibration, calibrate, check_asked, known_of
from coarse2fine.calibration.kit import check_replaceable, files_of, write_kit
from coarse2fine.calibration.misses import THRESHOLDS, MeasuredCase, measure_case
from coarse2fine.cli.bars import show_bars
from coarse2fine.cli.infer_run import configure
from coarse2fine.config.schema import Config, PromiseConfig
from coarse2fine.errors import ConfigError, VolumeError
from coarse2fine.io import atomic_write, find_cases, input_suffixes, make_own, read_volume
from coarse2fine.nnunet.fingerprint import model_fingerprint
from coarse2fine.nnunet.model import Model
from coarse2fine.one_stage import segment_one_stage
from coarse2fine.pipeline import Pipeline
from coarse2fine.promise.statement import settings_fingerprint, state
from coarse2fine.segmenter import Segmenter
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.system.timing import Run
from coarse2fine.training.dataset import LabelledCase, find_labelled_cases, read_labels


def prepare(options: argparse.Namespace, console: Console) -> None:
    """Measure each case, calibrate, write the kit, and say what came of it.

    Raises:
        C2FError: If something is missing or does not fit, or the cases cannot support what is asked for.
    """
    keep_freed_memory()
    began = time.monotonic()
    asked = asked_of(options)
    pipeline = open_models(options)
    cases = find_calibration_cases(options.cases, pipeline.fine)
    check_asked(asked, len(cases))
    check_replaceable(options.output, options.overwrite)
    work = options.output.with_name(f"{options.output.name}.c2f-work")
    make_own(work)  # what is found there is gone on with
    measured: list[MeasuredCase] = []
    with show_bars(console) as bars:
        task = bars.add_task("calibrate", total=len(cases))
        for case in cases:
            found = measure(pipeline, case, work)
            if found is None:
                console.print(f"{case.name} is left out: it has no foreground, of which nothing can be missed")
            else:
                measured.append(found)
            bars.advance(task)
    if not measured:
        raise VolumeError(f"{options.cases}: no case has any foreground", "Give cases with something to find.")
    result = calibrate(measured, asked)
    config = settle(pipeline, measured, result, asked, labelled=bool(cases[0].labels))
    write(options, pipeline, config, measured, result)
    shutil.rmtree(work, ignore_errors=True)
    report(options, config, result, len(cases), time.monotonic() - began, console)


@dataclass(frozen=True, slots=True)
class CalibrationCase:
    """A case, with labels or without.

    Attributes:
        name: Of the case.
        images: One file per channel.
        labels: The true labels; None if foreground is what the fine model finds everywhere.
    """

    name: str
    images: tuple[Path, ...]
    labels: Path | None


def find_calibration_cases(folder: Path, fine: Model) -> list[CalibrationCase]:
    """Cases of a folder with ``imagesTr`` and ``labelsTr``, or with ``imagesTr`` alone, or of a folder of images.

    Raises:
        VolumeError: If there are none, or only some have labels.
    """
    images = folder / "imagesTr" if (folder / "imagesTr").is_dir() else folder
    if (folder / "labelsTr").is_dir():
        labelled: list[LabelledCase] = find_labelled_cases(folder, fine.channels, fine.reader)
        return [CalibrationCase(case.name, case.images, case.labels) for case in labelled]
    found = find_cases(images, fine.channels, input_suffixes(fine.reader))
    return [CalibrationCase(case.name, case.files, None) for case in found]


def asked_of(options: argparse.Namespace) -> Asked:
    """What is to be promised.

    Raises:
        ConfigError: If a share is none.
    """
    asked = Asked(options.miss, options.probability, options.confidence)
    for name, value in asdict(asked).items():
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"--{name} is {value:g}", "Give a number between 0 and 1.")
    return asked


def open_models(options: argparse.Namespace) -> Pipeline:
    """The models and settings to start from.

    Raises:
        ConfigError: If there is no coarse model, or nothing that depends on a threshold.
    """
    config = configure(options).model_copy(update={"promise": None})
    if config.coarse.model is None:
        raise ConfigError("no coarse model", "Name its folder with --coarse-model or as coarse.model in the settings.")
    pipeline = Pipeline.from_config(config, trust_checkpoint=options.trust_checkpoint)
    if pipeline.segmenter is None or pipeline.coarse is None:
        raise ConfigError("mode one-stage has no boxes to promise anything of", "Use accelerated or two-stage.")
    if "margin" in config.rois.model_fields_set:
        return pipeline
    rois = config.rois.model_copy(update={"margin": coarse_voxel(config, pipeline.coarse, pipeline.fine)})
    return Pipeline(config.model_copy(update={"rois": rois}), pipeline.coarse, pipeline.fine)


def coarse_voxel(config: Config, coarse: Model, fine: Model) -> Triple:
    """A voxel of the coarse model in voxels of the working grid: nothing is known more precisely than that."""
    turned = config.coarse.spacing or coarse.spacing
    in_file = [turned[axis] for axis in coarse.untranspose]
    ratios = (in_file[axis] / step for axis, step in zip(fine.transpose, fine.spacing, strict=True))
    return triple(ceil(ratio - 1e-3) for ratio in ratios)


def segmenter_of(pipeline: Pipeline) -> Segmenter:
    """The pipeline's; ``open_models`` made sure that there is one."""
    if pipeline.segmenter is None:
        raise ValueError("this pipeline has no segmenter")
    return pipeline.segmenter


def measure(pipeline: Pipeline, case: CalibrationCase, work: Path) -> MeasuredCase | None:
    """What each threshold misses of a case, now or in an earlier run that was cut short; None without foreground."""
    files = [*case.images, case.labels] if case.labels else list(case.images)
    config, models = pipeline.config, pipeline.models
    about = {
        "files": files_of(files),
        "models": [model_fingerprint(model) for model in models],
        "settings": settings_fingerprint(config),
        "thresholds": list(THRESHOLDS),
    }
    path = work / f"{case.name}.json"
    known = _read(path)
    if known.get("about") == json.loads(json.dumps(about)):
        return MeasuredCase.from_dict(known["case"]) if known["case"] else None
    volume = read_volume(list(case.images), [model.reader for model in models])
    if case.labels is None:
        labels = segment_one_stage(volume, config, pipeline.coarse, pipeline.fine, Run())
    else:
        labels = read_labels(case.labels, pipeline.fine, volume)
    foreground = np.isin(labels, pipeline.fine.labels.foreground)
    measured = measure_case(segmenter_of(pipeline), volume, foreground) if foreground.any() else None
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"about": about, "case": measured and measured.to_dict()}), encoding="utf-8")
    return measured


def _read(path: Path) -> dict[str, Any]:
    """What an earlier run left; nothing if it left nothing whole."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def settle(
    pipeline: Pipeline, measured: list[MeasuredCase], result: Calibration, asked: Asked, *, labelled: bool
) -> Config:
    """The settings that the kit gets: those that were measured, with the threshold and the promise."""
    rois = pipeline.config.rois.model_copy(update={"threshold": result.threshold})
    config = pipeline.config.model_copy(update={"rois": rois})
    coarse, fine = map(model_fingerprint, pipeline.models)
    promise = PromiseConfig.model_validate(
        {
            "miss": asked.miss,
            "probability": result.probability,
            "confidence": asked.confidence,
            "cases": len(measured),
            "rank": result.rank,
            "foreground": "labels" if labelled else "one-stage",
            "settings": settings_fingerprint(config),
            "coarse_model": coarse,
            "fine_model": fine,
            "known": known_of(measured),
        }
    )
    return config.model_copy(update={"promise": promise})


def write(
    options: argparse.Namespace,
    pipeline: Pipeline,
    config: Config,
    measured: list[MeasuredCase],
    result: Calibration,
) -> None:
    """Write the kit."""
    coarse = pipeline.models[0]
    settings: dict[str, Any] = config.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"device"})
    settings["fine"] = {**settings["fine"], "model": str(pipeline.fine.folder.resolve())}
    calibration: Mapping[str, Any] = {"result": asdict(result), "cases": [case.to_dict() for case in measured]}
    about = {
        "made_by": "c2f-prepare",
        "fine_model": str(pipeline.fine.folder.resolve()),
        "cases": [case.name for case in measured],
        "promise": state(_promise(config)),
    }
    write_kit(
        options.output,
        settings,
        coarse,
        config.coarse.checkpoint,
        calibration,
        about,
        overwrite=options.overwrite,
    )


def _promise(config: Config) -> PromiseConfig:
    if config.promise is None:
        raise ValueError("a kit's settings hold a promise")
    return config.promise


def report(
    options: argparse.Namespace, config: Config, result: Calibration, cases: int, seconds: float, console: Console
) -> None:
    """Five lines: cost, gain, promise, how it was kept, what to type next."""
    promise = _promise(config)
    kept = sum(missed is not None and missed <= promise.miss for missed in result.missed.values())
    for line in (
        f"cost: {seconds / 60:.1f} minutes, {cases} cases, of which {promise.cases} with foreground",
        f"gain: at threshold {result.threshold:g} and with a margin of {list(config.rois.margin)} voxels, boxes hold "
        f"{100 * result.boxes:.3g} % of a volume (median over the cases); the fine network does not look at the rest",
        f"promise: {state(promise)}",
        f"seen: {kept} of the {promise.cases} calibration cases keep it at this threshold",
        f"next: c2f-infer -i scan.nii.gz -o labels.nii.gz -c {options.output}",
    ):
        console.print(line, soft_wrap=True)
