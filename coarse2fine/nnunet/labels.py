"""How network outputs become labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch


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
    def head_of(self) -> dict[str, int]:
        """The output of each foreground label, or of each region, by name; two names of one label share theirs."""
        values = self.values_of
        if self.regions:
            return {name: head for head, name in enumerate(values)}
        order = (0, *self.foreground)
        return {name: order.index(value) for name, of in values.items() for value in of}

    @property
    def values_of(self) -> dict[str, frozenset[int]]:
        """Label values by name, of all names that are neither background nor ``ignore``, in the order of the file."""
        named = {
            name: frozenset(map(int, value if isinstance(value, list | tuple) else [value]))
            for name, value in self.names.items()
            if name != "ignore"
        }
        return {name: values for name, values in named.items() if values != {0}}

    def left_out(self, chosen: Collection[str]) -> list[str]:
        """Names of foreground labels other than the chosen ones; none of a region that lies in chosen ones.

        Args:
            chosen: Names in ``head_of``.
        """
        values = self.values_of
        held = frozenset[int]().union(*(values[name] for name in chosen))
        return [name for name, of in values.items() if not of <= held]

    def agree_with(self, other: Labels) -> bool:
        """Whether equal label values mean the same in both; ``ignore`` does not count, which is never a result."""
        mine, its = self.values_of, other.values_of
        # Where regions overlap, the order in which they are painted decides what a value means.
        return mine == its and self.regions == other.regions and (not self.regions or list(mine) == list(its))

    @property
    def ignore(self) -> int | None:
        """The label of voxels of a reference that nobody decided on, nnU-Net's ``ignore``; None if there is none."""
        value = self.names.get("ignore")
        return int(value) if isinstance(value, int) else None

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Smallest unsigned type that holds every label."""
        return np.uint8 if max(self.foreground, default=0) < 256 else np.uint16

    @property
    def tensor_dtype(self) -> torch.dtype:
        """The same type as PyTorch calls it."""
        return torch.uint8 if self.dtype is np.uint8 else torch.uint16

    def from_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Labels of the largest output, or of the last painted region with probability above one half.

        Args:
            logits: Network outputs, shape (heads, ...).

        Returns:
            Label values, shape (...). On ties the lower class wins, as in nnU-Net.
        """
        if self.heads == 2 and not self.regions:
            return (logits[1] > logits[0]).to(self.tensor_dtype)
        if self.regions:
            # PyTorch does little with 16 bits without sign.
            computed = torch.uint8 if self.tensor_dtype == torch.uint8 else torch.int32
            labels = torch.zeros(logits.shape[1:], dtype=computed, device=logits.device)
            for output, label in zip(logits, self.regions, strict=True):
                labels.masked_fill_(output > 0, label)
            return labels.to(self.tensor_dtype)
        # How many outputs come before the first of the largest; argmax over the slowest axis is several times slower.
        # Counted in floats, as comparing into them is several times faster than into booleans.
        best = logits.amax(0)
        lower = torch.empty_like(best, dtype=torch.float32)
        before, count = torch.ones_like(lower), torch.zeros_like(lower)
        for output in logits[:-1]:
            before *= torch.lt(output, best, out=lower)
            count += before
        return count.to(self.tensor_dtype)

    def is_foreground(self, logits: torch.Tensor) -> torch.Tensor:
        """Where ``from_logits`` gives a label, bool, shape (...); quicker where outputs are many.

        Args:
            logits: Network outputs, shape (heads, ...).
        """
        return logits.amax(0) > 0 if self.regions else logits[1:].amax(0) > logits[0]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of each output, as nnU-Net's ``apply_inference_nonlin`` makes them: softmax, or sigmoids of regions.

        Args:
            logits: Shape (heads, ...).
        """
        values = logits.float()
        return torch.sigmoid(values) if self.regions else torch.softmax(values, 0)

    def from_probabilities(self, values: torch.Tensor) -> torch.Tensor:
        """Labels of the most probable output, or of the last painted region with a probability above one half.

        Args:
            values: Shape (heads, ...).
        """
        return self.from_logits(values - 0.5 if self.regions else values)

    def certainly(self, labels: torch.Tensor) -> torch.Tensor:
        """Probabilities, all zero or one, of voxels that somebody else gave a label.

        Args:
            labels: Shape (...).

        Returns:
            Shape (heads, ...).
        """
        values = [{value} for value in (0, *self.foreground)] if not self.regions else self.values_of.values()
        return torch.stack([reduce(torch.logical_or, [labels == value for value in of]) for of in values]).float()

    def foreground_probability(self, logits: torch.Tensor, heads: Collection[int] | None = None) -> torch.Tensor:
        """Probability that a voxel is foreground.

        Args:
            logits: Shape (heads, z, y, x).
            heads: Outputs that count as foreground; None for all but the background's.

        Returns:
            Shape (z, y, x), 0 to 1: the softmax summed over what counts (all: one minus the background's), or the most
            probable region that counts.
        """
        logits = logits.float()
        # By single operations: PyTorch's sigmoid and softmax round otherwise where the end of a row fills no vector
        # register, and a value must not depend on what is computed beside it.
        if self.regions:
            highest = reduce(torch.maximum, logits if heads is None else [logits[head] for head in heads])
            return 1 / (1 + torch.exp(-highest))
        highest = logits.amax(0)
        weights = [torch.exp(head - highest) for head in logits]
        total = reduce(torch.add, weights)
        if heads is None:
            return 1 - weights[0] / total
        return (reduce(torch.add, [weights[head] for head in heads]) / total).clamp(max=1)  # which rounding may exceed
