"""Images and reports that belong together, by contrast.

After Zhang and others, "Contrastive learning of medical visual representations from paired images and text", MLHC 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from coarse2fine.networks.features import pooled, width_of
from coarse2fine.pretrain.objective import Batch, Views
from coarse2fine.pretrain.records.contrast import TEMPERATURE, contrast
from coarse2fine.pretrain.records.space import Space
from coarse2fine.pretrain.records.text import TextShape

PROJECTION, SHARE = 512, 0.75


@dataclass(frozen=True, slots=True, eq=False)
class Convirt:
    """Images find their reports, reports their images; any network of images.

    Attributes:
        heads: Of ``convirt``.
        temperature, share: See ``contrast``.
    """

    heads: Space
    temperature: float = TEMPERATURE
    share: float = SHARE

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        """``images`` and ``words``, as they are."""
        return {"images": batch["images"], "words": batch["words"]}

    def loss(self, network: nn.Module, views: Views) -> torch.Tensor:
        """See ``contrast``."""
        images, reports = self.of_images(network, views["images"]), self.of_reports(views["words"])
        return contrast(images, reports, self.temperature, self.share)

    def of_images(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Where images lie in the common space; shape (n, width)."""
        projected: torch.Tensor = self.heads.of_images(pooled(network, images))
        return projected

    def of_reports(self, words: torch.Tensor) -> torch.Tensor:
        """Where reports lie."""
        return self.heads.read(words)


def convirt(
    network: nn.Module,
    text: TextShape,
    *,
    width: int = PROJECTION,
    temperature: float = TEMPERATURE,
    share: float = SHARE,
) -> Convirt:
    """For a network of images; heads begin with PyTorch's random numbers of the moment."""
    return Convirt(Space(width_of(network), text, width), temperature, share)
