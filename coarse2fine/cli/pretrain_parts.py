"""What ``c2f-pretrain`` learns from, and with which network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from coarse2fine.errors import ConfigError
from coarse2fine.io.files.readers import PICTURES
from coarse2fine.networks.vit import ViTShape, new_vit
from coarse2fine.nnunet.loading import load_plans, new_network
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.crops import STORE, Volumes, find_images, find_slices
from coarse2fine.pretrain.picture_crops import AREA, PictureData
from coarse2fine.pretrain.pictures import read_arrays, read_picture
from coarse2fine.pretrain.table import Table, find_pictures, read_table
from coarse2fine.system.terminal import shown

_SIZE, _BATCH = 224, 64  # of pictures, where nothing else is said
_PATCH = {2: 16, 3: 8}  # most of a patch's edge, by the number of axes
_ARCHIVE = ".npz"
_OF_VIT = ("size", "patch", "width", "depth", "heads")
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
        *((name, is_vit, "--network vit") for name in _OF_VIT),
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
        size, planned = options.size or [], model.patch[1:] if model.flat else model.patch
        said = {name: value for name in _OF_STORES if (value := getattr(options, name)) is not None}
        if "spacing" in said:
            said["spacing"] = tuple(said["spacing"])
        if said and not any(case.suffix == STORE for case in found):
            raise ConfigError(f"--{next(iter(said))} has no meaning here, but for stores", "Leave it out.")
        shape = tuple(size * len(planned) if len(size) == 1 else size or planned)
        return Volumes(found, model, shape, sigma, said)
    area = AREA if options.area is None else (options.area[0], options.area[1])
    if not 0 < area[0] <= area[1] <= 1:
        raise ConfigError(f"--area is {area[0]:g} {area[1]:g}", f"Give two shares: --area {AREA[0]:g} {AREA[1]:g}.")
    if options.images.suffix == _ARCHIVE:
        pictures = read_arrays(options.images)
        shape = _flat_size(options.size or pictures.pixels.shape[2:])
        return PictureData(pictures.table, shape, pictures.pixels, area, sigma, options.flip)
    return PictureData(_table(options), _flat_size(options.size or [_SIZE]), None, area, sigma, options.flip)


def _table(options: argparse.Namespace) -> Table:
    return find_pictures(options.images) if options.table is None else read_table(options.table, options.images)


def _flat_size(size: Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    if len(size) > 2:
        raise ConfigError(f"--size {shown(list(size))} has {len(size)} numbers", "Pictures have a height and a width.")
    return int(size[0]), int(size[-1])


def network_of(options: argparse.Namespace, model: Model | None, data: Volumes | PictureData) -> nn.Module:
    """A network with random weights of the seed.

    Raises:
        C2FError: If its numbers do not fit together.
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
    return new_vit(_vit_shape(options, channels, image), options.seed)


def _vit_shape(options: argparse.Namespace, channels: int, image: tuple[int, ...]) -> ViTShape:
    """Patches are as large as usual, or less where they would not divide the image."""
    given: list[int] = list(options.patch or [])
    if min(image) < 1 or min(given, default=1) < 1:
        raise ConfigError(f"--size {shown(list(image))} or --patch {shown(given)} is no size", "Use numbers above 0.")
    most = _PATCH.get(len(image), 1)
    usual = [max(edge for edge in range(1, most + 1) if size % edge == 0) for size in image]
    patch = given * len(image) if len(given) == 1 else given or usual
    chosen = {name: value for name in ("width", "depth", "heads") if (value := getattr(options, name)) is not None}
    return ViTShape(channels, image, tuple(patch), **{"width": 384, "depth": 12, "heads": 6, **chosen})
