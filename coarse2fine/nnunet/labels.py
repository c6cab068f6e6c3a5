"""How network outputs become labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Labels:
    """How network outputs become labels.

    Attributes:
        names: Label values, or lists of them for regions, by name, as in ``dataset.json``.
        heads: Number of network outputs.
        foreground: Label values other than background, ascending.
        regions: For region-based models the label that each output paints, in painting order; else empty.
    """

    names: Mapping[str, Any]
    heads: int
    foreground: tuple[int, ...]
    regions: tuple[int, ...]

    @property
    def ignore(self) -> int | None:
        """The label of voxels of a reference that nobody decided on, nnU-Net's ``ignore``; None if there is none."""
        value = self.names.get("ignore")
        return int(value) if isinstance(value, int) else None

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Smallest unsigned type that holds every label."""
        return np.uint8 if max(self.foreground, default=0) < 256 else np.uint16

    def from_logits(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.unsignedinteger[Any]]:
        """Labels of the largest output, or of the last painted region with probability above one half.

        Args:
            logits: Network outputs, shape (heads, ...).

        Returns:
            Label values, shape (...). On ties the lower class wins, as in nnU-Net.
        """
        if self.regions:
            painted = np.zeros(logits.shape[1:], self.dtype)
            for output, label in zip(logits, self.regions, strict=True):
                painted[output > 0] = label
            return painted
        if self.heads == 2:
            return (logits[1] > logits[0]).astype(self.dtype)
        # A running maximum reads each output once; argmax over the slowest axis is several times slower.
        best, labels = logits[0].copy(), np.zeros(logits.shape[1:], self.dtype)
        for label in range(1, self.heads):
            better = logits[label] > best
            np.copyto(labels, self.dtype(label), where=better)
            np.maximum(best, logits[label], out=best)
        return labels

    def foreground_probability(self, logits: torch.Tensor) -> torch.Tensor:
        """Probability that a voxel is not background.

        Args:
            logits: Shape (heads, z, y, x).

        Returns:
            Shape (z, y, x), 0 to 1: one minus the background's softmax, or the most probable region.
        """
        logits = logits.float()
        if self.regions:
            return torch.sigmoid(logits).amax(0)
        return 1 - torch.softmax(logits, 0)[0]
