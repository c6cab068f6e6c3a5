"""Networks that spend less time and memory on the CPU; their outputs differ from nnU-Net's by rounding.

Lean copies of a network share its weights. They normalise in place, keep their feature maps as oneDNN wants them, and
drop them early. All modes use them, one-stage mode too: its labels are nnU-Net's, but for ties that rounding breaks.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.precision import in_both
from coarse2fine.system.device import is_host

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
        if not is_host(features.device):
            return F.batch_norm(features, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)
        unused = {name: mean.new_empty(0) for name in ("save_mean", "save_invstd")}
        # What F.batch_norm calls, which itself cannot overwrite.
        torch.ops.aten.native_batch_norm.out(
            features, norm.weight, norm.bias, mean, variance, False, 0.0, norm.eps, out=features, **unused
        )
        return features


def _statistics(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel of a feature map of shape (1, channels, z, y, x)."""
    if not is_host(features.device):
        variance, mean = torch.var_mean(features.float(), (0, 2, 3, 4), correction=0)
        return mean, variance
    # The fast routine adds up row after row in float32, which costs the fourth digit in a million rows.
    parts = math.gcd(features[0, 0].numel(), MOST_PARTS)
    rows = features.movedim(1, -1).reshape(-1, parts * features.shape[1])
    means, variances = torch.batch_norm_update_stats(rows, None, None, 0.0)
    return pool(means.float().view(parts, -1), variances.float().view(parts, -1))


