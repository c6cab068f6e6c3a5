"""With which network ``c2f-finetune`` begins, and how it trains it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path

from coarse2fine.cli.finetune_data import no_plans
from coarse2fine.cli.vit_options import NAMES, new_shape, size_of
from coarse2fine.errors import ConfigError
from coarse2fine.finetune.begin import Start, image_of
from coarse2fine.finetune.rates import check_decay
from coarse2fine.finetune.run import Settings
from coarse2fine.networks.vit import ViTShape
from coarse2fine.nnunet.loading import planned_batch
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.pictures import read_picture
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.weights import is_vit, vit_shape
from coarse2fine.system.terminal import shown

_SIZE = (224, 224)  # of pictures
_BASE_RATE, _PROBE_RATE = 2.5e-4, 1e-3
_WARM_UP = 5 / 75
_DECAY = 0.65
_AUGMENT = "rand-m6-mstd0.5-inc1"


def start_of(options: argparse.Namespace, picture: Path | None, model: Model | None) -> Start:
    """The network to begin with.

    Args:
        options: Of the command line.
        picture: The first one, if it is to see pictures.
        model: What plans say, if there are some.

    Raises:
        C2FError: If the options contradict each other, or weights are missing or damaged.
    """
    _check_network(options, model)
    if not 0 <= options.drop_path < 1:
        raise ConfigError(
            f"--drop-path is {options.drop_path:g}", "It must be at least 0 and below 1: --drop-path 0.1."
        )
    weights: Path | None = options.weights
    if weights is not None and is_vit(weights):
        shape = vit_shape(weights)
        shape = shape.seeing(size_of(options.size, shape.image)) if options.size else shape
        return Start(shape, weights, options.seed, options.drop_path)
    if model is not None and options.network != "vit":
        return Start(model, weights, options.seed)
    if model is not None:
        shape = new_shape(options, model.channels, size_of(options.size, image_of(model)))
    elif picture is not None:
        shape = new_shape(options, len(read_picture(picture)), size_of(options.size, _SIZE))
    else:
        raise no_plans()
    return Start(shape, None, options.seed, options.drop_path)


def _check_network(options: argparse.Namespace, model: Model | None) -> None:
    """Refuse options of one kind of network for the other.

    Raises:
        C2FError: If the weights or plans say what an option says otherwise, or weights are missing or damaged.
    """
    weights: Path | None = options.weights
    transformer = weights is not None and is_vit(weights)
    if weights is not None and not transformer and (model is None or options.network == "vit"):
        raise ConfigError(
            f"{weights} is of a network of nnU-Net's, which its plans describe",
            "Name them, without --network vit: --plans nnUNetPlans.json.",
        )
    if options.network == "nnunet" and (transformer or model is None):
        raise ConfigError(
            f"{weights} is of a vision transformer" if transformer else "a network of nnU-Net's needs its plans",
            "Leave out --network." if transformer else "Name them: --plans nnUNetPlans.json.",
        )
    planned = model is not None and options.network != "vit" and not transformer
    for name in NAMES:
        value = getattr(options, name)
        if value is None or not (planned or (transformer and name != "size")):
            continue
        given = " ".join(map(str, value)) if isinstance(value, list) else value
        whence = f"{weights} says" if transformer else "the plans say"
        raise ConfigError(f"--{name} is {given}, but {whence} what the network is", f"Leave out --{name}.")


def settings_of(options: argparse.Namespace, start: Start, *, pictures: bool) -> Settings:
    """What the options say; the images are pictures or volumes.

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
    augment = options.augment or (_AUGMENT if pictures else "none")
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
