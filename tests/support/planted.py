"""Networks with weights by hand that find a bright object, and images in which one is planted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import STRIDES, write_model
from torch import nn

BRIGHT = 6.0  # of the object, in standard deviations of the noise around it
EDGE = 8
EPSILON = 100.0


def planted(space: Sequence[int], *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright cube somewhere; shape (1, 1, *space), and the cube's voxels, shape (*space)."""
    rng = np.random.default_rng(seed)
    image, inside = rng.normal(0, 1, space).astype(np.float32), np.zeros(space, bool)
    corner = [int(rng.integers(0, size - EDGE + 1)) for size in space]
    inside[tuple(slice(start, start + EDGE) for start in corner)] = True
    image[inside] += BRIGHT
    return torch.from_numpy(image)[None, None], torch.from_numpy(inside)


class Cnn(nn.Module):
    """Classes by bright (0) and by dark (1) spots: local means beyond a threshold, pooled."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
        self.spots = nn.Sequential(convolution(1, 2, 4, stride=2, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.spots[0].weight.fill_(1 / 4**dimensions)
            self.spots[0].weight[1] *= -1
            self.spots[0].bias.fill_(-BRIGHT / 3)
            self.head.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
            self.head.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.spots(images).flatten(2).mean(2))


class Vit(nn.Module):
    """A class token that attends to bright patches, and reads how bright they are."""

    def __init__(self, dimensions: int, *, patch: int = 4, class_token: bool = True) -> None:
        super().__init__()
        self.embed = (nn.Conv2d, nn.Conv3d)[dimensions - 2](1, 2, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, 2)) if class_token else None
        self.norm1 = nn.Identity()
        self.query = nn.Parameter(torch.tensor([2.0, 0.0]))
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.embed.weight.fill_(1 / patch**dimensions)
            self.embed.weight[1] *= -1
            self.embed.bias.zero_()
            self.head.weight.copy_(torch.eye(2))
            self.head.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        if self.token is not None:
            tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.norm1(tokens)
        attention = torch.softmax(tokens @ self.query, 1)
        return self.head((attention[..., None] * tokens).sum(1))


def write_spot_model(folder: Path, **options: Any) -> Path:
    """An nnU-Net model folder whose network finds bright voxels, as far as its deepest features tell.

    Every layer passes its first channel on. Normalisation takes off the mean of a tile, but hardly changes the scale.
    """
    write_model(folder, norm_options={"eps": EPSILON, "affine": True}, **options)
    for checkpoint in folder.glob("fold_*/checkpoint_final.pth"):
        content = torch.load(checkpoint, weights_only=False)
        for name, value in content["network_weights"].items():
            pass_on(name, value)
        torch.save(content, checkpoint)
    return folder


def pass_on(name: str, value: torch.Tensor) -> None:
    """Set a layer's weights so."""
    value.zero_()
    head = "seg_layers" in name
    if name.endswith("bias"):
        value[0] = float(head)  # of the background: foreground is what is brighter than that
    elif value.ndim == 1:
        value.fill_(EPSILON**0.5)
    elif "transpconvs" in name:
        value[0, 0] = 1
    else:
        value[(int(head), 0, *_taps(name, value.shape[2:]))] = 1
        value[int(head), 0] /= value[int(head), 0].sum()


def _taps(name: str, kernel: torch.Size) -> tuple[slice, ...]:
    """Where a kernel looks: at its middle; where it steps over voxels, at all that it steps over."""
    stage = re.search(r"encoder\.stages\.(\d)", name)
    steps = (STRIDES[int(stage[1])] if stage else [1, 1, 1])[-len(kernel) :]
    return tuple(slice(size // 2, size // 2 + step) for size, step in zip(kernel, steps, strict=True))
