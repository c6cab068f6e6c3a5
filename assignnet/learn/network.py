"""The network of an agent: a set transformer over the regions and a pointer that scores them.

The encoder looks at a tree once; only the pointer runs for every choice. Both treat regions as a set: permuting the
regions permutes the scores. After Lee et al., "Set Transformer" (2019), Vinyals et al., "Pointer Networks" (2015), and
Kool et al., "Attention, Learn to Solve Routing Problems!" (2019), from which the split into encoder and decoder is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from assignnet.learn.observation import OWN, PLACE, STANDING, Observation

STATUS = 4
"""Numbers that say how far the choice has come: lambda, cost so far, budget left (at most 2), whether it began."""
CLIP = 10.0
"""Scores stay within this, after Bello et al. (2017), so that exploration does not die."""


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """What determines the shapes of a network's weights.

    Attributes:
        features: Network features per region, without the 7 numbers of its own.
        volume: Features of the whole volume (``global_info``); 0 without.
        start_label: Whether a learned token stands for the last choice before the first one; else zeros.
        width: Width of all layers.
        layers: Attention layers of the encoder.
        heads: Attention heads.
    """

    features: int
    volume: int = 0
    start_label: bool = False
    width: int = 64
    layers: int = 2
    heads: int = 4

    def to_dict(self) -> dict[str, Any]:
        """The values by name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A batch of trees after the encoder.

    Attributes:
        regions: Shape (batch, n, width).
        present: Whether a row is a region, not padding; shape (batch, n).
        summary: Mean over the regions, with the volume's features; shape (batch, width).
        overlap: Share of the row's box that lies in the column's, shape (batch, n, n).
        stakes: Cost and mass of each region as shares (see ``Observation``), shape (batch, n, 2).
    """

    regions: torch.Tensor
    present: torch.Tensor
    summary: torch.Tensor
    overlap: torch.Tensor
    stakes: torch.Tensor

    def select(self, trees: torch.Tensor) -> Encoded:
        """Some of the trees, or some several times; ``trees`` are indices, shape (rows,)."""
        parts = (self.regions, self.present, self.summary, self.overlap, self.stakes)
        return Encoded(*(part[trees] for part in parts))


def box_overlaps(standing: torch.Tensor) -> torch.Tensor:
    """Share of each region's box that lies in each other's.

    Args:
        standing: Shape (batch, n, 12), see ``Observation``.

    Returns:
        Shape (batch, n, n): row i, column j is the share of box i in box j; 0 on the diagonal and for empty boxes.
    """
    low, high = standing[..., -PLACE : -PLACE // 2], standing[..., -PLACE // 2 :]
    shared = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])
    volume = (high - low).prod(dim=-1)
    shares = shared.clamp_min(0).prod(dim=-1) / volume.clamp_min(1e-9)[:, :, None]
    return shares * (1 - torch.eye(standing.shape[1], dtype=shares.dtype, device=shares.device))


class SetEncoder(nn.Module):
    """Regions -> vectors that know of each other.

    Args:
        size: Shapes.
    """

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        width = size.width
        self.features = size.features
        self.seen = (
            nn.Sequential(nn.LayerNorm(size.features), nn.Linear(size.features, width)) if size.features else None
        )
        self.own = nn.Linear(OWN + STANDING - PLACE, width)
        self.heads = size.heads
        # How much each head looks at boxes that hold a part of a region's box, and at those of which it holds a part.
        self.near = nn.Parameter(torch.zeros(2, size.heads))
        self.above = nn.Linear(width, width)
        self.below = nn.Linear(width, width)
        layer = nn.TransformerEncoderLayer(
            width, size.heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.attention = nn.TransformerEncoder(layer, size.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.volume = nn.Sequential(nn.LayerNorm(size.volume), nn.Linear(size.volume, width)) if size.volume else None

    def forward(
        self,
        nodes: torch.Tensor,
        standing: torch.Tensor,
        parent: torch.Tensor,
        present: torch.Tensor,
        volume: torch.Tensor,
    ) -> Encoded:
        """Encode trees.

        Args:
            nodes: Shape (batch, n, features + 7), see ``Observation``.
            standing: Shape (batch, n, 12).
            parent: Row of the parent, shape (batch, n), integers.
            present: Shape (batch, n), boolean.
            volume: Shape (batch, G); unused without ``global_info``.
        """
        inside = present[..., None].to(nodes.dtype)
        own = torch.cat([nodes[..., self.features :], standing[..., :-PLACE]], dim=-1)
        vectors = self.own(own)
        if self.seen is not None:
            vectors = vectors + self.seen(nodes[..., : self.features])
        vectors = torch.nn.functional.gelu(vectors) * inside
        index = parent[..., None].expand_as(vectors)
        ofparent = torch.gather(vectors, 1, index)
        # Regions without a parent count as their own parent, but not as their own child.
        is_top = parent == torch.arange(parent.shape[1], device=parent.device)
        children = torch.zeros_like(vectors).scatter_add(1, index, vectors * ~is_top[..., None])
        vectors = (vectors + self.above(ofparent) + self.below(children)) * inside
        # A tree without regions still needs one key to attend to.
        padding = ~present & present.any(dim=1, keepdim=True)
        overlap = box_overlaps(standing)
        both = torch.stack([overlap, overlap.transpose(1, 2)], dim=-1)
        bias = (both @ self.near).permute(0, 3, 1, 2).masked_fill(padding[:, None, None], -torch.inf)
        vectors = self.attention(vectors, mask=bias.flatten(0, 1)) * inside
        summary = vectors.sum(dim=1) / inside.sum(dim=1).clamp_min(1)
        if self.volume is not None:
            summary = summary + self.volume(volume)
        return Encoded(vectors, present, summary, overlap, standing[..., :2])


class Pointer(nn.Module):
    """Scores of stopping and of each region, given what has been chosen; and the value of the situation.

    Args:
        size: Shapes.
    """

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        width = size.width
        self.stop = nn.Parameter(torch.zeros(width))
        self.start = nn.Parameter(torch.zeros(width)) if size.start_label else None
        self.situation = nn.Sequential(nn.Linear(3 * width + STATUS, width), nn.GELU(), nn.Linear(width, width))
        self.key = nn.Linear(width, width)
        self.near = nn.Linear(width, width, bias=False)
        self.offer = nn.Linear(4, width)
        self.score = nn.Linear(width, 1)
        self.value = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(
        self, encoded: Encoded, taken: torch.Tensor, last: torch.Tensor, status: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score the next choice.

        Args:
            encoded: From the encoder.
            taken: Regions chosen so far, shape (batch, n), boolean.
            last: Row of the last choice, -1 before the first; shape (batch,), integers.
            status: Shape (batch, 4), see ``STATUS``.

        Returns:
            Scores, shape (batch, 1 + n), of stopping and of each region, within +-10; invalid ones are not masked.
            Values, shape (batch,).
        """
        vectors = encoded.regions
        so_far = (vectors * taken[..., None]).sum(dim=1) / taken.sum(dim=1, keepdim=True).clamp_min(1)
        row = last.clamp_min(0)[:, None, None].expand(-1, 1, vectors.shape[2])
        previous = torch.gather(vectors, 1, row)[:, 0]
        began = (last >= 0)[:, None]
        start = torch.zeros_like(previous) if self.start is None else self.start.expand_as(previous)
        previous = torch.where(began, previous, start)
        weight = status[:, :1].clamp_min(1e-4)
        status = torch.cat([torch.log10(weight) + 1, status[:, 1:]], dim=1)
        situation = self.situation(torch.cat([encoded.summary, so_far, previous, status], dim=-1))
        keys = torch.cat([self.stop.expand(len(vectors), 1, -1), vectors], dim=1)
        mixed = self.key(keys) + situation[:, None] + self.near(keys * previous[:, None])
        mixed[:, 1:] += self.offer(_offers(encoded, taken, weight))
        scores = CLIP * torch.tanh(self.score(torch.tanh(mixed))[..., 0] / CLIP)
        return scores, self.value(situation)[:, 0]


