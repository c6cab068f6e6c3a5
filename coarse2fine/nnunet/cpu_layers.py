"""Networks that spend less time and memory on the CPU; their outputs differ from nnU-Net's by rounding.

Lean copies of a network share its weights. They normalise in place, keep their feature maps as oneDNN wants them, and
drop them early. One-stage mode does not use them, as it promises nnU-Net's outputs bit for bit.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from coarse2fine.nnunet.model import Model

MOST_PARTS = 256
"""Parts of a feature map that are summed up apart; with as many, float32 sums are as good as float64 ones here."""


class InPlaceNorm(nn.Module):
    """InstanceNorm3d that overwrites its input on the CPU, keeps the statistics it used, and can be frozen.

    In nnU-Net's blocks nobody else needs the input, and a second feature map costs memory and time.

    Attributes:
        seen: Mean and variance of each channel of the last input; only while not frozen.
    """

    mean: torch.Tensor | None
    variance: torch.Tensor | None
    seen: tuple[torch.Tensor, torch.Tensor]

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("mean", None)
        self.register_buffer("variance", None)

    def freeze(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Use these statistics, shape (channels,), whatever the input."""
        self.mean, self.variance = mean, variance

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise a feature map of shape (n, channels, z, y, x)."""
        norm, mean, variance = self.norm, self.mean, self.variance
        if mean is None or variance is None:
            if len(features) > 1:  # each has statistics of its own
                return torch.cat([self(sample) for sample in features.split(1)])
            mean, variance = self.seen = _statistics(features)
        if features.device.type != "cpu":
            return F.batch_norm(features, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)
        unused = {name: features.new_empty(0) for name in ("save_mean", "save_invstd")}
        # What F.batch_norm calls, which itself cannot overwrite.
        torch.ops.aten.native_batch_norm.out(
            features, norm.weight, norm.bias, mean, variance, False, 0.0, norm.eps, out=features, **unused
        )
        return features


def _statistics(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel of a feature map of shape (1, channels, z, y, x)."""
    if features.device.type != "cpu":
        variance, mean = torch.var_mean(features.float(), (0, 2, 3, 4), correction=0)
        return mean, variance
    # The fast routine adds up row after row in float32, which costs the fourth digit in a million rows.
    parts = math.gcd(features[0, 0].numel(), MOST_PARTS)
    rows = features.movedim(1, -1).reshape(-1, parts * features.shape[1])
    means, variances = torch.batch_norm_update_stats(rows, None, None, 0.0)
    return pool(means.view(parts, -1), variances.view(parts, -1))


def pool(means: torch.Tensor, variances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of equally large parts taken together; theirs have the shape (parts, channels)."""
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


class ChannelsLast(nn.Module):
    """A convolution that leaves its output channels last, as oneDNN can take it up again without reordering.

    PyTorch hands small inputs not to oneDNN but to a slower routine that first writes down each voxel's 27 neighbours.
    Hence oneDNN is called by name.
    """

    def __init__(self, layer: nn.Conv3d | nn.ConvTranspose3d) -> None:
        super().__init__()
        self.layer: Any = layer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve a feature map of shape (n, channels, z, y, x)."""
        layer = self.layer
        if isinstance(layer, nn.ConvTranspose3d):
            result = layer(features)
        else:
            options = layer.padding, layer.stride, layer.dilation, layer.groups
            result = torch.mkldnn_convolution(features, layer.weight, layer.bias, *options)
        return result.contiguous(memory_format=torch.channels_last_3d)


class LeanDecoder(nn.Module):
    """nnU-Net's decoder, but it lets go of each feature map after its last use."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder: Any = decoder

    def forward(self, skips: list[torch.Tensor]) -> torch.Tensor:
        """The encoder's feature maps, highest resolution first -> logits. Empties the list."""
        decoder, features = self.decoder, skips.pop()
        for upsample, stage in zip(decoder.transpconvs, decoder.stages, strict=True):
            features = _joined(upsample, features, skips)
            for block in stage.convs:
                features = block(features)
        logits: torch.Tensor = decoder.seg_layers[-1](features)
        return logits.contiguous()


def _joined(upsample: Any, features: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
    """``torch.cat((upsample(features), skips.pop()), 1)``, but neither part exists beside the other one's copy."""
    skip = skips.pop()
    own = (upsample.layer if isinstance(upsample, ChannelsLast) else upsample).out_channels
    last = skip.is_contiguous(memory_format=torch.channels_last_3d)
    joined = torch.empty(
        (len(skip), own + skip.shape[1], *skip.shape[2:]),
        dtype=skip.dtype,
        device=skip.device,
        memory_format=torch.channels_last_3d if last else torch.contiguous_format,
    )
    joined[:, own:] = skip
    del skip
    joined[:, :own] = upsample(features)
    return joined


def lean(model: Model) -> Model:
    """A copy of the model that takes less time and memory on the CPU; its outputs differ by rounding."""
    return model if model.device.type != "cpu" else with_layers(model, leaner)


def leaner(layer: nn.Module) -> nn.Module | None:
    """What takes a layer's place in a lean network; None if it stays.

    Only layers that compute exactly what their copies do are replaced: others, such as those with statistics of their
    own or with hooks, stay as they are.
    """
    if layer._forward_hooks or layer._forward_pre_hooks:
        return None
    if type(layer) is nn.InstanceNorm3d:
        return None if layer.track_running_stats else InPlaceNorm(layer)
    if type(layer) is nn.Conv3d and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return None
    if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) and type(layer) in (nn.Conv3d, nn.ConvTranspose3d):
        is_plain = layer.weight.is_cpu and layer.weight.dtype == torch.float32
        return ChannelsLast(layer) if is_plain and torch.backends.mkldnn.is_available() else None
    is_decoder = hasattr(layer, "transpconvs") and not getattr(layer, "deep_supervision", True)
    return LeanDecoder(layer) if is_decoder else None


def with_layers(model: Model, build: Callable[[nn.Module], nn.Module | None]) -> Model:
    """A copy of the model that shares its weights, with layers replaced by ``build(layer)`` unless that is None."""
    networks = []
    for network in model.networks:
        # Copies of the layers, not of their weights.
        result = copy.deepcopy(network, {id(weight): weight for weight in network.parameters()})
        modules = list(result.modules())
        new = {module: built for module in modules if (built := build(module)) is not None}
        # nnU-Net's blocks hold a layer under several names, so every reference is replaced, not every name.
        for parent in modules:
            parent._modules |= {name: new[child] for name, child in parent._modules.items() if child in new}
        networks.append(result)
    return dataclasses.replace(model, networks=tuple(networks))
