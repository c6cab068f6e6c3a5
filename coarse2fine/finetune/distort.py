"""Distortions of grey images in any number of dimensions, for policies that choose among them.

Geometric ones act in the plane of the last two axes, on labels too; what comes in from outside is an image's mean, and
background. The others act between the lowest and the highest value of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, radians, sin

import torch
from torch.nn import functional as F

Pair = tuple[torch.Tensor, torch.Tensor | None]
"""An image, shape (channels, *image), and its labels, shape (*image), if every voxel has one."""


@dataclass(frozen=True, slots=True)
class Strength:
    """How much, from 0 to 1, and in which of two directions.

    Attributes:
        much: 0 leaves (nearly) everything as it is, unless ``falls``.
        sign: 1 or -1, where there are two directions.
        falls: Whether photometric distortions are meant as in the first AutoAugment: 0 distorts most or least by kind.
    """

    much: float
    sign: int
    falls: bool = False

    @property
    def factor(self) -> float:
        """Of brightness, contrast and sharpness; 1 changes nothing."""
        return 0.1 + 1.8 * self.much if self.falls else max(0.1, 1 + 0.9 * self.much * self.sign)


Distortion = Callable[[Pair, Strength], Pair]


def rotate(pair: Pair, strength: Strength) -> Pair:
    """By up to 30 degrees."""
    angle = strength.sign * radians(30 * strength.much)
    return _move(pair, ((cos(angle), -sin(angle)), (sin(angle), cos(angle))), (0, 0))


def shear_x(pair: Pair, strength: Strength) -> Pair:
    """Rows against each other, by up to 0.3 of their distance."""
    return _move(pair, ((1, 0.3 * strength.much * strength.sign), (0, 1)), (0, 0))


def shear_y(pair: Pair, strength: Strength) -> Pair:
    """Columns against each other."""
    return _move(pair, ((1, 0), (0.3 * strength.much * strength.sign, 1)), (0, 0))


def translate_x(pair: Pair, strength: Strength) -> Pair:
    """Along the last axis, by up to 0.45 of its size."""
    return _move(pair, ((1, 0), (0, 1)), (0.45 * strength.much * strength.sign, 0))


def translate_y(pair: Pair, strength: Strength) -> Pair:
    """Along the last axis but one."""
    return _move(pair, ((1, 0), (0, 1)), (0, 0.45 * strength.much * strength.sign))


def brightness(pair: Pair, strength: Strength) -> Pair:
    """Mixed with black, or away from it."""
    return _change(pair, lambda image: image * strength.factor)


def contrast(pair: Pair, strength: Strength) -> Pair:
    """Mixed with the mean, or away from it."""
    return _change(pair, lambda image: image.mean() + (image - image.mean()) * strength.factor)


def sharpness(pair: Pair, strength: Strength) -> Pair:
    """Mixed with a smoothed image, or away from it; the middle of the smoothing's 3 x 3 kernel counts five times."""

    def sharpen(image: torch.Tensor) -> torch.Tensor:
        axes = image.ndim - 1
        pool = F.avg_pool3d if axes == 3 else F.avg_pool2d
        mean = pool(image[None], 3, 1, 1, count_include_pad=False)[0]
        smooth = (3**axes * mean + 4 * image) / (3**axes + 4)
        return smooth + (image - smooth) * strength.factor

    return _change(pair, sharpen)


def posterise(pair: Pair, strength: Strength) -> Pair:
    """Fewer grey values: of 4 bits, down to 1."""
    bits = max(1, int(4 * strength.much) if strength.falls else 4 - int(4 * strength.much))
    levels = 1 << bits
    return _change(pair, lambda image: (image * levels).floor().clamp(max=levels - 1) / (levels - 1))


def solarise(pair: Pair, strength: Strength) -> Pair:
    """Values above a threshold are inverted, of all of them at most."""
    threshold = strength.much if strength.falls else 1 - strength.much
    return _change(pair, lambda image: torch.where(image > threshold, 1 - image, image))


DISTORTIONS: tuple[Distortion, ...] = (
    rotate,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    brightness,
    contrast,
    sharpness,
    posterise,
    solarise,
)


def _change(pair: Pair, change: Callable[[torch.Tensor], torch.Tensor]) -> Pair:
    """Change an image's values, as numbers from 0 to 1."""
    image, labels = pair
    low, high = image.min(), image.max()
    if low == high:
        return pair
    return change((image - low) / (high - low)).clamp(0, 1) * (high - low) + low, labels


def _move(pair: Pair, matrix: tuple[tuple[float, float], tuple[float, float]], shift: tuple[float, float]) -> Pair:
    """Put at each place what was elsewhere: at ``matrix @ place + shift``.

    Args:
        pair: Image and labels.
        matrix: Of places (x, y) in voxels from the middle.
        shift: Of (x, y), in sizes of the image.
    """
    image, labels = pair
    axes = image.ndim - 1
    height, width = image.shape[-2:]
    # PyTorch's places go from -1 to 1 along each axis, the last axis first.
    theta = torch.eye(axes, axes + 1)
    theta[:2, :2] = torch.tensor(matrix) * torch.tensor([[1, height / width], [width / height, 1]])
    theta[:2, -1] = 2 * torch.tensor(shift)
    grid = F.affine_grid(theta[None].to(image), [1, 1, *image.shape[1:]], align_corners=False)
    middle = image.mean()
    moved = F.grid_sample((image - middle)[None], grid, align_corners=False)[0] + middle
    if labels is None:
        return moved, None
    return moved, F.grid_sample(labels[None, None].to(grid), grid, "nearest", align_corners=False)[0, 0].to(labels)
