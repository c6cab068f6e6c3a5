"""A vision transformer for images of any number of dimensions.

After Dosovitskiy and others, ICLR 2021, with fixed positions as in He and others, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from coarse2fine.errors import ConfigError

_MOST, _DEEPEST = 1 << 16, 1000  # what nobody means who does not err


@dataclass(frozen=True, slots=True)
class ViTShape:
    """All that a vision transformer's weights depend on but the seed.

    Attributes:
        channels: Of images.
        image: Shape of images, without channels; two or three axes.
        patch: Edge of patches along each axis, which divides the image's.
        width: Numbers of a token.
        depth: Blocks.
        heads: Of attention, which divide the width.
        learned: Grid of the images that a pretraining began with, whose positions are interpolated to this one; None:
            the same.

    Raises:
        ConfigError: If patches do not divide the image, or heads the width, or a number cannot be.
    """

    channels: int
    image: tuple[int, ...]
    patch: tuple[int, ...]
    width: int = 192
    depth: int = 6
    heads: int = 3
    learned: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, value, most in (
            ("channels", self.channels, _MOST),
            ("size", min(self.image, default=0), _MOST),
            ("patch", min(self.patch, default=0), _MOST),
            ("width", self.width, _MOST),
            ("depth", self.depth, _DEEPEST),
            ("heads", self.heads, _MOST),
        ):
            if not 1 <= value <= most:
                raise ConfigError(f"a vision transformer's {name} is {value}", f"It must be from 1 to {most}.")
        if len(self.image) != len(self.patch) or any(
            size % edge for size, edge in zip(self.image, self.patch, strict=False)
        ):
            raise ConfigError(
                f"images of {_times(self.image)} are not divisible into patches of {_times(self.patch)}",
                "Choose patches (--patch) whose edges divide the image's.",
            )
        if self.width % self.heads or self.width % (2 * len(self.image)):
            raise ConfigError(
                f"a width of {self.width} is not divisible by {self.heads} heads and {2 * len(self.image)}",
                f"Use a multiple of {int(np.lcm(self.heads, 2 * len(self.image)))} (--width).",
            )
        if prod(self.grid) > _MOST:
            raise ConfigError(
                f"images of {_times(self.image)} have {prod(self.grid)} patches of {_times(self.patch)}",
                f"Choose larger ones (--patch), of which there are at most {_MOST}.",
            )
        first = self.grid if self.learned is None else self.learned
        if len(first) != len(self.grid) or min(first) < 1 or prod(first) > _MOST:
            raise ConfigError(
                f"positions of {_times(first)} patches do not fit images of {_times(self.image)}",
                f"Give as many axes, and at most {_MOST} patches.",
            )

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple(size // edge for size, edge in zip(self.image, self.patch, strict=True))

    def seeing(self, image: Sequence[int]) -> ViTShape:
        """The shape of the same transformer for images of another size, with the positions that it has learned with.

        Raises:
            ConfigError: If that cannot be, see ``ViTShape``.
        """
        if len(image) != len(self.image):
            raise ConfigError(
                f"images of {_times(image)} for a transformer that has learned from {_times(self.image)}",
                f"Give {len(self.image)} edges.",
            )
        first = self.learned or self.grid
        other = replace(self, image=tuple(image), learned=first)
        return other if other.grid != first else replace(other, learned=None)


class ViT(nn.Module):
    """Patches in, tokens out.

    Args:
        shape: Of images and network.
        drop_path: Chance that the last block is left out for an image while training; of earlier ones less, linearly.

    Attributes:
        shape: As given.
        blocks: The transformer's, whose outputs have shape (n, tokens, width), the class token first.
        norm: After the last one.
    """

    positions: torch.Tensor

    def __init__(self, shape: ViTShape, drop_path: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.project = nn.Linear(shape.channels * prod(shape.patch), shape.width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        first = shape.learned or shape.grid
        positions = interpolate(sine_positions(first, shape.width), first, shape.grid)
        self.register_buffer("positions", positions, persistent=False)
        chances = np.linspace(0, drop_path, shape.depth)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, float(chance)) for chance in chances)
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.apply(initialise)
        nn.init.normal_(self.class_token, std=0.02)

    def embed(self, images: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """What the first block gets to see.

        Args:
            images: Shape (n, channels, *image).
            keep: Numbers of the patches to look at, in order of the last axis first, shape (n, kept); None: all.

        Returns:
            The class token and a token for each patch that is kept; shape (n, 1 + kept, width).
        """
        tokens = self.project(patches_of(images, self.shape.patch)) + self.positions
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        return torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)

    def tokens(self, images: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """The same after all blocks and the last norm."""
        tokens = self.embed(images, keep)
        for block in self.blocks:
            tokens = block(tokens)
        normed: torch.Tensor = self.norm(tokens)
        return normed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """All tokens."""
        return self.tokens(images)

    def to_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (n, 1 + patches, width) back in their places, without the class token; shape (n, width, *grid)."""
        return tokens[:, 1:].transpose(1, 2).unflatten(2, self.shape.grid)


