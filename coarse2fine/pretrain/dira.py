"""Discriminative, restorative and adversarial learning at once, after Haghighi and others (DiRA), CVPR 2022.

Written from the paper's formulas. The authors' code has a licence for non-commercial use, and patents are claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from coarse2fine.errors import ConfigError
from coarse2fine.networks.features import encoder_of
from coarse2fine.networks.vit import ViT, images_of
from coarse2fine.pretrain.contrast import MomentumContrast
from coarse2fine.pretrain.discriminator import Discriminator, Form, deception, detection
from coarse2fine.pretrain.distortions import distort
from coarse2fine.pretrain.objective import Batch, Views
from coarse2fine.pretrain.views import Looks

PARTS = ("discriminative", "restorative", "adversarial")

_USUAL = {2: (1.0, 10.0, 0.001), 3: (1.0, 100.0, 1.0)}


@dataclass(frozen=True, slots=True)
class Shares:
    """Weights of the three ``PARTS``; one with 0 is left out.

    Attributes:
        discriminative: Of momentum contrast.
        restorative: Of the squared error.
        adversarial: Of what the discriminator is not deceived by.

    Raises:
        ConfigError: If a weight is negative, or nothing is left.
    """

    discriminative: float
    restorative: float
    adversarial: float

    def __post_init__(self) -> None:
        values = (self.discriminative, self.restorative, self.adversarial)
        if not (all(0 <= value < float("inf") for value in values) and any(values)):
            raise ConfigError(
                f"the weights of DiRA's parts are {', '.join(f'{value:g}' for value in values)}",
                "None may be negative, and one must be above 0: --set dira.discriminative=1.",
            )

    @classmethod
    def usual(cls, parts: Sequence[str], axes: int) -> Self:
        """Of some parts: the paper's for images of two or three axes, or 1 for a part alone."""
        values = (1.0, 1.0, 1.0) if len(parts) == 1 else _USUAL[axes]
        return cls(*(value if part in parts else 0.0 for part, value in zip(PARTS, values, strict=True)))

    @property
    def restores(self) -> bool:
        """Whether images are to be made."""
        return bool(self.restorative or self.adversarial)


class Dira:
    """Two looks at an image, both distorted, are told from those at others; the first one is restored to what it was.

    Restored is the crop before its brightness and sharpness were changed. Images are made by the network itself if it
    is nnU-Net's, else by a linear layer of a transformer's tokens.

    Args:
        network: That learns; with as many outputs as images have channels.
        shares: Of the parts.
        contrast: Of the discriminative part; None: it is left out.
        discriminator: Of the adversarial part, likewise.
        form: Of the adversarial losses.
        looks: How different two looks are.
    """

    def __init__(
        self,
        network: nn.Module,
        shares: Shares,
        contrast: MomentumContrast | None,
        discriminator: Discriminator | None,
        form: Form = "squares",
        looks: Looks = Looks(),  # noqa: B008  (frozen)
    ) -> None:
        self.contrast, self.discriminator, self.shares = contrast, discriminator, shares
        self.form, self.looks = form, looks
        self.paint: nn.Module = nn.Identity()
        if isinstance(network, ViT):
            self.paint = nn.Linear(network.shape.width, network.shape.channels * prod(network.shape.patch))

    @property
    def heads(self) -> nn.Module:
        """Those of the parts that are not left out."""
        parts: dict[str, nn.Module] = {}
        if self.contrast is not None:
            parts["contrast"] = self.contrast
        if self.shares.restores:
            parts["paint"] = self.paint
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
        return nn.ModuleDict(parts)

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        """Both looks, and what the first one was before anything but crop and mirror image."""
        clean, other = (self.looks.crop(batch["images"], generator) for _ in range(2))
        first, second = (distort(self.looks.recolour(look, generator), generator) for look in (clean, other))
        return {"first": first, "second": second, "clean": clean}

    def loss(self, network: nn.Module, views: Views) -> Mapping[str, torch.Tensor]:
        """Each part times its weight, and what the discriminator loses."""
        features, restored = self.see(network, views["first"])
        losses, shares = {}, self.shares
        if self.contrast is not None:
            losses["discriminative"] = shares.discriminative * self.contrast.loss(network, features, views["second"])
        if shares.restorative:
            losses["restorative"] = shares.restorative * F.mse_loss(restored, views["clean"])
        if self.discriminator is not None:
            losses["adversarial"] = shares.adversarial * deception(self.discriminator, restored, self.form)
            losses["discriminator"] = detection(self.discriminator, restored, views["clean"], self.form)
        return losses

    def see(self, network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled features, shape (n, width), and restored images; where none are made, those that came in."""
        if isinstance(network, ViT):
            tokens = network.tokens(images)[:, 1:]
            features, shape = tokens.mean(1), network.shape
            return features, images_of(self.paint(tokens), shape.grid, shape.patch) if self.shares.restores else images
        stages: Sequence[torch.Tensor] = encoder_of(network)(images)
        features = stages[-1].flatten(2).mean(2)
        return features, network.decoder(stages) if self.shares.restores else images  # type: ignore[operator]
