"""Masked autoencoding: parts of the image are hidden, and the network is to paint them.

After He and others, CVPR 2022, for networks that see whole images: hidden voxels are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from coarse2fine.pretrain.masking import Masking
from coarse2fine.pretrain.objective import Batch, Views


@dataclass(frozen=True, slots=True)
class MaskedAutoencoding:
    """Squared error of what the network makes of hidden voxels. The network has one output for each channel.

    Attributes:
        masking: What is hidden.
        normalised: Whether each block is normalised before it is compared.
        everywhere: Whether visible voxels count, too.
    """

    masking: Masking
    normalised: bool = False
    everywhere: bool = False

    @property
    def heads(self) -> nn.Module:
        """None."""
        return nn.Identity()

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        """The image with holes, what was there, and where the holes are; each image has holes of its own."""
        images = batch["images"]
        masks = np.stack([self.masking.draw(generator) for _ in range(len(images))])
        hidden = torch.from_numpy(masks[:, None]).to(images.device)
        target = self.masking.blocks.normalise(images) if self.normalised else images
        return {"image": images.masked_fill(hidden, 0), "target": target, "hidden": hidden}

    def loss(self, network: nn.Module, views: Views) -> torch.Tensor:
        """The mean over voxels that count, and over channels."""
        error = (network(views["image"]) - views["target"]) ** 2
        if self.everywhere:
            return error.mean()
        hidden = views["hidden"].to(error.dtype)
        return (error * hidden).sum() / (hidden.sum() * error.shape[1])