class Block(nn.Module):
    """Attention and a perceptron, each added to what comes in."""

    def __init__(self, width: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Shape (n, tokens, width), in and out."""
        query, key, value = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self._drop(self.out(seen))
        return tokens + self._drop(self.mlp(self.norm2(tokens)))

    def _drop(self, added: torch.Tensor) -> torch.Tensor:
        """Stochastic depth (Huang and others, ECCV 2016): nothing is added for some images."""
        if not (self.training and self.drop_path):
            return added
        stays = 1 - self.drop_path
        return added * added.new_empty(len(added), 1, 1).bernoulli_(stays) / stays


def patches_of(images: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """Images (n, channels, *image) as rows of voxels; shape (n, patches, voxels of a patch times channels)."""
    axes = len(patch)
    for axis, edge in enumerate(patch):
        images = images.unflatten(2 + 2 * axis, (-1, edge))
    where, inside = (range(2 + first, 2 + 2 * axes, 2) for first in (0, 1))
    return images.permute(0, *where, *inside, 1).flatten(1, axes).flatten(2)


def images_of(rows: torch.Tensor, grid: Sequence[int], patch: Sequence[int]) -> torch.Tensor:
    """The inverse of ``patches_of``."""
    axes = len(grid)
    values = rows.unflatten(2, (*patch, -1)).unflatten(1, tuple(grid))
    order = [axis for pair in zip(range(1, 1 + axes), range(1 + axes, 1 + 2 * axes), strict=True) for axis in pair]
    values = values.permute(0, 1 + 2 * axes, *order)
    for axis in range(axes):
        values = values.flatten(2 + axis, 3 + axis)
    return values


def sine_positions(grid: Sequence[int], width: int) -> torch.Tensor:
    """Sines and cosines of each axis' position in an equal share of the width; shape (places, width)."""
    share = width // len(grid)
    rates = 10_000.0 ** (-np.arange(share // 2) / (share / 2))
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, len(grid))
    angles = places[..., None] * rates
    waves = np.concatenate([np.sin(angles), np.cos(angles)], -1).reshape(len(places), width)
    return torch.from_numpy(waves.astype(np.float32))


def interpolate(positions: torch.Tensor, grid: Sequence[int], other: Sequence[int]) -> torch.Tensor:
    """Positions of one grid for another over the same image: bicubic in 2D, trilinear in 3D.

    As He and others (MAE) and Touvron and others (DeiT) do for images of another size; the class token has none.

    Args:
        positions: Shape (places, width).
        grid: That they are of; two or three axes.
        other: That they are wanted for.

    Returns:
        Shape (places of the other, width).
    """
    if tuple(grid) == tuple(other):
        return positions
    values = positions.T.unflatten(1, tuple(grid))[None]
    mode = {2: "bicubic", 3: "trilinear"}[len(grid)]
    return F.interpolate(values, tuple(other), mode=mode, align_corners=False)[0].flatten(1).T.contiguous()


def initialise(module: nn.Module) -> None:
    """Weights that a training begins with: Xavier's, uniform, and no biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Makes layers with weights of a seed, and leaves PyTorch's own random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def new_vit(shape: ViTShape, seed: int, drop_path: float = 0.0) -> ViT:
    """A vision transformer with weights that a training begins with."""
    with seeded(seed):
        return ViT(shape, drop_path)


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
