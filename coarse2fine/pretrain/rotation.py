"""Rotation: by which right angles was an image turned? After Gidaris and others, ICLR 2018.

In 3D as far as the shape of images allows: a cube has 24 turns, with two edges alike there are 8, and with three
different ones the 4 half turns; a square has 4, a rectangle 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import permutations, product

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from coarse2fine.networks.features import pooled, width_of
from coarse2fine.pretrain.borders import Border, content
from coarse2fine.pretrain.objective import Batch, Views


@dataclass(frozen=True, slots=True)
class Turn:
    """Right angles.

    Attributes:
        order: Which axis goes where each one was.
        flipped: Axes that are reversed after that. An even number for even orders, else an odd one.
    """

    order: tuple[int, ...]
    flipped: tuple[int, ...]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Turned images; the last axes are those of the image."""
        first = images.ndim - len(self.order)
        turned = images.permute(*range(first), *(first + axis for axis in self.order))
        return turned.flip([first + axis for axis in self.flipped])


def turns_of(shape: Sequence[int]) -> tuple[Turn, ...]:
    """All turns by right angles that leave a shape as it is, first that by none.

    >>> [len(turns_of(shape)) for shape in [(8, 8), (8, 6), (8, 8, 8), (8, 6, 8), (8, 6, 4)]]
    [4, 2, 24, 8, 4]
    """
    axes = range(len(shape))
    orders = [order for order in permutations(axes) if all(shape[old] == shape[new] for new, old in enumerate(order))]
    signs = [tuple(axis for axis in axes if chosen[axis]) for chosen in product((False, True), repeat=len(shape))]
    return tuple(Turn(order, flipped) for order in orders for flipped in signs if _is_turn(order, flipped))


def _is_turn(order: tuple[int, ...], flipped: tuple[int, ...]) -> bool:
    """Whether it is no reflection: its determinant is 1."""
    swaps = sum(first > second for at, first in enumerate(order) for second in order[at + 1 :])
    return (swaps + len(flipped)) % 2 == 0


class Rotation:
    """Cross-entropy of the turn, each image having one of its own.

    Args:
        network: That learns.
        shape: Of images, without channels.
        border: What is covered after the turn.
    """

    def __init__(self, network: nn.Module, shape: Sequence[int], border: Border) -> None:
        self.turns = turns_of(shape)
        self.head = nn.Linear(width_of(network), len(self.turns))
        self.visible = border.visible(shape)
        self.covers = border.kind != "none"

    @property
    def heads(self) -> nn.Module:
        """Pooled features in, a number for each turn out."""
        return self.head

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        """Turned images, and the numbers of their turns."""
        images = batch["images"]
        turn = torch.from_numpy(generator.integers(len(self.turns), size=len(images))).to(images.device)
        turned = torch.stack([self.turns[chosen](image) for image, chosen in zip(images, turn.tolist(), strict=True)])
        if self.covers:
            turned = turned * (self.visible.to(images.device) & self._always_inside(images))
        return {"image": turned, "turn": turn}

    def loss(self, network: nn.Module, views: Views) -> torch.Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self.logits(network, views["image"]), views["turn"])

    def logits(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """A number for each turn; shape (n, turns)."""
        logits: torch.Tensor = self.head(pooled(network, images))
        return logits

    def _always_inside(self, images: torch.Tensor) -> torch.Tensor:
        """Where an image would have content after each of the turns: the same after all of them."""
        inside = content(images)
        return reduce(torch.logical_and, (turn(inside) for turn in self.turns))
