"""Masked records: hidden patches of an image are painted, hidden words of its report found with the image's help.

After Zhou and others, "Advancing radiograph representation learning with masked record modeling", ICLR 2023; losses at
several depths after Ren and others, DeepMIM, 2023. Unlike in the first one's code, only hidden words count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from coarse2fine.errors import ConfigError
from coarse2fine.networks.vit import ViT, ViTShape, initialise, patches_of
from coarse2fine.pretrain.blocks import Blocks
from coarse2fine.pretrain.mae_tokens import Decoder, DecoderShape, hidden_patches, visible_patches
from coarse2fine.pretrain.masking import Masking
from coarse2fine.pretrain.objective import Batch, Views
from coarse2fine.pretrain.records.text import Reader, TextShape
from coarse2fine.pretrain.records.words import RATIO, hide_words


class MrmHeads(nn.Module):
    """Decoders of images after some blocks, and the network that finds words.

    Args:
        shape: Of the transformer.
        decoder: Of decoders.
        blocks: After which blocks there is one, counted from 1; the last is one of them.
        detail: Pixels that are painted for each one that the transformer sees, along each axis.
        text: Of the network of reports.
    """

    def __init__(
        self, shape: ViTShape, decoder: DecoderShape, blocks: Sequence[int], detail: int, text: TextShape
    ) -> None:
        super().__init__()
        pixels = shape.channels * prod(detail * edge for edge in shape.patch)
        self.decoders = nn.ModuleDict({str(block): Decoder(shape, decoder, pixels) for block in blocks})
        early = (block for block in blocks if block < shape.depth)
        self.norms = nn.ModuleDict({str(block): nn.LayerNorm(shape.width, eps=1e-6) for block in early})
        self.look = nn.Linear(shape.width, text.width)
        self.reader = Reader(text)
        self.words = nn.Sequential(
            nn.Linear(text.width, text.width), nn.GELU(), nn.LayerNorm(text.width), nn.Linear(text.width, text.entries)
        )
        self.words.apply(initialise)
        self.words[-1].weight = self.reader.embedding.words.weight  # as BERT does: fewer records are needed
        for start in (self.look.weight, self.look.bias):
            nn.init.zeros_(start)  # tokens of images are much larger than words are at first, and would drown them


@dataclass(frozen=True, slots=True, eq=False)
class MaskedRecords:
    """The sum of the squared error of hidden patches and the cross-entropy of hidden words.

    Attributes:
        masking: What is hidden of images; its blocks are the transformer's patches.
        shape: Of the transformer.
        heads: Trained with it.
        continues: Of the vocabulary.
        share: Of words that are hidden.
        normalised: Whether each patch of each channel is normalised before it is compared.
        detail: See ``MrmHeads``.
    """

    masking: Masking
    shape: ViTShape
    heads: MrmHeads
    continues: NDArray[np.bool_]
    share: float = RATIO
    normalised: bool = True
    detail: int = 1

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        """Image and words with what is hidden, and what is to be found.

        Args:
            batch: ``images`` of the transformer's shape times ``detail``, and ``words``.
            generator: Source of random numbers.
        """
        images = batch["images"]
        hidden = hidden_patches(self.masking, len(images), generator).to(images.device)
        patch = [self.detail * edge for edge in self.shape.patch]
        blocks = Blocks(tuple((edge,) * count for edge, count in zip(patch, self.shape.grid, strict=True)))
        words, covered = hide_words(batch["words"], self.continues, self.share, generator)
        return {
            "images": images if self.detail == 1 else F.interpolate(images, self.shape.image, mode="area"),
            "keep": visible_patches(hidden),
            "hidden": hidden,
            "target": patches_of(blocks.normalise(images) if self.normalised else images, patch),
            "words": words,
            "covered": covered,
            "answers": batch["words"],
        }

    def loss(self, network: nn.Module, views: Views) -> dict[str, torch.Tensor]:
        """``image``, the mean over depths, hidden patches, their pixels and channels; ``text``, over hidden words."""
        if not isinstance(network, ViT):
            raise TypeError("only a ViT sees single patches")
        errors, seen = [], self._tokens(network, views)
        for block, tokens in seen.items():
            painted = self.heads.decoders[block](tokens, views["keep"])
            errors.append(((painted - views["target"]) ** 2).mean(2)[views["hidden"]].mean())
        return {"image": torch.stack(errors).mean(), "text": self._words(seen[str(self.shape.depth)], views).mean()}

    def _tokens(self, network: ViT, views: Views) -> dict[str, torch.Tensor]:
        """Normed tokens after every block that has a decoder, the last block's at the end."""
        tokens, found = network.embed(views["images"], views["keep"]), {}
        for number, block in enumerate(network.blocks, 1):
            tokens = block(tokens)
            if (name := str(number)) in self.heads.norms:
                found[name] = self.heads.norms[name](tokens)
        return found | {str(self.shape.depth): network.norm(tokens)}

    def word_losses(self, network: ViT, views: Views) -> torch.Tensor:
        """The cross-entropy of each hidden word, in the order of ``covered``; shape (hidden words,)."""
        return self._words(network.tokens(views["images"], views["keep"]), views)

    def _words(self, tokens: torch.Tensor, views: Views) -> torch.Tensor:
        """Of words that see the mean of what is visible of the image."""
        read, covered = self.heads.reader(views["words"], self.heads.look(tokens[:, 1:].mean(1))), views["covered"]
        return F.cross_entropy(self.heads.words(read[covered]), views["answers"][covered], reduction="none")


def deep_blocks(depth: int) -> tuple[int, ...]:
    """After which blocks deep MRM paints: 6, 8, 10 and 12 of 12, and the same shares of others.

    >>> deep_blocks(12), deep_blocks(4)
    ((6, 8, 10, 12), (2, 3, 4))
    """
    return tuple(sorted({max(1, round(depth * share / 6)) for share in (3, 4, 5, 6)}))


def masked_records(
    shape: ViTShape,
    masking: Masking,
    text: TextShape,
    continues: NDArray[np.bool_],
    *,
    decoder: DecoderShape | None = None,
    blocks: Sequence[int] = (),
    share: float = RATIO,
    normalised: bool = True,
    detail: int = 1,
) -> MaskedRecords:
    """For a transformer; heads begin with PyTorch's random numbers of the moment.

    Args:
        shape: Of the transformer.
        masking: Of its patches.
        text: Of the network of reports.
        continues: Of the vocabulary.
        decoder: Of images; None: the usual one.
        blocks: After which blocks there are decoders, beside that at the end.
        share: Of words that are hidden.
        normalised: See ``MaskedRecords``.
        detail: See ``MrmHeads``.

    Raises:
        ConfigError: If the transformer has no such block, or there is nothing to paint.
    """
    for block in blocks:
        if not 1 <= block <= shape.depth:
            raise ConfigError(f"there is no block {block}", f"The transformer has blocks 1 to {shape.depth}.")
    if detail < 1:
        raise ConfigError(f"a detail of {detail} leaves nothing to paint", "Use 1, or 2 for twice the resolution.")
    places = sorted({*blocks, shape.depth})
    heads = MrmHeads(shape, decoder or DecoderShape.of(shape), places, detail, text)
    return MaskedRecords(masking, shape, heads, continues, share, normalised, detail)
