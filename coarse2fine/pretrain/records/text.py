"""Small transformers that read reports, and write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.records.vocabulary import LENGTH, PAD


@dataclass(frozen=True, slots=True)
class TextShape:
    """All that the weights of such a network depend on but the seed.

    Attributes:
        entries: Of the vocabulary.
        length: Most tokens of a report.
        width: Numbers of a token.
        depth: Blocks.
        heads: Of attention, which divide the width.
        dropout: Share of activations that are left out while training.

    Raises:
        ConfigError: If heads do not divide the width.
    """

    entries: int
    length: int = LENGTH
    width: int = 384
    depth: int = 6
    heads: int = 6
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"a width of {self.width} for reports is not divisible by {self.heads} heads",
                f"Use a multiple of {self.heads}.",
            )


class Embedding(nn.Module):
    """Words and their places as tokens."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.entries, shape.width, padding_idx=PAD)
        self.places = nn.Embedding(shape.length, shape.width)
        self.norm, self.drop = nn.LayerNorm(shape.width), nn.Dropout(shape.dropout)

    def forward(self, words: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Shape (n, length) to (n, length, width).

        Args:
            words: Numbers of a vocabulary.
            added: To every token of a report, shape (n, width).
        """
        tokens = self.words(words) + self.places.weight[: words.shape[1]]
        if added is not None:
            tokens = tokens + added[:, None]
        return self.drop(self.norm(tokens))


class Reader(nn.Module):
    """A small BERT (Devlin and others, NAACL 2019), normed before each layer: every token sees all but padding."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = Embedding(shape)
        self.blocks = _blocks(nn.TransformerEncoderLayer, shape)
        self.norm = nn.LayerNorm(shape.width)
        self.apply(_initialise)

    def forward(self, words: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Shape (n, length) to (n, length, width); arguments as of ``Embedding``."""
        tokens = self.embedding(words, added)
        for block in self.blocks:
            tokens = block(tokens, src_key_padding_mask=words == PAD)
        normed: torch.Tensor = self.norm(tokens)
        return normed

    def pooled(self, words: torch.Tensor) -> torch.Tensor:
        """The mean of a report's tokens but padding; shape (n, width)."""
        there = (words != PAD)[..., None]
        return (self(words) * there).sum(1) / there.sum(1)


class Writer(nn.Module):
    """Says the next word from those before it and from tokens of an image."""

    def __init__(self, shape: TextShape, seen: int) -> None:
        super().__init__()
        self.embedding = Embedding(shape)
        self.look = nn.Linear(seen, shape.width)
        self.blocks = _blocks(nn.TransformerDecoderLayer, shape)
        self.norm = nn.LayerNorm(shape.width)
        self.words = nn.Linear(shape.width, shape.entries)
        self.apply(_initialise)

    def forward(self, words: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """What follows each token, as logits of shape (n, length, entries).

        Args:
            words: Shape (n, length).
            seen: Tokens of an image, shape (n, tokens, seen).
        """
        tokens, memory = self.embedding(words), self.look(seen)
        later = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool, device=words.device).triu(1)
        for block in self.blocks:
            tokens = block(tokens, memory, tgt_mask=later, tgt_key_padding_mask=words == PAD)
        return self.words(self.norm(tokens))


def _blocks(kind: Callable[..., nn.Module], shape: TextShape) -> nn.ModuleList:
    """PyTorch's layers of transformers, normed before each part."""
    usual = {"activation": "gelu", "batch_first": True, "norm_first": True}
    return nn.ModuleList(
        kind(shape.width, shape.heads, 4 * shape.width, shape.dropout, **usual) for _ in range(shape.depth)
    )


def _initialise(module: nn.Module) -> None:
    """Xavier's weights, no biases, embeddings of length 1, nothing for padding.

    BERT's N(0, 0.02) everywhere is made for its width of 768: in narrow networks words hardly see each other at first.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.MultiheadAttention):
        for part in module.in_proj_weight.chunk(3):  # query, key, value
            nn.init.xavier_uniform_(part)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
