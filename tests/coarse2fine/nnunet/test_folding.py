"""Norm layers that became part of convolutions, against the layers themselves."""

from __future__ import annotations

import torch
from torch import nn

from coarse2fine.nnunet.cpu_layers import ChannelsLast, InPlaceNorm, Upsampling
from coarse2fine.nnunet.folding import fold_norms


def block(*, frozen: bool = True, affine: bool = True, bias: bool = True, dropout: bool = False) -> nn.Sequential:
    """Convolution, norm and activation as in a lean network."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm3d(5, affine=affine, eps=0.1)
    if affine:
        norm.weight.data, norm.bias.data = torch.randn(5), torch.randn(5)
    layers = [ChannelsLast(nn.Conv3d(3, 5, 3, padding=1, bias=bias)), InPlaceNorm(norm), nn.LeakyReLU(0.2)]
    if dropout:
        layers.insert(1, nn.Dropout3d(0.5))
    if frozen:
        layers[-2].freeze(torch.randn(5), torch.rand(5) + 0.5)
    return nn.Sequential(*layers).eval()


@torch.inference_mode()
def test_fold_norms__frozen_blocks__give_the_same_in_one_layer() -> None:
    """Whatever of affine parameters, bias and dropout they have; a norm that sees its input stays."""
    features = torch.randn(2, 3, 4, 6, 5)
    for options in ({}, {"affine": False}, {"bias": False}, {"dropout": True}):
        layers = block(**options)
        expected = layers(features)
        fold_norms(layers)
        torch.testing.assert_close(layers[0](features), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layers(features), expected, atol=1e-5, rtol=1e-5)
    seeing = block(frozen=False)
    fold_norms(seeing)
    assert isinstance(seeing[1], InPlaceNorm)
    assert seeing[0].activation == ("none", [])


@torch.inference_mode()
def test_fold_norms__somebody_watches_a_layer__it_stays_where_it_is() -> None:
    """Hooks see what they saw before."""
    features, watched = torch.randn(1, 3, 4, 6, 5), block()
    seen: list[torch.Tensor] = []
    watched[2].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].clone()))
    expected = watched(features)
    fold_norms(watched)
    torch.testing.assert_close(watched(features), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[1], seen[0], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_upsampling__kernels_beside_each_other__are_the_transposed_convolution() -> None:
    """With and without bias, for several inputs, and into some channels of a larger map; others are not taken."""
    features = torch.randn(2, 3, 2, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    for bias in (False, True):
        layer = nn.ConvTranspose3d(3, 4, (1, 2, 3), (1, 2, 3), bias=bias)
        assert Upsampling.suits(layer)
        torch.testing.assert_close(Upsampling(layer)(features), layer(features), atol=1e-5, rtol=1e-5)
        joined = torch.zeros(2, 9, 2, 8, 15).contiguous(memory_format=torch.channels_last_3d)
        Upsampling(layer).into(features, joined[:, 2:6])
        torch.testing.assert_close(joined[:, 2:6], layer(features), atol=1e-5, rtol=1e-5)
        assert not joined[:, :2].any()
        assert not joined[:, 6:].any()
    for other in ({"kernel_size": 3, "stride": 2}, {"kernel_size": 2, "stride": 2, "padding": 1}):
        assert not Upsampling.suits(nn.ConvTranspose3d(3, 4, **other))
