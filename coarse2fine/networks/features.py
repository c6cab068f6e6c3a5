"""The deepest features of any network, nnU-Net's or a vision transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from coarse2fine.networks.vit import ViT


def encode(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Features of the encoder's last stage, or a transformer's tokens without that of the class.

    Args:
        network: As nnU-Net makes them, with ``encoder`` and ``decoder``, its encoder alone, or a ``ViT``.
        images: Shape (n, channels, *image).

    Returns:
        Shape (n, width, *grid).
    """
    if isinstance(network, ViT):
        return network.to_grid(network.tokens(images))
    features: torch.Tensor = encoder_of(network)(images)[-1]
    return features


def pooled(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Their mean over the image; shape (n, width)."""
    return encode(network, images).flatten(2).mean(2)


def width_of(network: nn.Module) -> int:
    """How many features each place has."""
    if isinstance(network, ViT):
        return network.shape.width
    return int(encoder_of(network).output_channels[-1])


def channels_of(network: nn.Module) -> int:
    """How many channels images have."""
    if isinstance(network, ViT):
        return network.shape.channels
    first: nn.Parameter = next(encoder_of(network).parameters())  # a convolution's weight, (outputs, inputs, ...)
    return first.shape[1]


def middle_stage(network: nn.Module) -> int:
    """The number of the stage in the middle of a network of nnU-Net's, from 0; the earlier one of two.

    Its features are those that maps are made of: deeper ones mean more and are coarser, but what a U-Net finds hardly
    depends on the deepest where the connections that skip them suffice.
    """
    return (len(encoder_of(network).stages) - 1) // 2


def encoder_of(network: nn.Module) -> Any:
    """What of a network makes these features, and can be given in its place: a transformer is nothing else."""
    return getattr(network, "encoder", network)
