"""What ``c2f-prepare`` does: a fine model and some cases in, a kit out."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from rich.console import Console

from coarse2fine.calibration.calibrate import Asked, check_asked
from coarse2fine.calibration.cases import find_calibration_cases
from coarse2fine.calibration.kit import check_replaceable
from coarse2fine.calibration.prepare import Given, Prepared, Wanted, prepare
from coarse2fine.calibration.settle import promise_of, promise_text, ways_out
from coarse2fine.calibration.write import write_prepared
from coarse2fine.cli.bars import show_bars
from coarse2fine.cli.infer_run import configure
from coarse2fine.config.schema import Config
from coarse2fine.errors import ConfigError
from coarse2fine.io import make_own
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import load_stage
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.system.timing import Progress

STAGES = {
    "preprocess": "reading cases",
    "train": "training the coarse model",
    "spacing": "trying voxel sizes",
    "calibrate": "calibrating",
    "search": "searching settings",
}


def make_kit(options: argparse.Namespace, console: Console) -> None:
    """Make a kit, and say what came of it.

    Raises:
        C2FError: If something is missing or does not fit, or the cases cannot support what is asked for.
    """
    keep_freed_memory()
    began = time.monotonic()
    wanted = wanted_of(options)
    config, coarse, fine = open_models(options)
    cases = find_calibration_cases(options.cases, fine)
    check_asked(wanted.asked, len(cases))
    check_replaceable(options.output, options.overwrite)
    work = options.output.with_name(f"{options.output.name}.c2f-work")
    resumed = work.exists()
    make_own(work)  # what is found there is gone on with
    with shown(console) as progress:
        prepared = prepare(Given(cases, config, coarse, fine, work), wanted, progress)
    minutes = (time.monotonic() - began) / 60
    write_prepared(options.output, prepared, fine, wanted, minutes, resumed=resumed, overwrite=options.overwrite)
    spent = f"{minutes:.1f} minutes{', not counting what an earlier run had done' if resumed else ''}"
    if prepared.config.mode == "one-stage":
        console.print(
            f"what was done is kept in {work}: the same command with other options and --overwrite goes on from there",
            soft_wrap=True,
        )
    else:
        shutil.rmtree(work, ignore_errors=True)
    report(options, prepared, f"{spent}, {len(cases)} cases", console)


def wanted_of(options: argparse.Namespace) -> Wanted:
    """What the kit is to be.

    Raises:
        ConfigError: If a share is none, or a time is none.
    """
    asked = Asked(options.miss, options.probability, options.confidence)
    for name, value in {**asdict(asked), "loss": options.loss}.items():
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"--{name} is {value:g}", "Give a number between 0 and 1.")
    if not 0 < options.minutes < float("inf"):
        raise ConfigError(f"--minutes is {options.minutes:g}", "Give a number of minutes, such as 20.")
    return Wanted(asked, options.loss, options.minutes, not options.no_training, not options.no_search, options.seed)


def open_models(options: argparse.Namespace) -> tuple[Config, Model | None, Model]:
    """The settings to start from, the coarse model if there is one, and the fine one.

    Raises:
        ConfigError: If there is nothing that depends on a threshold, or two options contradict each other.
    """
    config = configure(options).model_copy(update={"promise": None})
    if config.mode == "one-stage":
        raise ConfigError("mode one-stage has no boxes to promise anything of", "Use accelerated or two-stage.")
    if config.coarse.model is not None and options.no_training:
        raise ConfigError(
            f"--no-training, but there is the coarse model {config.coarse.model}",
            "Leave out one of them: nothing is trained where a coarse model is given.",
        )
    trust = options.trust_checkpoint
    coarse = None if config.coarse.model is None else load_stage("coarse", config, trust_checkpoint=trust)
    return config, coarse, load_stage("fine", config, trust_checkpoint=trust)


@contextmanager
def shown(console: Console) -> Iterator[Progress]:
    """A bar for each stage that has begun, with the time that it may still take."""
    with show_bars(console, remaining=True, transient=False) as bars:
        tasks: dict[str, object] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES[stage], total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield tell


def report(options: argparse.Namespace, prepared: Prepared, spent: str, console: Console) -> None:
    """Cases that are left out, then five lines: cost, gain, promise, how it was kept, what to type next."""
    promise, result = promise_of(prepared.config), prepared.result
    kept = sum(missed is not None and missed <= promise.miss for missed in result.missed.values())
    at = "the lowest threshold that was tried," if result.limit else "the threshold"
    for name in prepared.empty:
        console.print(f"{name} is left out: it has no foreground, of which nothing can be missed", soft_wrap=True)
    for line in (
        f"cost: {spent}, of which {promise.cases} with foreground were calibrated on",
        f"gain: {gain(prepared)}",
        f"promise: {promise_text(prepared.config)}",
        f"sure: {kept} of the {promise.cases} calibration cases keep it at {at} {result.threshold:g}, where "
        f"boxes hold {100 * result.boxes:.3g} % of a volume (median); {options.output}/page.html has all figures",
        f"next: c2f-infer -i scan.nii.gz -o labels.nii.gz -c {options.output}",
    ):
        console.print(line, soft_wrap=True)


def gain(prepared: Prepared) -> str:
    """What the kit gains, as far as that was measured."""
    found, boxes, limit = prepared.found, 100 * prepared.result.boxes, prepared.result.limit
    if limit is not None:
        return f"none, as one-stage mode is all that is left: {limit}. What may help: {ways_out(prepared.config)}"
    if found is None:
        return (
            f"the fine network looks at boxes that hold {boxes:.3g} % of a volume (median); how much faster that is, "
            "and what it loses, was not measured (--no-search)"
        )
    return f"{found.winner}, {found.ratio:.3g} times as fast as one-stage mode: {found.reason}"
