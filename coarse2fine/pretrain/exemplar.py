"""Exemplar: each image is a class of its own. After Dosovitskiy and others, NeurIPS 2014; today by contrast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from coarse2fine.errors import ConfigError
from coarse2fine.networks.features import pooled, width_of
from coarse2fine.pretrain.borders import Border
from coarse2fine.pretrain.contrast import TEMPERATURE, nt_xent, projector
from coarse2fine.pretrain.objective import Batch, Views
from coarse2fine.pretrain.views import Looks


class Exemplar:
    """Two looks at each image are told apart from those at all others of the batch.

    Args:
        network: That learns.
        shape: Of images, without channels.
        border: What is covered of each look.
        looks: How different they may be.
        temperature: See ``contrast.info_nce``.
        batch: Images in a step.

    Raises:
        ConfigError: If that is one.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        border: Border,
        looks: Looks = Looks(),  # noqa: B008  (frozen)
        temperature: float = TEMPERATURE,
        batch: int = 2,
    ) -> None:
        if batch < 2:
            raise ConfigError("a batch of 1 image has none to tell it apart from", "Use --batch 2 or more.")
        self.head = projector(width_of(network))
        self.visible = border.visible(shape)
        self.looks, self.temperature = looks, temperature

    @property
    def heads(self) -> nn.Module:
        """Pooled features in, those that are compared out."""
        return self.head

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        """Two looks at each image, that differ in everything that is random."""
        images = batch["images"]
        visible = self.visible.to(images.device)
        first, second = (self.looks.recolour(self.looks.crop(images, generator), generator) * visible for _ in range(2))
        return {"first": first, "second": second}

    def loss(self, network: nn.Module, views: Views) -> torch.Tensor:
        """InfoNCE in both directions."""
        features = self.head(pooled(network, torch.cat([views["first"], views["second"]])))
        first, second = features.chunk(2)
        return nt_xent(first, second, self.temperature)
