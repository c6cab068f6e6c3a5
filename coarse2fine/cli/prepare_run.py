"""What ``c2f-prepare`` does: two models and some cases in, a kit out."""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import asdict

from rich.console import Console

from coarse2fine.calibration.calibrate import Asked, Calibration, calibrate, check_asked
from coarse2fine.calibration.cases import find_calibration_cases
from coarse2fine.calibration.kit import check_replaceable
from coarse2fine.calibration.measure import measure
from coarse2fine.calibration.misses import MeasuredCase
from coarse2fine.calibration.settle import promise_of, settle, with_margin, write_settled
from coarse2fine.cli.bars import show_bars
from coarse2fine.cli.infer_run import configure
from coarse2fine.config.schema import Config
from coarse2fine.errors import ConfigError, VolumeError
from coarse2fine.io import make_own
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline
from coarse2fine.promise.statement import state
from coarse2fine.system.memory import keep_freed_memory


def prepare(options: argparse.Namespace, console: Console) -> None:
    """Measure each case, calibrate, write the kit, and say what came of it.

    Raises:
        C2FError: If something is missing or does not fit, or the cases cannot support what is asked for.
    """
    keep_freed_memory()
    began = time.monotonic()
    asked = asked_of(options)
    config, coarse, fine = open_models(options)
    cases = find_calibration_cases(options.cases, fine)
    check_asked(asked, len(cases))
    check_replaceable(options.output, options.overwrite)
    work = options.output.with_name(f"{options.output.name}.c2f-work")
    make_own(work)  # what is found there is gone on with
    measured: list[MeasuredCase] = []
    with show_bars(console) as bars:
        task = bars.add_task("calibrate", total=len(cases))
        for case in cases:
            found = measure(case, config, coarse, fine, work)
            if found is None:
                console.print(f"{case.name} is left out: it has no foreground, of which nothing can be missed")
            else:
                measured.append(found)
            bars.advance(task)
    if not measured:
        raise VolumeError(f"{options.cases}: no case has any foreground", "Give cases with something to find.")
    result = calibrate(measured, asked)
    config = settle(config, coarse, fine, measured, result, asked, labelled=bool(cases[0].labels))
    write_settled(options.output, config, coarse, fine, measured, result, overwrite=options.overwrite)
    shutil.rmtree(work, ignore_errors=True)
    report(options, config, result, len(cases), time.monotonic() - began, console)


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


def open_models(options: argparse.Namespace) -> tuple[Config, Model, Model]:
    """The settings to start from, the coarse model and the fine one.

    Raises:
        ConfigError: If there is no coarse model, or nothing that depends on a threshold.
    """
    config = configure(options).model_copy(update={"promise": None})
    if config.coarse.model is None:
        raise ConfigError("no coarse model", "Name its folder with --coarse-model or as coarse.model in the settings.")
    pipeline = Pipeline.from_config(config, trust_checkpoint=options.trust_checkpoint)
    if pipeline.segmenter is None or pipeline.coarse is None:
        raise ConfigError("mode one-stage has no boxes to promise anything of", "Use accelerated or two-stage.")
    return with_margin(pipeline.config, pipeline.coarse, pipeline.fine), pipeline.coarse, pipeline.fine


def report(
    options: argparse.Namespace, config: Config, result: Calibration, cases: int, seconds: float, console: Console
) -> None:
    """Five lines: cost, gain, promise, how it was kept, what to type next."""
    promise = promise_of(config)
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
