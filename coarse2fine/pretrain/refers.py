"""Several views of a patient, fused, are to tell the report, and to find it.

After Zhou and others, REFERS, Nature Machine Intelligence 2022; unlike in its authors' code, both directions of the
contrast have gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from coarse2fine.networks.features import encode, width_of
from coarse2fine.pretrain.objective import Batch, Views
from coarse2fine.pretrain.records.contrast import TEMPERATURE, contrast
from coarse2fine.pretrain.records.space import Space
from coarse2fine.pretrain.records.text import TextShape, Writer
from coarse2fine.pretrain.records.vocabulary import PAD

VIEWS, PROJECTION, SHARE = 3, 512, 0.5


class RefersHeads(nn.Module):
    """Fusion of views, the network that writes reports, and the space that both are compared in."""

    def __init__(self, seen: int, views: int, reader: TextShape, writer: TextShape, width: int) -> None:
        super().__init__()
        self.fusion = nn.Linear(views * seen, views)
        self.writer, self.space = Writer(writer, seen), Space(seen, reader, width)


@dataclass(frozen=True, slots=True, eq=False)
class Refers:
    """The next word of the report from those before it and from the image, and the contrast of image and report.

    Attributes:
        heads: Of ``refers``.
        temperature, share: See ``contrast``.
    """

    heads: RefersHeads
    temperature: float = TEMPERATURE
    share: float = SHARE

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        """``views`` and ``words``, as they are."""
        return {"views": batch["views"], "words": batch["words"]}

    def loss(self, network: nn.Module, views: Views) -> dict[str, torch.Tensor]:
        """``caption``, and the ``contrast`` of images and reports."""
        fused, words = self.fuse(network, views["views"]), views["words"]
        images, reports = self.of_fused(fused), self.of_reports(words)
        return {
            "caption": self.caption(fused, words),
            "contrast": contrast(images, reports, self.temperature, self.share),
        }

    def fuse(self, network: nn.Module, views: torch.Tensor) -> torch.Tensor:
        """Features of all views, each weighted by a sigmoid of what is in all of them.

        Args:
            network: Of single images.
            views: Shape (n, views, channels, *image).

        Returns:
            Shape (n, places, width).
        """
        count = views.shape[1]
        tokens = encode(network, views.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (-1, count))
        weights = self.heads.fusion(tokens.mean(2).flatten(1)).sigmoid()
        return (weights[..., None, None] * tokens).sum(1)

    def caption(self, fused: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the next word, over all that follow the first and are no padding."""
        logits = self.heads.writer(words[:, :-1], fused)
        return F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=PAD)

    def of_images(self, network: nn.Module, views: torch.Tensor) -> torch.Tensor:
        """Where fused views lie in the common space; shape (n, width)."""
        return self.of_fused(self.fuse(network, views))

    def of_fused(self, fused: torch.Tensor) -> torch.Tensor:
        """The same of what is fused already."""
        projected: torch.Tensor = self.heads.space.of_images(fused.mean(1))
        return projected

    def of_reports(self, words: torch.Tensor) -> torch.Tensor:
        """Where reports lie."""
        return self.heads.space.read(words)


def refers(
    network: nn.Module,
    text: TextShape,
    *,
    views: int = VIEWS,
    width: int = PROJECTION,
    temperature: float = TEMPERATURE,
    share: float = SHARE,
) -> Refers:
    """For a network of images; heads begin with PyTorch's random numbers of the moment.

    Args:
        network: Of single images.
        text: Of the network that reads reports; the one that writes them is the same with a single block.
        views: Of each patient.
        width: Of the common space.
        temperature: See ``contrast``.
        share: Likewise.
    """
    return Refers(RefersHeads(width_of(network), views, text, replace(text, depth=1), width), temperature, share)
