"""What is put upon a pretrained network: a linear layer for classes of images, a light decoder for those of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from coarse2fine.finetune.tasks import Segmentation, Task
from coarse2fine.networks.features import pooled, width_of
from coarse2fine.networks.vit import ViT

_INNER = 64
"""Channels of the decoder where it begins; they halve whenever the resolution doubles, down to an eighth."""
_LEVELS = 4
"""Blocks of a transformer whose tokens the decoder sees, evenly spaced, as UPerNet is put upon blocks 3, 5, 7, 11."""


class Tuned(nn.Module):
    """A network with a head.

    Attributes:
        network: As it was pretrained.
        frozen: Whether the network stays as it is, so that the head is a probe of it.
    """

    def __init__(self, network: nn.Module, frozen: bool = False) -> None:
        super().__init__()
        self.network, self.frozen = network, frozen
        if frozen:
            network.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """A frozen network is never in training: it drops nothing, and its statistics stay."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self


class Classifier(Tuned):
    """A linear layer on the mean of the deepest features; of a network with a decoder only the encoder is trained.

    Args:
        network: Any that ``encode`` takes.
        outputs: Of the head.
        frozen: Then features are normalised over the batch first, as He and others (MAE) probe theirs.
    """

    def __init__(self, network: nn.Module, outputs: int, frozen: bool = False) -> None:
        super().__init__(network, frozen)
        width = width_of(network)
        self.normalise = nn.BatchNorm1d(width, affine=False) if frozen else nn.Identity()
        self.head = nn.Linear(width, outputs)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        if not isinstance(network, ViT):
            used = {id(one) for one in network.encoder.parameters()}  # type: ignore[union-attr]
            for one in network.parameters():
                one.requires_grad_(one.requires_grad and id(one) in used)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Shape (n, channels, *image) to (n, outputs)."""
        logits: torch.Tensor = self.head(self.normalise(pooled(self.network, images)))
        return logits


class Segmenter(Tuned):
    """A network of nnU-Net's, which has a decoder of its own with an output for each class."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Shape (n, channels, *image) to (n, outputs, *image)."""
        logits: torch.Tensor = self.network(images)
        return logits


class TokenSegmenter(Tuned):
    """A decoder for a transformer: tokens of some blocks, side by side, are brought to the image's resolution.

    At the last step the image itself joins in, as in UNETR (Hatamizadeh and others, WACV 2022), for sharp borders.

    Args:
        network: The transformer.
        outputs: Classes.
        frozen: Whether only the decoder learns.
    """

    network: ViT

    def __init__(self, network: ViT, outputs: int, frozen: bool = False) -> None:
        super().__init__(network, frozen)
        shape = network.shape
        self.levels = sorted({int(depth) for depth in np.linspace(0, shape.depth, _LEVELS + 1).round()} - {0})
        convolution = nn.Conv3d if len(shape.image) == 3 else nn.Conv2d
        norm = nn.InstanceNorm3d if len(shape.image) == 3 else nn.InstanceNorm2d
        doublings = int(np.ceil(np.log2(max(shape.patch))))
        widths = [max(_INNER >> step, _INNER // 8) for step in range(doublings + 1)]
        self.fuse = convolution(len(self.levels) * shape.width, widths[0], 1)
        pairs = zip(widths, [*widths[1:-1], widths[-1]], strict=False)

        def step(inner: int, outer: int) -> nn.Sequential:
            return nn.Sequential(convolution(inner, outer, 3, padding=1), norm(outer, affine=True), nn.GELU())

        self.steps = nn.ModuleList(step(*pair) for pair in pairs)
        self.sizes = _sizes(shape.grid, shape.patch, doublings)
        self.join = step(widths[doublings] + shape.channels, widths[-1])
        self.head = convolution(widths[-1], outputs, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Shape (n, channels, *image) to (n, outputs, *image)."""
        network = self.network
        tokens, seen = network.embed(images), []
        for number, block in enumerate(network.blocks, 1):
            tokens = block(tokens)
            if number in self.levels:
                seen.append(network.to_grid(network.norm(tokens)))
        values = self.fuse(torch.cat(seen, 1))
        for size, step in zip(self.sizes, self.steps, strict=True):
            values = step(_resize(values, size))
        logits: torch.Tensor = self.head(self.join(torch.cat([values, images], 1)))
        return logits


def put_head(network: nn.Module, task: Task, *, frozen: bool = False, seed: int = 0) -> Tuned:
    """The network with what the task needs.

    Args:
        network: A ``ViT``, or one of nnU-Net's, which has an output for each class if it is to segment.
        task: What is to be learned.
        frozen: Whether the network stays as it is.
        seed: Of the head's weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not isinstance(task, Segmentation):
            return Classifier(network, task.outputs, frozen)
        if isinstance(network, ViT):
            return TokenSegmenter(network, task.outputs, frozen)
        return Segmenter(network)


def _sizes(grid: Sequence[int], patch: Sequence[int], doublings: int) -> list[tuple[int, ...]]:
    """Shapes on the way from tokens to the image, each at most twice the one before along an axis."""
    return [
        tuple(places * min(1 << step, edge) for places, edge in zip(grid, patch, strict=True))
        for step in range(1, doublings + 1)
    ]


def _resize(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(values, tuple(size), mode="trilinear" if len(size) == 3 else "bilinear", align_corners=False)
