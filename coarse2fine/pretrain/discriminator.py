"""A network that tells restored images from real ones, place by place, and what both lose.

After Isola and others, CVPR 2017; least squares by Mao and others, ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.objective import Rival

Form = Literal["squares", "log"]

_CHANNELS, _STRIDES = (64, 128, 256, 512), (2, 2, 2, 1)
RATE = 2e-4
_BETAS = (0.5, 0.999)
_SLOPE = 0.2
_DEVIATION = 0.02
"""Of the weights that training begins with."""


class Discriminator(Rival):
    """Convolutions of three voxels along each axis, at the end a number for each place: how real it is.

    Args:
        channels: Of images.
        shape: Of images, without channels; two or three axes.
        rate: Of its learning.

    Raises:
        ConfigError: If images are so small that a single place would be left.
    """

    def __init__(self, channels: int, shape: Sequence[int], rate: float = RATE) -> None:
        super().__init__()
        if all(size <= 8 for size in shape):
            raise ConfigError(
                f"images of {' x '.join(map(str, shape))} are too small for a discriminator",
                "Use images or patches with an edge of more than 8, or leave out the adversarial part.",
            )
        conv, norm = ((nn.Conv2d, nn.InstanceNorm2d), (nn.Conv3d, nn.InstanceNorm3d))[len(shape) - 2]
        layers: list[nn.Module] = []
        for index, (width, stride) in enumerate(zip(_CHANNELS, _STRIDES, strict=True)):
            layers.append(conv(channels, width, 3, stride, 1))
            layers += [norm(width)] if index else []
            layers.append(nn.LeakyReLU(_SLOPE))
            channels = width
        self.layers = nn.Sequential(*layers, conv(channels, 1, 3, 1, 1))
        self.rate = rate
        for layer in self.layers:
            if isinstance(layer, conv):
                nn.init.normal_(layer.weight, std=_DEVIATION)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, channels, *image) in, a number for each place out; shape (n, 1, *places)."""
        places: torch.Tensor = self.layers(images)
        return places

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), self.rate, betas=_BETAS)

    def accuracy(self, restored: torch.Tensor, real: torch.Tensor, form: Form) -> float:
        """Share of places that are judged right, of both kinds as many; 0.5 is guessing."""
        middle = 0.5 if form == "squares" else 0.0
        with torch.no_grad():
            right = (self(restored) < middle).float().mean() + (self(real) > middle).float().mean()
        return float(right) / 2


def deception(discriminator: Discriminator, restored: torch.Tensor, form: Form) -> torch.Tensor:
    """What the restoring network loses where its images are not taken for real; no gradient in the discriminator.

    The log form is the one that does not saturate: -log D instead of log(1 - D).
    """
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return _far_from(torch.func.functional_call(discriminator, fixed, (restored,)), 1.0, form)


def detection(discriminator: Discriminator, restored: torch.Tensor, real: torch.Tensor, form: Form) -> torch.Tensor:
    """What the discriminator loses, halved; no gradient in what restored the images."""
    return (_far_from(discriminator(real), 1.0, form) + _far_from(discriminator(restored.detach()), 0.0, form)) / 2


def _far_from(places: torch.Tensor, wanted: float, form: Form) -> torch.Tensor:
    target = torch.full_like(places, wanted)
    return F.mse_loss(places, target) if form == "squares" else F.binary_cross_entropy_with_logits(places, target)