def _offers(encoded: Encoded, taken: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What each region offers now: how much of it is covered, once and in sum, what it costs, and what is left of it.

    Args:
        encoded: The trees.
        taken: Regions chosen so far, shape (batch, n).
        weight: Lambda, shape (batch, 1).

    Returns:
        Shape (batch, n, 4); cost times lambda and mass as logarithms, because their ratio is what counts.
    """
    cost, mass = encoded.stakes.unbind(dim=-1)
    covered = (encoded.overlap * taken[:, None]).sum(dim=2)
    once = covered.clamp_max(1)
    price, left = torch.log10(weight * cost + 1e-5) + 3, torch.log10(mass * (1 - once) + 1e-4) + 2
    return torch.stack([once, covered, price, left], dim=-1)


class AssignNetwork(nn.Module):
    """Encoder and pointer.

    Args:
        size: Shapes.
    """

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.size = size
        self.encoder = SetEncoder(size)
        self.pointer = Pointer(size)


def stack(observations: Sequence[Observation], rows: int | None = None) -> tuple[torch.Tensor, ...]:
    """Scenes as a padded batch: the arguments of ``SetEncoder``.

    Args:
        observations: At least one; all with equally many features.
        rows: Rows of the padded batch; None = as many as the largest observation has.
    """
    rows = max(len(observation.parent) for observation in observations) if rows is None else rows
    nodes = np.zeros((len(observations), rows, observations[0].nodes.shape[1]), np.float32)
    standing = np.zeros((len(observations), rows, observations[0].standing.shape[1]), np.float32)
    parent = np.tile(np.arange(rows), (len(observations), 1))
    present = np.zeros((len(observations), rows), bool)
    for index, observation in enumerate(observations):
        count = len(observation.parent)
        nodes[index, :count], standing[index, :count] = observation.nodes, observation.standing
        parent[index, :count], present[index, :count] = observation.parent, True
    volume = np.stack([observation.volume for observation in observations])
    return tuple(map(torch.from_numpy, (nodes, standing, parent, present, volume)))
