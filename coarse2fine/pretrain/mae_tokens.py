"""Masked autoencoding by a vision transformer, which sees visible patches only; a small decoder paints the others.

After He and others, CVPR 2022. The decoder is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm, prod

import numpy as np
import torch
from torch import nn

from coarse2fine.errors import ConfigError
from coarse2fine.networks.vit import Block, ViT, ViTShape, initialise, patches_of, sine_positions
from coarse2fine.pretrain.blocks import Blocks
from coarse2fine.pretrain.masking import Masking
from coarse2fine.pretrain.objective import Batch, Views

_HEAD = 32  # width of a head, as in the original's decoder
_WIDTH = 512  # of a decoder, of encoders at least 384 wide
_LARGE, _DEEP, _SHALLOW = 768, 8, 2  # depth of decoders, of encoders that are at least so wide, and of others


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Of a decoder.

    Attributes:
        width: Numbers of a token.
        depth: Blocks.
        heads: Of attention.
    """

    width: int
    depth: int
    heads: int

    @classmethod
    def of(
        cls, shape: ViTShape, width: int | None = None, depth: int | None = None, heads: int | None = None
    ) -> DecoderShape:
        """What is usual for an encoder, unless something else is said.

        It is 512 wide and 8 blocks deep for encoders of at least 768 (ViT-B), 2 deep for those of 384 (ViT-S). Narrower
        ones get two thirds of their own width.

        Raises:
            ConfigError: If the width is not divisible by heads and axes.
        """
        axes = 2 * len(shape.image)
        if width is None:
            step = lcm(heads or _HEAD, axes)
            width = step * max(1, round((_WIDTH if shape.width >= 384 else 2 / 3 * shape.width) / step))
        heads = heads or max(1, width // _HEAD)
        if width < 1 or heads < 1 or width % heads or width % axes:
            raise ConfigError(
                f"a decoder {width} wide is not divisible by {heads} heads and {axes}",
                f"Use a multiple of {lcm(max(heads, 1), axes)}.",
            )
        depth = (_DEEP if shape.width >= _LARGE else _SHALLOW) if depth is None else depth
        if depth < 1:
            raise ConfigError(f"a decoder has {depth} blocks", "It needs at least 1.")
        return cls(width, depth, heads)


class Decoder(nn.Module):
    """Tokens of visible patches in, rows of all patches out.

    Args:
        encoder: Whose tokens come in.
        shape: Of the decoder.
        outputs: Numbers of a row; None: the voxels of a patch, times channels.
    """

    positions: torch.Tensor

    def __init__(self, encoder: ViTShape, shape: DecoderShape, outputs: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.width, shape.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.register_buffer("positions", sine_positions(encoder.grid, shape.width), persistent=False)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.paint = nn.Linear(shape.width, outputs or encoder.channels * prod(encoder.patch))
        self.apply(initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Paint.

        Args:
            tokens: The class token and those of visible patches; shape (n, 1 + kept, width of the encoder).
            keep: Which these are; shape (n, kept).

        Returns:
            Shape (n, patches, outputs).
        """
        class_token, visible = self.embed(tokens).split([1, keep.shape[1]], 1)
        every = self.mask_token.expand(len(tokens), len(self.positions), -1)
        every = every.scatter(1, keep[..., None].expand_as(visible), visible) + self.positions
        every = torch.cat([class_token, every], 1)
        for block in self.blocks:
            every = block(every)
        painted: torch.Tensor = self.paint(self.norm(every[:, 1:]))
        return painted


@dataclass(frozen=True, slots=True, eq=False)
class TokenAutoencoding:
    """Squared error of what a decoder makes of patches that a vision transformer does not see.

    Attributes:
        masking: What is hidden; its blocks are the transformer's patches, see ``patch_blocks``.
        shape: Of the transformer.
        decoder: Is trained with it.
        normalised: Whether each patch of each channel is normalised before it is compared.
        everywhere: Whether visible patches count, too.
    """

    masking: Masking
    shape: ViTShape
    decoder: Decoder
    normalised: bool = False
    everywhere: bool = False

    @property
    def heads(self) -> nn.Module:
        """The decoder."""
        return self.decoder

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        """The image, which patches are visible, and what is to be painted; each image has a mask of its own.

        Grids hide the same patches of all images: of an odd number of patches they leave now more, now fewer.
        """
        images = batch["images"]
        hidden = hidden_patches(self.masking, len(images), generator).to(images.device)
        targets = self.masking.blocks.normalise(images) if self.normalised else images
        return {
            "images": images,
            "keep": visible_patches(hidden),
            "hidden": hidden,
            "target": patches_of(targets, self.shape.patch),
        }

    def loss(self, network: nn.Module, views: Views) -> torch.Tensor:
        """The mean over patches that count, over their voxels, and over channels."""
        if not isinstance(network, ViT):
            raise TypeError("only a ViT sees single patches")
        painted = self.decoder(network.tokens(views["images"], views["keep"]), views["keep"])
        errors = ((painted - views["target"]) ** 2).mean(2)
        return errors.mean() if self.everywhere else errors[views["hidden"]].mean()


def patch_blocks(shape: ViTShape) -> Blocks:
    """The patches of a transformer as blocks that masks are drawn of."""
    return Blocks(tuple((edge,) * count for edge, count in zip(shape.patch, shape.grid, strict=True)))


def hidden_patches(masking: Masking, count: int, generator: np.random.Generator) -> torch.Tensor:
    """Masks of some images, in all of which as much is hidden; shape (count, patches), True is hidden."""
    masks = [masking.draw_blocks(generator).ravel() for _ in range(1 if masking.kind == "grid" else count)]
    return torch.from_numpy(np.stack(masks if len(masks) == count else masks * count))


def visible_patches(hidden: torch.Tensor) -> torch.Tensor:
    """Numbers of the others, in their order; shape (n, kept)."""
    return (~hidden).nonzero()[:, 1].unflatten(0, (len(hidden), -1))
