"""Gradients of transformers that add up: norms' scales and attention's weights count as constants.

A layer norm gives the same for a token x and for c x. So feature times gradient adds up to nothing in front of it
(Euler, on functions of degree 0), whatever the token says, and what is left of its parts is of either sign. Attention's
weights saturate, and their gradients say where it would look if a token were a little different, not what it has seen.
Ali and others (*XAI for Transformers: Better Explanations through Conservative Propagation*, ICML 2022) let gradients
pass both as if they were linear: then feature times gradient adds up to the score from layer to layer, as far as
activations and biases allow.

Instance normalisation is left alone: its statistics are those of a whole map, and what an object does to them is part
of how a network finds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from coarse2fine.networks.vit import Block


@contextmanager
def conserving(network: nn.Module) -> Iterator[None]:
    """While it lasts, gradients pass the network's layer norms, and attention of our own transformers, as if linear.

    Outputs are the same but for rounding. Attention of other libraries is passed as always.
    """
    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                hooks.callback(module.register_forward_hook(_with_constant_scale).remove)
            elif isinstance(module, Block):
                hooks.callback(module.qkv.register_forward_hook(_with_constant_weights).remove)
        yield


def _with_constant_scale(norm: nn.LayerNorm, given: Any, output: torch.Tensor) -> torch.Tensor:
    """What a layer norm gives, through which gradients see its scale as a number."""
    (tokens,), axes = given, tuple(range(-len(norm.normalized_shape), 0))
    centred = tokens - tokens.mean(axes, keepdim=True)
    found = centred * (centred.square().mean(axes, keepdim=True) + norm.eps).rsqrt().detach()
    found = found if norm.weight is None else found * norm.weight
    return found if norm.bias is None else found + norm.bias


def _with_constant_weights(qkv: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
    """Queries and keys, from which weights are made, and values: gradients see only these."""
    query, key, value = output.chunk(3, -1)
    return torch.cat([query.detach(), key.detach(), value], -1)
