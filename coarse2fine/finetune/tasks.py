"""What labels ask for: classes of whole images, or of every voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from coarse2fine.finetune.measures import Measure, dice, mean, mean_auroc, with_interval

Array = NDArray[Any]

_SMOOTH = 1e-5
"""Added to both parts of the fraction in the loss, so that a class that is in neither has no gradient."""


class Task(Protocol):
    """What a network is to tell of images."""

    @property
    def outputs(self) -> int:
        """Numbers of each image, or of each voxel."""

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """How far outputs are from labels; a single number."""

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of the same shape as the outputs."""

    def settle(self, probabilities: Array) -> Array:
        """What is kept of an image's probabilities."""

    def measure(self, found: Sequence[Array], targets: Sequence[Array], patients: Sequence[str]) -> dict[str, Measure]:
        """How good that is."""


@dataclass(frozen=True, slots=True)
class Classification:
    """Labels of whole images. Targets are rows of 0 and 1 with one number for each label.

    Attributes:
        labels: Their names.
        exclusive: Whether each image has exactly one of them.
    """

    labels: tuple[str, ...]
    exclusive: bool = False

    @property
    def outputs(self) -> int:
        """One for each label."""
        return len(self.labels)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy: of each label by itself, or of all together if they are exclusive."""
        if self.exclusive:
            return F.cross_entropy(logits, targets.argmax(1))
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Shape (n, labels), in and out."""
        return logits.softmax(1) if self.exclusive else logits.sigmoid()

    def settle(self, probabilities: Array) -> Array:
        """All of them."""
        return probabilities

    def measure(self, found: Sequence[Array], targets: Sequence[Array], patients: Sequence[str]) -> dict[str, Measure]:
        """AUROC, the mean over labels and each of them, and accuracy.

        Accuracy is the share of images whose most probable label is right, or that of answers that are right if labels
        are not exclusive: above 0.5 means yes.
        """
        scores, truth = np.stack(found), np.stack(targets).astype(bool)

        def accuracy(rows: NDArray[np.intp]) -> float:
            if self.exclusive:
                return float((scores[rows].argmax(1) == truth[rows].argmax(1)).mean())
            return float(((scores[rows] > 0.5) == truth[rows]).mean())

        measures = {
            "auroc": with_interval(partial(_mean_auroc_of, scores, truth), patients),
            "accuracy": with_interval(accuracy, patients),
        }
        for number, name in enumerate(self.labels):
            pair = scores[:, [number]], truth[:, [number]]
            measures[f"auroc {name}"] = with_interval(partial(_mean_auroc_of, *pair), patients)
        return measures


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A class for every voxel. Targets are maps of class numbers; 0 is the background.

    Attributes:
        classes: Their names, the background's first.
    """

    classes: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """One for each class."""
        return len(self.classes)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, plus 1 minus the mean soft Dice of the foreground's classes over the whole batch.

        Args:
            logits: Shape (n, classes, *image).
            targets: Shape (n, *image).
        """
        targets = targets.long()
        found, wanted = logits.softmax(1), F.one_hot(targets, self.outputs).movedim(-1, 1).to(logits.dtype)
        axes = (0, *range(2, logits.ndim))
        hits, sizes = (found * wanted).sum(axes)[1:], (found + wanted).sum(axes)[1:]
        return F.cross_entropy(logits, targets) + 1 - ((2 * hits + _SMOOTH) / (sizes + _SMOOTH)).mean()

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Shape (n, classes, *image), in and out."""
        return logits.softmax(1)

    def settle(self, probabilities: Array) -> Array:
        """The most probable class of each voxel."""
        return probabilities.argmax(0).astype(np.uint8 if self.outputs <= 256 else np.uint16)

    def measure(self, found: Sequence[Array], targets: Sequence[Array], patients: Sequence[str]) -> dict[str, Measure]:
        """Dice: the mean over images of the mean over the foreground's classes, and that of each class."""
        scores = np.stack([dice(*pair, self.outputs) for pair in zip(found, targets, strict=True)])
        each = np.array([mean(row) for row in scores])
        measures = {"dice": with_interval(partial(_mean_of, each), patients)}
        for number, name in enumerate(self.classes[1:]):
            measures[f"dice {name}"] = with_interval(partial(_mean_of, scores[:, number]), patients)
        return measures


def _mean_auroc_of(scores: Array, truth: Array, rows: NDArray[np.intp]) -> float:
    return mean_auroc(scores[rows], truth[rows])


def _mean_of(values: Array, rows: NDArray[np.intp]) -> float:
    return mean(values[rows])
