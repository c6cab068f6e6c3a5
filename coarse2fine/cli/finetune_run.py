"""What ``c2f-finetune`` does: images and labels in, weights, predictions and measures out."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from coarse2fine.cli.bars import show_bars
from coarse2fine.config.types import Device
from coarse2fine.errors import ConfigError
from coarse2fine.finetune.begin import Start
from coarse2fine.finetune.gather import Asked, Chosen, choose, load
from coarse2fine.finetune.rates import check_decay
from coarse2fine.finetune.run import (
    METRICS,
    PREDICTIONS,
    Labelled,
    Settings,
    is_finished,
    run,
    write_model_folder,
)
from coarse2fine.finetune.volumes import ChosenVolumes, choose_volumes, load_volumes
from coarse2fine.networks.vit import ViTShape
from coarse2fine.nnunet.loading import load_plans, planned_batch, with_labels
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import pick_device
from coarse2fine.pretrain.pictures import read_picture
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.state import Done
from coarse2fine.pretrain.table import Table, read_table
from coarse2fine.pretrain.weights import WEIGHTS, is_vit, load_vit, read_intensities
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.system.terminal import plain, shown
from coarse2fine.system.timing import Ticks

PREPARED, MODEL = "prepared", "model"
_SIZES = {"size": 224, "patch": 16, "width": 384, "depth": 12, "heads": 6}
"""Of a transformer that begins with random weights: ViT-S/16."""
_BASE_RATE, _PROBE_RATE = 2.5e-4, 1e-3
_WARM_UP = 5 / 75
_DECAY = 0.65
_AUGMENT = "rand-m6-mstd0.5-inc1"


def finetune(options: argparse.Namespace, console: Console) -> None:
    """Find images and labels, learn from them, and say how good it became.

    Raises:
        C2FError: If something is missing or does not fit.
    """
    keep_freed_memory()
    device = _device(options.device)
    _check_data(options)
    table = read_table(options.table, options.images) if options.table else None
    model = _model(options)
    start = start_of(options, table, model)
    settings = settings_of(options, start)
    chosen = _choose(options, table, model, settings)
    start.make(1)  # so that weights that do not fit are told of before anything is read
    _check_axes(start, pictures=table is not None)
    if is_finished(options.output, settings, {**start.about, **chosen.about}):
        console.print(f"finished already: {plain(str(options.output))}", soft_wrap=True)
        _tell(options.output, console)
        return
    folder = options.output / PREPARED
    folder.mkdir(exist_ok=True)
    with show_bars(console, width=10, remaining=True, transient=False) as bars:
        prepare, learn = bars.add_task("prepare", total=None), bars.add_task("learn", total=settings.schedule.steps)

        def prepared(done: int, total: int) -> None:
            bars.update(prepare, completed=done, total=total)

        def told(done: Done) -> None:
            bars.update(learn, completed=done.step, description=f"loss {done.curve[-1].loss:.3f}")

        data = _load(chosen, start, settings, folder, prepared)
        network = start.make(data.task.outputs)
        run(network, data, settings, options.output, device=device, told=told)
    if isinstance(chosen, ChosenVolumes) and isinstance(start.network, Model):
        write_model_folder(options.output / MODEL, chosen.model, network, settings)
    shutil.rmtree(folder, ignore_errors=True)
    console.print(f"written: {plain(str(options.output))} ({WEIGHTS}, {PREDICTIONS}, {METRICS})", soft_wrap=True)
    _tell(options.output, console)


def start_of(options: argparse.Namespace, table: Table | None, model: Model | None) -> Start:
    """The network to begin with.

    Raises:
        C2FError: If the options contradict each other, or weights are missing or damaged.
    """
    given = {name: value for name in _SIZES if (value := getattr(options, name)) is not None}
    weights: Path | None = options.weights
    transformer = weights is not None and is_vit(weights)
    if given and (transformer or model is not None):
        name, value = next(iter(given.items()))
        whence = f"{weights} says" if transformer else "the plans say"
        raise ConfigError(f"--{name} is {value}, but {whence} what the network is", f"Leave out --{name}.")
    if not 0 <= options.drop_path < 1:
        raise ConfigError(
            f"--drop-path is {options.drop_path:g}", "It must be at least 0 and below 1: --drop-path 0.1."
        )
    if weights is not None and transformer:
        network: ViTShape | Model = load_vit(weights).shape
    elif model is not None:
        network = model
    elif weights is not None:
        raise ConfigError(
            f"{weights} is of a network of nnU-Net's, which its plans describe", "Name them: --plans nnUNetPlans.json."
        )
    elif table is None:
        raise ConfigError("volumes need plans, which say how they are seen", "Name them: --plans nnUNetPlans.json.")
    else:
        size = {**_SIZES, **given}
        channels = len(read_picture(table.files[0]))
        edges = (size["size"],) * 2, (size["patch"],) * 2
        network = ViTShape(channels, *edges, size["width"], size["depth"], size["heads"])
    drop_path = options.drop_path if isinstance(network, ViTShape) else 0.0
    return Start(network, weights, options.seed, drop_path)


def settings_of(options: argparse.Namespace, start: Start) -> Settings:
    """What the options say.

    Raises:
        ConfigError: If a value is out of its range.
    """
    transformer = isinstance(start.network, ViTShape)
    batch = options.batch
    if batch is None:
        batch = 32 if isinstance(start.network, ViTShape) else planned_batch(start.network)
    if options.frozen and not transformer and (options.data or options.masks):
        raise ConfigError("--frozen leaves a network of nnU-Net's nothing to segment with", "Leave out --frozen.")
    least = 2 if options.frozen else 1
    for name, count, low in (("--steps", options.steps, 1), ("--batch", batch, least)):
        if count < low:
            raise ConfigError(f"{name} is {count}", f"It must be at least {low}.")
    for name, value in (("--minutes", options.minutes), ("--rate", options.rate)):
        if value is not None and not (isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value:g}", "It must be a number above 0.")
    if not 0 <= options.seed < 1 << 32:
        raise ConfigError(f"--seed is {options.seed}", "It must be a whole number from 0 to 4294967295.")
    if options.warm_up is not None and not 0 <= options.warm_up < 1:
        raise ConfigError(f"--warm-up is {options.warm_up:g}", "It must be at least 0 and below 1: --warm-up 0.1.")
    schedule = replace(_schedule(options, batch, transformer), seconds=60 * (options.minutes or inf))
    decay = options.layer_decay
    if decay is None:
        decay = _DECAY if transformer and start.weights else 1.0
    check_decay(decay)
    augment = options.augment or (_AUGMENT if options.table else "none")
    settings = Settings(
        schedule,
        share=options.share,
        test_share=options.test_share,
        frozen=options.frozen,
        layer_decay=decay,
        drop_path=start.drop_path,
        augment=augment,
        mirror=_axes(options.mirror, len(start.patch)),
    )
    _ = settings.policy  # so that what cannot be is said before anything is read
    return settings


def _schedule(options: argparse.Namespace, batch: int, transformer: bool) -> Schedule:
    """As the field trains transformers; nnU-Net's networks by SGD, more slowly if they were pretrained."""
    if transformer:
        usual = _PROBE_RATE if options.frozen else _BASE_RATE * batch / 256
        warm_up = _WARM_UP if options.warm_up is None else options.warm_up
        return Schedule.of_transformers(options.steps, batch, options.seed, rate=options.rate or usual, warm_up=warm_up)
    usual, early = (1e-3, 0.1) if options.weights else (1e-2, 0.0)
    warm_up = early if options.warm_up is None else options.warm_up
    return Schedule(options.steps, batch, options.seed, options.rate or usual, warm_up=warm_up)


