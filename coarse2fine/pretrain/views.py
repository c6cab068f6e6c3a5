"""Two looks at one image: random crops of it that are enlarged, mirrored, and changed in brightness and sharpness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from coarse2fine.pretrain.borders import content_bounds

_BLUR = 2 / 224
"""Widest blur, as a share of the longest edge (Chen and others, SimCLR, 2020: sigma up to 2 of 224 pixels)."""
_REACH = 3
"""Sigmas after which a blur ends."""


@dataclass(frozen=True, slots=True)
class Looks:
    """How different two looks at an image may be.

    Attributes:
        least: Share of an image's area or volume that a crop has at least; at most it has all.
        flip: Chance of a mirror image along the last axis, and in 3D along each.
        contrast: Differences from the mean are multiplied by 1 more or less this.
        brightness: Added or taken, at most, in standard deviations of the image.
        blur: Chance of a blur.
    """

    least: float = 0.2
    flip: float = 0.5
    contrast: float = 0.4
    brightness: float = 0.4
    blur: float = 0.5

    def crop(self, images: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """A crop of each image, enlarged to its shape and perhaps mirrored; padding is never seen.

        Args:
            images: Shape (n, channels, *image), and so is the result.
            generator: Source of random numbers.
        """
        count, axes = len(images), images.ndim - 2
        edges = torch.tensor(images.shape[2:], device=images.device)
        # From the middle of the first voxel to that of the last, so that nothing beyond them is mixed in.
        low, high = ((content_bounds(images)[..., end] + shift) / edges for end, shift in ((0, 0.5), (1, -0.5)))
        part = _numbers(generator.uniform(self.least, 1, (count, 1)) ** (1 / axes), images)
        place = _numbers(generator.uniform(-1, 1, (count, axes)), images)
        sides = generator.random((count, axes)) < self.flip
        sides[:, : axes - 1] &= axes == 3
        half = (high - low) * part
        centre = low + high - 1 + place * (high - low - half)
        scale = half * _numbers(np.where(sides, -1, 1), images)
        theta = torch.cat([torch.diag_embed(scale.flip(1)), centre.flip(1)[..., None]], 2)  # x first
        grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def recolour(self, images: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """Other contrast, brightness and sharpness for each image; shape (n, channels, *image), in and out."""
        changed = torch.stack([self._blurred(image, generator) for image in images])
        axes = tuple(range(1, images.ndim))
        mean, std = images.mean(axes, keepdim=True), images.std(axes, keepdim=True)
        shape = (len(images), *[1] * len(axes))
        gain = _numbers(1 + generator.uniform(-self.contrast, self.contrast, shape), images)
        shift = _numbers(generator.uniform(-self.brightness, self.brightness, shape), images)
        return mean + (changed - mean) * gain + shift * std

    def _blurred(self, image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        sigma = generator.uniform(0.1, 1) * _BLUR * max(image.shape[1:])
        return blurred(image, float(sigma)) if generator.random() < self.blur else image


def blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """A Gaussian blur along all axes but the first, mirrored at the faces with the outermost voxels repeated.

    Args:
        image: Shape (channels, *image).
        sigma: Width in voxels.
    """
    for axis in range(1, image.ndim):
        size = image.shape[axis]
        reach = max(1, int(np.ceil(_REACH * sigma)))
        steps = torch.arange(-reach, reach + 1, device=image.device)
        weights = torch.exp(-(steps**2) / (2 * sigma**2)).to(image.dtype)
        at = torch.arange(-reach, size + reach, device=image.device) % (2 * size)
        line = image.movedim(axis, -1)[..., torch.minimum(at, 2 * size - 1 - at)]
        rows = F.conv1d(line.flatten(0, -2)[:, None], (weights / weights.sum())[None, None])
        image = rows.view(*line.shape[:-1], size).movedim(-1, axis)
    return image


def _numbers(values: np.ndarray[tuple[int, ...], np.dtype[np.floating]], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32)).to(like.device)
