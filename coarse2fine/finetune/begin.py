"""Where a fine-tuning begins: with the weights of a pretraining, whose outputs were others, or with random ones."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from coarse2fine.networks.vit import ViTShape, new_vit
from coarse2fine.nnunet.loading import new_network
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.weights import fill, load_vit, read_tensors, tensors_of

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


def image_of(model: Model) -> tuple[int, ...]:
    """Shape of the images that a network of nnU-Net's learns from; of a flat one two numbers."""
    return tuple(model.patch[1:] if model.flat else model.patch)


@dataclass(frozen=True, slots=True)
class Start:
    """A network before it is fine-tuned: a vision transformer, or that of nnU-Net's plans.

    Attributes:
        network: The transformer's shape, or a model of ``load_plans``.
        weights: To begin with; None: random ones.
        seed: Of those.
        drop_path: Of a transformer.
    """

    network: ViTShape | Model
    weights: Path | None = None
    seed: int = 0
    drop_path: float = 0.0

    @property
    def patch(self) -> tuple[int, ...]:
        """Shape of images that the network learns from."""
        if isinstance(self.network, ViTShape):
            return self.network.image
        return image_of(self.network)

    @property
    def about(self) -> dict[str, Any]:
        """All that it depends on, as JSON has it."""
        known = asdict(self.network) if isinstance(self.network, ViTShape) else dict(self.network.plans)
        return {
            "network": "vit" if isinstance(self.network, ViTShape) else self.network.configuration,
            "shape": hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest(),
            "weights": None if self.weights is None else hashlib.sha256(self.weights.read_bytes()).hexdigest(),
        }

    def make(self, outputs: int) -> nn.Module:
        """The network.

        Args:
            outputs: Classes of voxels, for a network that has an output for each.

        Raises:
            ModelError: If the weights are damaged or another network's, naming the first key that differs.
        """
        if isinstance(self.network, ViTShape):
            if self.weights is not None:
                return load_vit(self.weights, self.drop_path, self.network.image)
            return new_vit(self.network, self.seed, self.drop_path)
        network = new_network(self.network, outputs, self.seed)
        if self.weights is not None:
            begin(network, self.weights)
        return network