def _axes(text: str | None, count: int) -> tuple[int, ...]:
    """Axes that are named by their numbers.

    Raises:
        ConfigError: If one is not there.
    """
    if text is None:
        return ()
    known = {str(axis) for axis in range(count)}
    words = text.split(",")
    if not set(words) <= known or len(set(words)) < len(words):
        raise ConfigError(
            f"--mirror is {shown(text)}, and images have the axes {', '.join(sorted(known))}",
            f"Name each axis once: --mirror {count - 1}.",
        )
    return tuple(sorted(map(int, words)))


def _check_data(options: argparse.Namespace) -> None:
    """See that one kind of labels is asked for.

    Raises:
        ConfigError: If none is, or several are.
    """
    if (options.table is None) == (options.data is None):
        raise ConfigError(
            "there is nothing to learn from" if options.table is None else "--table and --data contradict each other",
            "Give --table of pictures, or --data with volumes in nnU-Net's raw layout.",
        )
    asked = [f"--{name}" for name in ("labels", "classes", "masks") if getattr(options, name) is not None]
    if options.table is not None and len(asked) != 1:
        raise ConfigError(
            f"{' and '.join(asked)} contradict each other" if asked else "it is not said what to learn of the table",
            "Give one of --labels, --classes and --masks.",
        )
    if options.data is not None and asked:
        raise ConfigError(f"{asked[0]} is of pictures with a table, not of --data", f"Leave out {asked[0]}.")


