"""What ``c2f-pretrain`` learns from, and with which network."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from coarse2fine.cli.vit_options import NAMES, begun_with, new_shape, size_of
from coarse2fine.errors import ConfigError
from coarse2fine.io.files.readers import PICTURES
from coarse2fine.networks.vit import new_vit
from coarse2fine.nnunet.loading import load_plans, new_network
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.crops import STORE, Volumes, find_images, find_slices
from coarse2fine.pretrain.picture_crops import AREA, PictureData
from coarse2fine.pretrain.pictures import read_arrays, read_picture
from coarse2fine.pretrain.table import Table, find_pictures, read_table

_SIZE, _BATCH = 224, 64  # of pictures, where nothing else is said
_ARCHIVE = ".npz"
_OF_CROPS = ("area", "flip")
_OF_STORES = ("array", "spacing", "unit", "axes", "channel")


def plans_of(options: argparse.Namespace) -> Model | None:
    """What the plans say; None: there are none, as a vision transformer on pictures needs none.

    Raises:
        C2FError: If they are missing or malformed, or are needed and not given.
    """
    if options.plans is None and options.model is None:
        if options.network == "vit":
            return None
        raise ConfigError(
            "neither --plans nor --model is given",
            "Give nnU-Net's plans, or use --network vit, which learns from pictures without them.",
        )
    path: Path = options.plans or options.model / "plans.json"
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist",
            "Give nnUNetPlans.json of the preprocessed data (made by nnUNetv2_plan_and_preprocess), or a model folder.",
        )
    return load_plans(path, options.configuration, flat=True)


def check_meaning(options: argparse.Namespace, model: Model | None) -> None:
    """Refuse options that would have no effect.

    Raises:
        ConfigError: Naming the first.
    """
    is_vit, is_free = options.network == "vit", model is None
    rules = (
        *((name, is_vit, "--network vit") for name in NAMES),
        *((name, is_free, "--network vit without plans") for name in _OF_CROPS),
        *((name, not is_free, "stores") for name in _OF_STORES),
        ("table", is_free or model.reader == PICTURES, "pictures"),  # type: ignore[union-attr]
        ("table", options.images.suffix != _ARCHIVE, "pictures in files"),
        ("block", not is_vit, "nnU-Net's networks; transformers hide their patches (--patch)"),
    )
    for name, has_meaning, where in rules:
        if getattr(options, name) not in (None, False) and not has_meaning:
            raise ConfigError(f"--{name} has no meaning here, but for {where}", f"Leave out --{name}.")


def batch_of(options: argparse.Namespace, planned: int | None) -> int:
    """Images in a step."""
    return int(options.batch if options.batch is not None else planned or _BATCH)


def data_of(options: argparse.Namespace, model: Model | None) -> Volumes | PictureData:
    """What is learned from; of pictures only the names are read.

    Raises:
        C2FError: If there is nothing, or it does not fit.
    """
    sigma = float("inf") if options.centre is None else options.centre
    if model is not None:
        found = find_slices(_table(options)) if model.reader == PICTURES else find_images(options.images, model)
        planned = model.patch[1:] if model.flat else model.patch
        said = {name: value for name in _OF_STORES if (value := getattr(options, name)) is not None}
        if "spacing" in said:
            said["spacing"] = tuple(said["spacing"])
        if said and not any(case.suffix == STORE for case in found):
            raise ConfigError(f"--{next(iter(said))} has no meaning here, but for stores", "Leave it out.")
        slices = options.size is not None and len(options.size) == 2
        return Volumes(found, model, size_of(options.size, planned[-2:] if slices else planned), sigma, said)
    area = AREA if options.area is None else (options.area[0], options.area[1])
    if not 0 < area[0] <= area[1] <= 1:
        raise ConfigError(f"--area is {area[0]:g} {area[1]:g}", f"Give two shares: --area {AREA[0]:g} {AREA[1]:g}.")
    if options.images.suffix == _ARCHIVE:
        pictures = read_arrays(options.images)
        height, width = size_of(options.size, pictures.pixels.shape[2:])
        return PictureData(pictures.table, (height, width), pictures.pixels, area, sigma, options.flip)
    height, width = size_of(options.size, (_SIZE, _SIZE))
    return PictureData(_table(options), (height, width), None, area, sigma, options.flip)


def _table(options: argparse.Namespace) -> Table:
    return find_pictures(options.images) if options.table is None else read_table(options.table, options.images)


def network_of(options: argparse.Namespace, model: Model | None, data: Volumes | PictureData) -> nn.Module:
    """A network with random weights of the seed, and a transformer with the positions of ``--weights``.

    Raises:
        C2FError: If its numbers do not fit together, or weights are missing or damaged.
    """
    if options.network != "vit":
        if model is None:
            raise TypeError("nnU-Net's networks have plans")
        return new_network(model, model.channels, options.seed)
    if isinstance(data, Volumes):
        channels, image = data.model.channels, data.image
    else:
        first = read_picture(data.table.files[0]) if data.pixels is None else data.pixels[0]
        channels, image = len(first), data.shape
    return new_vit(begun_with(new_shape(options, channels, image), options.weights), options.seed)
