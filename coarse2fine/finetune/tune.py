"""Fine-tuning, which is one more objective for the loop that pretrains: the same steps, with labels in the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coarse2fine.finetune.examples import Examples, LabelledCrops, cut, windows
from coarse2fine.finetune.heads import Tuned, put_head
from coarse2fine.finetune.measures import Measure
from coarse2fine.finetune.policy import PLAIN, Policy
from coarse2fine.finetune.rates import rate_groups
from coarse2fine.finetune.tasks import Task
from coarse2fine.pretrain.loop import Told, pretrain
from coarse2fine.pretrain.objective import Batch, Method, Views
from coarse2fine.pretrain.schedule import Schedule

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Supervised:
    """The task's loss on labelled images, which are augmented."""

    task: Task
    policy: Policy

    @property
    def heads(self) -> nn.Module:
        """None: a head that is to stay belongs to the network."""
        return nn.Identity()

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        """Images and labels, changed as the policy says."""
        images, targets = batch["images"], batch["targets"]
        dense = targets.ndim == images.ndim - 1
        images, moved = self.policy.apply(images, targets if dense else None, generator)
        return {"images": images, "targets": targets if moved is None else moved}

    def loss(self, network: nn.Module, views: Views) -> torch.Tensor:
        """The task's."""
        return self.task.loss(network(views["images"]), views["targets"])


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came out.

    Attributes:
        tuned: The network with its head.
        found: What the task keeps of each image that was held out: probabilities of labels, or a map of classes.
        measures: By name, the task's main one first.
    """

    tuned: Tuned
    found: list[Array]
    measures: dict[str, Measure]


def finetune(
    network: nn.Module,
    task: Task,
    train: Examples,
    test: Examples,
    schedule: Schedule,
    folder: Path,
    *,
    patch: Sequence[int] | None = None,
    policy: Policy = PLAIN,
    decay: float = 1.0,
    frozen: bool = False,
    told: Told = lambda done: None,
) -> Outcome:
    """Learn from labelled images, and measure on others; goes on where it was cut off in the same folder.

    Args:
        network: A ``ViT`` or one of nnU-Net's with an output for each class if it is to segment, on the device that is
            to work; with the weights to begin with. It is changed.
        task: What labels ask for.
        train: To learn from.
        test: To measure on.
        schedule: How long and how fast.
        folder: Of state and curve.
        patch: Shape of crops and windows; None: that of the first image.
        policy: How training images are changed.
        decay: Of rates from layer to layer, see ``rate_groups``.
        frozen: Whether only the head learns.
        told: Told after every piece.

    Raises:
        C2FError: If the loss is no number any more, or the folder is another training's.
    """
    patch = tuple(train.images[0].shape[1:] if patch is None else patch)
    tuned = put_head(network, task, frozen=frozen, seed=schedule.seed)
    tuned.to(next(network.parameters()).device)
    method = Method({"labels": Supervised(task, policy)})
    source = LabelledCrops(train, patch)
    pretrain(tuned, method, source, schedule, folder, told, rate_groups(tuned, network, decay))
    found = list(predict(tuned, task, test.images, patch, schedule.batch))
    return Outcome(tuned, found, task.measure(found, test.targets, test.patients))


def predict(tuned: nn.Module, task: Task, images: Sequence[Array], patch: Sequence[int], batch: int) -> Iterator[Array]:
    """What the task keeps of each image, in windows, of which several are looked at together.

    Probabilities of labels are the mean over an image's windows; those of voxels over the windows that a voxel is in.
    """
    device = next(tuned.parameters()).device
    tuned.eval()
    jobs = [(number, start) for number, image in enumerate(images) for start in windows(image.shape[1:], patch)]
    total: Array | None = None
    weight: Array = np.zeros(())
    for begin in range(0, len(jobs), batch):
        part = jobs[begin : begin + batch]
        inputs = torch.from_numpy(np.stack([cut(images[number], start, patch) for number, start in part]))
        with torch.no_grad():
            outputs = task.probabilities(tuned(inputs.to(device))).float().cpu().numpy()
        for index, (number, start) in enumerate(part):
            output, shape = outputs[index], images[number].shape[1:]
            if total is None:
                total, weight = _blank(output, shape)
            _add(total, weight, output, start)
            if begin + index + 1 == len(jobs) or jobs[begin + index + 1][0] != number:
                yield task.settle(total / weight)
                total = None


def _blank(output: Array, shape: Sequence[int]) -> tuple[Array, Array]:
    """Sums and weights, of voxels if outputs are of voxels."""
    dense = output.ndim > 1
    return np.zeros((len(output), *(shape if dense else ())), np.float32), np.zeros(shape if dense else (), np.float32)


def _add(total: Array, weight: Array, output: Array, start: Sequence[int]) -> None:
    """Add a window's output where it lies."""
    if output.ndim == 1:
        total += output
        weight += 1
        return
    inside, where = [], []
    for low, size, whole in zip(start, output.shape[1:], weight.shape, strict=True):
        first, last = max(low, 0), min(low + size, whole)
        where.append(slice(first, last))
        inside.append(slice(first - low, last - low))
    total[:, *where] += output[:, *inside]
    weight[*where] += 1