def _model(options: argparse.Namespace) -> Model | None:
    """What plans say, and of volumes the labels.

    Raises:
        C2FError: If they are missing or malformed.
    """
    if options.plans and options.model:
        raise ConfigError("--plans and --model contradict each other", "Leave one of them out.")
    path: Path | None = options.plans or (options.model and options.model / "plans.json")
    if path is None:
        return None
    model = load_plans(path, options.configuration, flat=options.table is not None)
    return with_labels(model, options.data / "dataset.json") if options.data else model


def _choose(
    options: argparse.Namespace, table: Table | None, model: Model | None, settings: Settings
) -> Chosen | ChosenVolumes:
    if table is not None:
        asked = Asked(
            tuple(options.labels.split(",")) if options.labels is not None else (), options.classes, options.masks
        )
        return choose(table, asked, settings)
    if model is None:
        raise ConfigError("volumes need plans, which say how they are seen", "Name them: --plans nnUNetPlans.json.")
    return choose_volumes(options.data, model, settings)


def _load(chosen: Chosen | ChosenVolumes, start: Start, settings: Settings, folder: Path, progress: Ticks) -> Labelled:
    if isinstance(chosen, ChosenVolumes):
        return load_volumes(chosen, start.patch, settings, folder, progress)
    height, width = start.patch
    known = read_intensities(start.weights) if start.weights else None
    return load(chosen, (height, width), start.network.channels, settings, folder, known, progress)


def _check_axes(start: Start, *, pictures: bool) -> None:
    """See that a network for pictures gets pictures, and one for volumes gets volumes.

    Raises:
        ConfigError: If not.
    """
    if len(start.patch) != (2 if pictures else 3):
        sees = " x ".join(map(str, start.patch))
        raise ConfigError(
            f"the network sees images of {sees}, which are {'no pictures' if pictures else 'no volumes'}",
            "Use weights of a network for such images, or plans of another configuration (-c).",
        )


def _device(text: str) -> torch.device:
    try:
        return pick_device(TypeAdapter(Device).validate_python(text))
    except ValidationError:
        raise ConfigError(f"--device {shown(text)} is unknown", "Use auto, cpu, cuda, cuda:N or mps.") from None


def _tell(folder: Path, console: Console) -> None:
    """Measures of a finished fine-tuning, each on a line."""
    document = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    for note in document["notes"]:
        console.print(plain(note), soft_wrap=True)
    for name, measure in document["measures"].items():
        if measure["value"] is None:
            console.print(f"{plain(name)}: not defined, as the images held out are all alike", soft_wrap=True)
            continue
        low, high = (f"{end:.3f}" for end in measure["interval"])
        console.print(f"{plain(name)}: {measure['value']:.3f} (95 %: {low} to {high})", soft_wrap=True)
