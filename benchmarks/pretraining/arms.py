"""The two arms of a comparison: networks that begin with random weights, and with pretrained ones."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.pretraining.small import Image, classes_of
from canvas import Triple
from coarse2fine.errors import ModelError
from coarse2fine.finetune.examples import Array, Examples, LabelledCrops
from coarse2fine.finetune.heads import put_head
from coarse2fine.finetune.policy import Policy
from coarse2fine.finetune.tasks import Segmentation
from coarse2fine.finetune.tune import Supervised, predict
from coarse2fine.nnunet.loading import new_network
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.crops import Crops
from coarse2fine.pretrain.loop import pretrain
from coarse2fine.pretrain.methods import Task, method_of
from coarse2fine.pretrain.objective import Method
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.weights import WEIGHTS, Tensors, fill, read_tensors, tensors_of, write_weights

_WINDOWS = 4  # at once
_CLASSES = ".seg_layers."
"""In the names of layers that give classes, which no pretraining can know."""


def pretrained(
    model: Model,
    images: Sequence[Image],
    patch: Triple,
    settings: Settings,
    folder: Path,
    weights: Tensors | None = None,
    *,
    bf16: bool = False,
) -> Tensors:
    """Weights of the plans' network after a pretraining, which is done unless its folder has them.

    Args:
        model: Has the plans.
        images: To learn from, without labels; each (channels, z, y, x).
        patch: Shape of crops.
        settings: What to learn, and for how long.
        folder: Of this pretraining alone.
        weights: Of an earlier one, to begin with.
        bf16: Whether the network computes in bfloat16.
    """
    if not (folder / WEIGHTS).exists():
        network = new_network(model, model.channels, settings.schedule.seed)
        if bf16:
            compute_in_bfloat16(network)
        if weights is not None:
            fill(network, weights, folder, "Use weights of the same network.")
        method = method_of(Task(network, patch, settings))
        folder.mkdir(parents=True, exist_ok=True)
        pretrain(network, method, Crops(tuple(images), patch), settings.schedule, folder)
        write_weights(folder, network)
    return read_tensors(folder / WEIGHTS)[0]


def fresh(model: Model, seed: int, weights: Tensors | None = None, *, bf16: bool = False) -> nn.Module:
    """The plans' network with an output for each class, and weights of a pretraining where they fit.

    Raises:
        ModelError: If anything but the layers of classes differs.
    """
    network = new_network(model, model.labels.heads, seed)
    if bf16:
        compute_in_bfloat16(network)
    if weights is None:
        return network
    with torch.no_grad():
        for name, tensor in tensors_of(network).items():
            if _CLASSES not in name:
                if name not in weights or weights[name].shape != tensor.shape:
                    raise ModelError(f"the pretrained weights have no {name} of shape {tuple(tensor.shape)}")
                tensor.copy_(weights[name])
    return network


def compute_in_bfloat16(network: nn.Module) -> None:
    """Let a network compute in bfloat16 on the CPU; weights, what it gives, and losses stay in 32 bits.

    With some shapes, such as patches of (8, 96, 96), PyTorch 2.13 ends the process while it computes gradients.
    """
    forward = torch.autocast("cpu", torch.bfloat16)(network.forward)

    def halved(images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = forward(images)
        return found.float()

    network.forward = halved


def learn(
    network: nn.Module,
    model: Model,
    train: Examples,
    patch: Triple,
    schedule: Schedule,
    folder: Path,
    mirror: tuple[int, ...] = (),
) -> None:
    """Train a network on labels; what is between is removed at the end.

    Args:
        network: Of ``fresh``; it is changed.
        model: Has the classes.
        train: To learn from.
        patch: Shape of crops.
        schedule: For how long.
        folder: Of this training alone.
        mirror: Axes along which half of the crops are mirrored.
    """
    task = Segmentation(classes_of(model))
    method = Method({"labels": Supervised(task, Policy(mirror=mirror))})
    folder.mkdir(parents=True, exist_ok=True)
    pretrain(put_head(network, task), method, LabelledCrops(train, patch), schedule, folder)
    shutil.rmtree(folder, ignore_errors=True)


def segment(network: nn.Module, model: Model, images: Sequence[Image], patch: Triple) -> list[Array]:
    """The classes of images' voxels, in windows that overlap by half; each (z, y, x)."""
    task = Segmentation(classes_of(model))
    return list(predict(put_head(network, task), task, images, patch, _WINDOWS))
