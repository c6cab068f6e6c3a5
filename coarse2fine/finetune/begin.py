"""Where a fine-tuning begins: with the weights of a pretraining, whose outputs were others."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from coarse2fine.pretrain.weights import fill, read_tensors, tensors_of

_OUTPUTS = ".seg_layers."
"""In the names of layers of nnU-Net's networks that depend on classes; ``nnUNetv2_train`` skips the same ones."""


def begin(network: nn.Module, path: Path) -> None:
    """Give a network of nnU-Net's all weights of a file but those of the layers whose outputs are classes.

    Args:
        network: Is changed.
        path: The ``weights.safetensors`` of a pretraining or fine-tuning.

    Raises:
        ModelError: If it is damaged, or of another network, naming the first key that differs.
    """
    tensors, own = read_tensors(path)[0], tensors_of(network)
    wanted = {name: tensor for name, tensor in tensors.items() if _OUTPUTS not in name}
    kept = {name: tensor for name, tensor in own.items() if _OUTPUTS in name}
    fill(network, wanted | kept, path, "Use weights that were trained with the same plans and configuration.")
