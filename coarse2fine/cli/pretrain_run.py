"""What ``c2f-pretrain`` does: images and plans in, weights out."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from coarse2fine.cli.bars import show_bars
from coarse2fine.config.types import Device
from coarse2fine.errors import ConfigError
from coarse2fine.nnunet.loading import load_plans, new_network, planned_batch
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import pick_device
from coarse2fine.pretrain.crops import Volumes, find_images
from coarse2fine.pretrain.loop import CURVE
from coarse2fine.pretrain.methods import Task, method_of
from coarse2fine.pretrain.run import run
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.state import Done
from coarse2fine.pretrain.weights import NNUNET, WEIGHTS
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.system.terminal import plain, shown


def pretrain(options: argparse.Namespace, console: Console) -> None:
    """Find images, learn from them, and say what to do with the weights.

    Raises:
        C2FError: If something is missing or does not fit.
    """
    keep_freed_memory()
    try:
        device = pick_device(TypeAdapter(Device).validate_python(options.device))
    except ValidationError:
        raise ConfigError(
            f"--device {shown(options.device)} is unknown", "Use auto, cpu, cuda, cuda:N or mps."
        ) from None
    model = load_plans(_plans(options), options.configuration)
    settings = settings_of(options, model)
    task = Task(new_network(model, model.channels, settings.schedule.seed), model.patch, settings)
    method_of(task)  # so that what cannot be is said before anything is read
    data = Volumes(find_images(options.images, model), model, settings.sigma)
    with show_bars(console, width=10, remaining=True, transient=False) as bars:
        prepare = bars.add_task("prepare", total=len(data.cases))
        learn = bars.add_task("learn", total=settings.schedule.steps)

        def told(done: Done) -> None:
            bars.update(learn, completed=done.step, description=f"loss {done.curve[-1].loss:.3f}")

        worked = run(
            task,
            data,
            options.output,
            device=device,
            weights=options.weights,
            prepared=lambda done, total: bars.update(prepare, completed=done),
            told=told,
        )
    happened = "written" if worked else "finished already"
    console.print(f"{happened}: {plain(str(options.output))} ({WEIGHTS}, {NNUNET}, {CURVE}); next:", soft_wrap=True)
    console.print(next_command(model, options.output), soft_wrap=True)


def next_command(model: Model, folder: Path) -> str:
    """What trains nnU-Net with the weights."""
    plans = model.plans
    words = ["nnUNetv2_train", plans.get("dataset_name", "DATASET"), model.configuration, "0"]
    words += ["-p", plans.get("plans_name", "nnUNetPlans"), "-pretrained_weights", folder / NNUNET]
    return plain(shlex.join(map(str, words)))


def settings_of(options: argparse.Namespace, model: Model) -> Settings:
    """What the options say.

    Raises:
        ConfigError: If a value is out of its range.
    """
    batch = planned_batch(model) if options.batch is None else options.batch
    for name, count in (("--steps", options.steps), ("--batch", batch), ("--block", options.block)):
        if count < 1:
            raise ConfigError(f"{name} is {count}", "It must be at least 1.")
    minutes = inf if options.minutes is None else options.minutes
    numbers: list[tuple[str, Any]] = [("--minutes", minutes)] if options.minutes is not None else []
    for name, value in (*numbers, ("--rate", options.rate)):
        if not (isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value:g}", "It must be a number above 0.")
    if not 0 <= options.seed < 1 << 32:
        raise ConfigError(f"--seed is {options.seed}", "It must be a whole number from 0 to 4294967295.")
    schedule = Schedule(options.steps, batch, options.seed, options.rate, 60 * minutes)
    return Settings(
        schedule,
        objective=options.objective,
        factors={name: _number("--weight", value) for name, value in _pairs("--weight", options.weight)},
        own=dict(_pairs("--set", options.set)),
        mask=options.mask,
        ratio=options.ratio,
        block=options.block,
        centre=options.centre,
        norm_pix=options.norm_pix,
        loss_everywhere=options.loss_everywhere,
    )


def _pairs(option: str, given: Sequence[str]) -> list[tuple[str, str]]:
    """What users write as NAME=VALUE.

    Raises:
        ConfigError: If something is not written so.
    """
    for text in given:
        if not text.partition("=")[0] or not text.partition("=")[2]:
            raise ConfigError(f"{option} {shown(text)} has no name or no value", f"Write {option} NAME=VALUE.")
    return [(name, value) for name, _, value in (text.partition("=") for text in given)]


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option} is {shown(text)}, which is no number", "Write it as 0.5.") from None


def _plans(options: argparse.Namespace) -> Path:
    """The file of the plans.

    Raises:
        ConfigError: If there is none.
    """
    path: Path = options.plans or options.model / "plans.json"
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist",
            "Give nnUNetPlans.json of the preprocessed data (made by nnUNetv2_plan_and_preprocess), or a model folder.",
        )
    return path
