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
from coarse2fine.cli.pretrain_parts import batch_of, check_meaning, data_of, network_of, plans_of
from coarse2fine.cli.pretrain_records import records_of
from coarse2fine.cli.vit_options import told_positions
from coarse2fine.config.types import Device
from coarse2fine.errors import ConfigError
from coarse2fine.networks.vit import ViT
from coarse2fine.nnunet.loading import planned_batch
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.crops import Volumes
from coarse2fine.pretrain.loop import CURVE
from coarse2fine.pretrain.methods import Task, method_of
from coarse2fine.pretrain.records.vocabulary import VOCABULARY
from coarse2fine.pretrain.run import run
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.state import Done
from coarse2fine.pretrain.weights import NNUNET, WEIGHTS
from coarse2fine.system.device import pick_device
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.system.terminal import plain, shown

_BLOCK = 16


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
    model = plans_of(options)
    check_meaning(options, model)
    settings = settings_of(options, model)
    data = data_of(options, model)
    network = network_of(options, model, data)
    if isinstance(network, ViT) and (note := told_positions(network.shape)):
        console.print(note, soft_wrap=True)
    image = data.image if isinstance(data, Volumes) else data.shape
    records = records_of(options, settings, data, console)
    task = Task(network, image, settings, None if records is None else records.vocabulary)
    method_of(task)  # so that what cannot be is said before anything is prepared
    count = len(data.cases) if isinstance(data, Volumes) else len(data.table)
    with show_bars(console, width=10, remaining=True, transient=False) as bars:
        prepare = bars.add_task("prepare", total=count)
        learn = bars.add_task("learn", total=settings.schedule.steps)

        def told(done: Done) -> None:
            bars.update(learn, completed=done.step, description=f"loss {done.curve[-1].loss:.3f}")

        worked = run(
            task,
            records or data,
            options.output,
            device=device,
            weights=options.weights,
            prepared=lambda done, total: bars.update(prepare, completed=done),
            told=told,
        )
    if records is not None:
        records.vocabulary.save(options.output / VOCABULARY)
    happened = "written" if worked else "finished already"
    if model is None or options.network == "vit":
        console.print(f"{happened}: {plain(str(options.output))} ({WEIGHTS}, {CURVE})", soft_wrap=True)
        return
    console.print(f"{happened}: {plain(str(options.output))} ({WEIGHTS}, {NNUNET}, {CURVE}); next:", soft_wrap=True)
    console.print(next_command(model, options.output), soft_wrap=True)


def next_command(model: Model, folder: Path) -> str:
    """What trains nnU-Net with the weights."""
    plans = model.plans
    words = ["nnUNetv2_train", plans.get("dataset_name", "DATASET"), model.configuration, "0"]
    words += ["-p", plans.get("plans_name", "nnUNetPlans"), "-pretrained_weights", folder / NNUNET]
    return plain(shlex.join(map(str, words)))


def settings_of(options: argparse.Namespace, model: Model | None) -> Settings:
    """What the options say.

    Raises:
        ConfigError: If a value is out of its range.
    """
    batch = batch_of(options, None if model is None else planned_batch(model))
    block = _BLOCK if options.block is None else options.block
    for name, count in (("--steps", options.steps), ("--batch", batch), ("--block", block)):
        if count < 1:
            raise ConfigError(f"{name} is {count}", "It must be at least 1.")
    for name, value in (("--minutes", options.minutes), ("--rate", options.rate)):
        if value is not None and not (isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value:g}", "It must be a number above 0.")
    if not 0 <= options.seed < 1 << 32:
        raise ConfigError(f"--seed is {options.seed}", "It must be a whole number from 0 to 4294967295.")
    given: dict[str, Any] = {"seconds": inf if options.minutes is None else 60 * options.minutes}
    if options.rate is not None:
        given["rate"] = options.rate
    make = Schedule.of_transformers if options.network == "vit" else Schedule
    return Settings(
        make(options.steps, batch, options.seed, **given),
        objective=options.objective,
        factors={name: _number("--weight", value) for name, value in _pairs("--weight", options.weight)},
        own=dict(_pairs("--set", options.set)),
        mask=options.mask,
        ratio=options.ratio,
        block=block,
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