def pool(means: torch.Tensor, variances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of equally large parts taken together; theirs have the shape (parts, channels)."""
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


class ChannelsLast(nn.Module):
    """A convolution that leaves its output channels last, as oneDNN can take it up again without reordering.

    PyTorch hands small inputs not to oneDNN but to a slower routine that first writes down each voxel's 27 neighbours.
    Hence oneDNN is called by name.

    Args:
        layer: The convolution, of zero padding.
        precision: What it computes in and gives, whatever the input.

    Attributes:
        activation: oneDNN's name and numbers of a function that the output goes through before it is written.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layer: nn.Conv3d, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = layer
        self.activation: tuple[str, list[float]] = ("none", [])
        self.use(layer.weight, layer.bias, precision)

    def use(self, weight: torch.Tensor, bias: torch.Tensor | None, precision: torch.dtype) -> None:
        """Convolve with these, shapes as in the layer."""
        self.precision = precision
        self.register_buffer("weight", weight.detach().to(precision), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().to(precision), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve a feature map of shape (n, channels, z, y, x)."""
        layer, features = self.layer, _marked_last(features.to(self.precision))
        options = layer.padding, layer.stride, layer.dilation, layer.groups
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            features, self.weight, self.bias, *options, *self.activation, ""
        )
        return result.contiguous(memory_format=torch.channels_last_3d)


def _marked_last(features: torch.Tensor) -> torch.Tensor:
    """The same voxels; of one channel, where any layout is channels last, strides say so, and outputs follow."""
    if features.shape[1] == 1 and features.is_contiguous():
        _, _, depth, height, width = features.shape
        return features.as_strided(features.shape, (depth * height * width, 1, height * width, width, 1))
    return features


class Upsampling(nn.Module):
    """A transposed convolution whose kernels do not overlap, as one product of matrices, in any precision."""

    def __init__(self, layer: nn.ConvTranspose3d, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer, self.precision = layer, precision
        self.out_channels = layer.out_channels

    @staticmethod
    def suits(layer: nn.ConvTranspose3d) -> bool:
        """Whether each voxel becomes a block of its own."""
        plain = not any((*layer.padding, *layer.output_padding)) and layer.groups == 1
        return plain and tuple(layer.kernel_size) == tuple(layer.stride) and set(layer.dilation) == {1}

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Enlarge a feature map of shape (n, channels, z, y, x); the result has its channels last."""
        edges = (edge * step for edge, step in zip(features.shape[2:], self.layer.kernel_size, strict=True))
        shape = (len(features), self.out_channels, *edges)
        result = torch.empty(shape, dtype=self.precision, device=features.device, memory_format=torch.channels_last_3d)
        return self.into(features, result)

    def into(self, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Write the enlarged feature map into ``target``, which may be some channels of a larger one."""
        layer, (count, channels, *edges) = self.layer, features.shape
        kernel = layer.kernel_size
        weight = layer.weight.movedim(1, -1).reshape(channels, -1).to(self.precision)
        rows = features.to(self.precision).movedim(1, -1).reshape(-1, channels)
        if layer.bias is None:
            blocks = rows @ weight
        else:
            blocks = torch.addmm(layer.bias.to(self.precision).repeat(math.prod(kernel)), rows, weight)
        parts = [part for pair in zip(edges, kernel, strict=True) for part in pair]
        place = target.movedim(1, -1).unflatten(3, parts[4:]).unflatten(2, parts[2:4]).unflatten(1, parts[:2])
        # Both in the order z, y, x, block, place in the block, channel.
        place.permute(0, 1, 3, 5, 2, 4, 6, 7).copy_(blocks.view(count, *edges, *kernel, -1))
        return target


class Planes(nn.Module):
    """A convolution of single voxels whose output channels lie one after the other, as one product of matrices.

    Turning what oneDNN gives, where they are last, takes several times as long as computing it.
    """

    def __init__(self, layer: nn.Conv3d, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer, self.precision = layer, precision

    @staticmethod
    def suits(layer: nn.Conv3d) -> bool:
        """Whether each voxel of the output comes from the same voxel of the input alone."""
        return {*layer.kernel_size, *layer.stride} == {1} and not any(layer.padding) and layer.groups == 1

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve a feature map of shape (n, channels, z, y, x)."""
        layer = self.layer
        weight = layer.weight.detach().flatten(1).to(self.precision)
        bias = weight.new_zeros(1) if layer.bias is None else layer.bias.detach()[:, None].to(self.precision)
        rows = features.to(self.precision).movedim(1, -1).flatten(1, 3)
        result = rows.new_empty((len(rows), layer.out_channels, rows.shape[1]))
        for sample, output in zip(rows, result, strict=True):
            torch.addmm(bias, weight, sample.T, out=output)
        return result.unflatten(2, features.shape[2:])


class LeanDecoder(nn.Module):
    """nnU-Net's decoder, but it lets go of each feature map after its last use.

    Args:
        decoder: It is taken over: its last layer may be replaced.
        precision: What a layer in that place computes in.
    """

    def __init__(self, decoder: nn.Module, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.decoder: Any = decoder
        heads: Any = decoder.seg_layers
        if _is_plain(heads[-1]) and Planes.suits(heads[-1]):
            heads[-1] = Planes(heads[-1], precision)

    def forward(self, skips: list[torch.Tensor]) -> torch.Tensor:
        """The encoder's feature maps, highest resolution first -> logits. Empties the list."""
        decoder, features = self.decoder, skips.pop()
        for upsample, stage in zip(decoder.transpconvs, decoder.stages, strict=True):
            features = _joined(upsample, features, skips)
            for block in stage.convs:
                features = block(features)
        logits: torch.Tensor = decoder.seg_layers[-1](features)
        return logits.contiguous().float()


def _joined(upsample: Any, features: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
    """``torch.cat((upsample(features), skips.pop()), 1)``, but neither part exists beside the other one's copy."""
    skip, own = skips.pop(), upsample.out_channels
    last = skip.is_contiguous(memory_format=torch.channels_last_3d)
    joined = torch.empty(
        (len(skip), own + skip.shape[1], *skip.shape[2:]),
        dtype=skip.dtype,
        device=skip.device,
        memory_format=torch.channels_last_3d if last else torch.contiguous_format,
    )
    joined[:, own:] = skip
    del skip
    if isinstance(upsample, Upsampling):
        upsample.into(features, joined[:, :own])
    else:
        joined[:, :own] = upsample(features)
    return joined


def lean(model: Model) -> Model:
    """A copy of the model that takes less time and memory on the CPU; its outputs differ by rounding."""
    return in_both(model, _lean) if is_host(model.device) else model


def _lean(model: Model) -> Model:
    return with_layers(model, leaner(model.precision))


def leaner(precision: torch.dtype) -> Callable[[nn.Module], nn.Module | None]:
    """What takes a layer's place in a lean network that computes in some precision; None if it stays.

    Only layers that compute exactly what their copies do are replaced: others, such as those with statistics of their
    own or with hooks, stay as they are.
    """
    return partial(_leaner, precision=precision)


def _leaner(layer: nn.Module, precision: torch.dtype) -> nn.Module | None:
    if is_watched(layer):
        return None
    if type(layer) is nn.InstanceNorm3d:
        return None if layer.track_running_stats else InPlaceNorm(layer)
    if type(layer) is nn.ConvTranspose3d:
        return Upsampling(layer, precision) if _suits_onednn(layer) and Upsampling.suits(layer) else None
    if type(layer) is nn.Conv3d:
        return ChannelsLast(layer, precision) if _is_plain(layer) else None
    is_decoder = hasattr(layer, "transpconvs") and not getattr(layer, "deep_supervision", True)
    return LeanDecoder(layer, precision) if is_decoder else None


def is_watched(layer: nn.Module) -> bool:
    """Whether somebody wants to see, or changes, what goes in or comes out."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a convolution on the CPU that pads with zeros, and nothing else."""
    zeros = type(layer) is nn.Conv3d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return zeros and _suits_onednn(layer) and not is_watched(layer)


def _suits_onednn(layer: nn.Module) -> bool:
    weight = layer.weight
    on_host = isinstance(weight, torch.Tensor) and is_host(weight.device) and weight.dtype == torch.float32
    return on_host and torch.backends.mkldnn.is_available()


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
