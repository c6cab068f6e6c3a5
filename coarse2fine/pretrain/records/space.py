"""The space in which images and reports are compared."""

from __future__ import annotations

import torch
from torch import nn

from coarse2fine.pretrain.records.text import Reader, TextShape


class Projection(nn.Sequential):
    """Two layers into it."""

    def __init__(self, seen: int, width: int) -> None:
        super().__init__(nn.Linear(seen, seen), nn.ReLU(), nn.Linear(seen, width))


class Space(nn.Module):
    """The network that reads reports, and both projections.

    Args:
        seen: Features of an image.
        text: Of the network that reads.
        width: Of the space.
    """

    def __init__(self, seen: int, text: TextShape, width: int) -> None:
        super().__init__()
        self.reader = Reader(text)
        self.of_images, self.of_reports = Projection(seen, width), Projection(text.width, width)

    def read(self, words: torch.Tensor) -> torch.Tensor:
        """Where reports lie; words of shape (n, length) in, shape (n, width) out."""
        projected: torch.Tensor = self.of_reports(self.reader.pooled(words))
        return projected
