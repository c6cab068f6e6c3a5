"""A patch divided into blocks, which are hidden and normalised as a whole. In any number of dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

_TINY = 1e-6
"""Added to the variance of a block, so that a constant one has a normalised value."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Edges of the blocks along each axis of a patch.

    Attributes:
        edges: For each axis the edges of its blocks, in voxels.

    >>> Blocks.of((32, 20), 16).edges
    ((16, 16), (10, 10))
    """

    edges: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, patch: Sequence[int], edge: int) -> Self:
        """As few blocks as possible with edges of at most ``edge``, and these as equal as possible."""
        bounds = [np.linspace(0, size, ceil(size / edge) + 1).round().astype(int) for size in patch]
        return cls(tuple(tuple(np.diff(axis).tolist()) for axis in bounds))

    @property
    def shape(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        return tuple(map(len, self.edges))

    @property
    def count(self) -> int:
        """Of all blocks."""
        return prod(self.shape)

    def to_voxels(self, chosen: Mask) -> Mask:
        """The voxels of chosen blocks.

        Args:
            chosen: Shape of the blocks.

        Returns:
            Shape of the patch.
        """
        for axis, edges in enumerate(self.edges):
            chosen = np.repeat(chosen, edges, axis)
        return chosen

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Each block of each channel with mean 0 and variance 1: ``(x - mean) / sqrt(var + 1e-6)``.

        Args:
            images: Shape (n, channels, *patch).
        """
        centred = images - self._spread(self._average(images))
        return centred / (self._spread(self._average(centred**2)) + _TINY).sqrt()

    def _average(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of each block: of blocks along one axis after the other."""
        for axis, edges in enumerate(self.edges, 2):
            parts: Iterable[torch.Tensor] = values.split(edges, axis)
            values = torch.cat([part.mean(axis, keepdim=True) for part in parts], axis)
        return values

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        """The inverse of ``_average``, where blocks are constant."""
        for axis, edges in enumerate(self.edges, 2):
            values = values.repeat_interleave(torch.tensor(edges, device=values.device), axis)
        return values
