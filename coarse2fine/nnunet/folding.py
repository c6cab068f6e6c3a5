"""Norm layers of fixed statistics become part of the convolutions before them, and so do the activations after them.

What a frozen norm layer does to a channel is a factor and a term, which the convolution can apply: its weights times
the factor, its bias likewise and plus the term. Outputs differ by rounding. A pass over each feature map is saved, and
a second one where oneDNN applies the activation as well before it writes.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from coarse2fine.nnunet.cpu_layers import ChannelsLast, InPlaceNorm, is_watched


def fold_norms(network: nn.Module) -> None:
    """Fold what can be folded in a lean network whose norm layers are frozen; it is changed in place.

    Only where a block's norm layer follows directly upon its convolution; others stay as they are.
    """
    for block in network.modules():
        if isinstance(block, nn.Sequential):
            _fold_block(block)


def _fold_block(block: nn.Sequential) -> None:
    names = [name for name, layer in block.named_children() if not isinstance(layer, nn.Dropout3d)]
    for (first, second), third in itertools.zip_longest(itertools.pairwise(names), names[2:]):
        convolution, norm = block.get_submodule(first), block.get_submodule(second)
        if not isinstance(convolution, ChannelsLast) or not isinstance(norm, InPlaceNorm) or is_watched(norm):
            continue
        if norm.mean is None or norm.variance is None:
            continue
        convolution.use(*_folded(convolution.layer, norm), convolution.precision)
        block._modules[second] = nn.Identity()
        activation = None if third is None else block.get_submodule(third)
        if type(activation) is nn.LeakyReLU and third is not None and not is_watched(activation):
            convolution.activation = ("leaky_relu", [activation.negative_slope])
            block._modules[third] = nn.Identity()


def _folded(layer: nn.Conv3d, norm: InPlaceNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution that also does what comes after it, in the precision of the weights."""
    mean, variance, known = norm.mean, norm.variance, norm.norm
    if mean is None or variance is None:
        raise ValueError("a norm layer whose statistics change with the input cannot be folded")
    factor = torch.rsqrt(variance + known.eps)
    if known.weight is not None:
        factor = factor * known.weight.detach()
    term = -mean if layer.bias is None else layer.bias.detach() - mean
    term = term * factor
    if known.bias is not None:
        term = term + known.bias.detach()
    return layer.weight.detach() * factor.view(-1, 1, 1, 1, 1), term
