"""Layer-wise decay: early layers, which pretraining has taught most, learn more slowly.

After Clark and others (ELECTRA), ICLR 2020, as used by Bao and others (BEiT), ICLR 2022.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn

from coarse2fine.errors import ConfigError
from coarse2fine.networks.vit import ViT
from coarse2fine.pretrain.schedule import Groups


def rate_groups(whole: nn.Module, network: nn.Module, decay: float) -> Groups:
    """Parameters that learn, grouped by layer; the rate of layer i of N is scaled by ``decay ** (N + 1 - i)``.

    Of a transformer layer 0 is what makes tokens, and block i is layer i. Of nnU-Net's networks stage i of the encoder
    is layer i, and a stem layer 0. Everything else, such as heads and decoders, learns at the full rate.

    Args:
        whole: All that is trained.
        network: The part that layers are counted in.
        decay: At most 1, which means the same rate for all.

    Raises:
        ConfigError: If the decay is not above 0 and at most 1.
    """
    check_decay(decay)
    layers = _layers(network)
    numbers = {id(one): number for number, layer in enumerate(layers) for one in layer}
    found: defaultdict[int, list[nn.Parameter]] = defaultdict(list)
    for one in whole.parameters():
        if one.requires_grad:
            found[numbers.get(id(one), len(layers))].append(one)
    return [
        {"params": ones, "scale": decay ** (len(layers) - number)} for number, ones in sorted(found.items()) if ones
    ]


def check_decay(decay: float) -> None:
    """Refuse what is no decay.

    Raises:
        ConfigError: If it is not above 0 and at most 1.
    """
    if not 0 < decay <= 1:
        raise ConfigError(f"the layer decay is {decay:g}", "It must be above 0 and at most 1: --layer-decay 0.65.")


def _layers(network: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters of each layer, from layer 0 on."""
    if isinstance(network, ViT):
        return [[*network.project.parameters(), network.class_token], *(list(b.parameters()) for b in network.blocks)]
    encoder: Any = network.encoder
    stem = getattr(encoder, "stem", None)  # of residual encoders
    return [[] if stem is None else list(stem.parameters()), *(list(stage.parameters()) for stage in encoder.stages)]
