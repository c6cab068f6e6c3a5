"""Options that describe a vision transformer, as ``c2f-pretrain`` and ``c2f-finetune`` have them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from coarse2fine.errors import ConfigError
from coarse2fine.networks.vit import ViTShape
from coarse2fine.pretrain.weights import is_vit, vit_shape
from coarse2fine.system.terminal import shown

NAMES = ("size", "patch", "width", "depth", "heads")
_PATCH = {2: 16, 3: 8}  # most of a patch's edge, by the number of axes
_INTERPOLATION = {2: "bicubic", 3: "trilinear"}


def size_of(given: Sequence[int] | None, usual: Sequence[int]) -> tuple[int, ...]:
    """Shape of images: the usual one unless ``--size`` says another, by one number or one for each axis.

    Raises:
        ConfigError: If it has too many or too few numbers.
    """
    size = tuple(given or usual)
    if len(size) not in (1, len(usual)):
        raise ConfigError(
            f"--size {shown(list(size))} has {len(size)} numbers", f"Images have {len(usual)} axes: give one for each."
        )
    return size * len(usual) if len(size) == 1 else size


def new_shape(options: argparse.Namespace, channels: int, image: tuple[int, ...]) -> ViTShape:
    """A transformer for images of a shape: ViT-S unless options say another.

    Patches are as large as usual, or less where they would not divide the image.

    Raises:
        ConfigError: If numbers cannot be or do not fit together.
    """
    given: list[int] = list(options.patch or [])
    if min(image) < 1 or min(given, default=1) < 1:
        raise ConfigError(f"--size {shown(list(image))} or --patch {shown(given)} is no size", "Use numbers above 0.")
    most = _PATCH.get(len(image), 1)
    usual = [max(edge for edge in range(1, most + 1) if size % edge == 0) for size in image]
    patch = given * len(image) if len(given) == 1 else given or usual
    chosen = {name: value for name in ("width", "depth", "heads") if (value := getattr(options, name)) is not None}
    return ViTShape(channels, image, tuple(patch), **{"width": 384, "depth": 12, "heads": 6, **chosen})


def begun_with(shape: ViTShape, weights: Path | None) -> ViTShape:
    """The same shape with the positions of weights that it begins with, if these are of the same kind.

    Raises:
        ModelError: If the weights are missing or damaged.
    """
    if weights is None or not is_vit(weights):
        return shape
    first = vit_shape(weights)
    alike = replace(first, image=shape.image, learned=None) == shape if first.patch == shape.patch else False
    return first.seeing(shape.image) if alike else shape


def told_positions(shape: ViTShape) -> str | None:
    """That positions are interpolated, if they are."""
    if shape.learned is None:
        return None
    before, after = (" x ".join(map(str, grid)) for grid in (shape.learned, shape.grid))
    return f"positions of {before} patches are interpolated to {after} ({_INTERPOLATION[len(shape.grid)]})"
