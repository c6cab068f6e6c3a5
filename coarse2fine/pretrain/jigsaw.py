"""Jigsaw: in which order are the tiles of an image? After Noroozi and Favaro, ECCV 2016.

Tiles are put together again and seen at once, not one by one: networks need shapes that their strides divide, or that
their positions are made for, and the image has such a shape. Their features are averaged tile by tile, so that the
answer is found in what tiles show, as by an encoder that is shared by all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, permutations
from math import factorial, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from coarse2fine.errors import ConfigError
from coarse2fine.networks.features import encode, width_of
from coarse2fine.pretrain.borders import Border, content
from coarse2fine.pretrain.objective import Batch, Views

_TINY = 1e-6
"""Added to the variance of a tile."""
_GAP = 11 / 75
"""Share of a cell's edge that its tile leaves free, as there: tiles of 64 pixels in cells of 75."""
MOST_TILES = 9
"""All their orders are listed, of which there are 362,880."""


def distant_orders(tiles: int, count: int, seed: int) -> NDArray[np.int64]:
    """Orders of tiles that differ in as many places as possible, chosen greedily.

    Each is one of those whose least Hamming distance to all earlier ones is greatest.

    Args:
        tiles: In an order; at most 9.
        count: Of orders.
        seed: Chooses the first, and among equals.

    Returns:
        Shape (count, tiles).

    Raises:
        ConfigError: If there are not so many orders, or too few to tell apart.
    """
    if not 2 <= count <= factorial(tiles):
        raise ConfigError(
            f"{count} orders of {tiles} tiles cannot be told apart", f"Use a count from 2 to {factorial(tiles)}."
        )
    flat = chain.from_iterable(permutations(range(tiles)))
    every = np.fromiter(flat, np.int8, factorial(tiles) * tiles).reshape(-1, tiles).T.copy()  # which is summed faster
    generator = np.random.default_rng(seed)
    nearest = np.full(every.shape[1], tiles, np.int8)
    chosen = []
    for _ in range(count):
        chosen.append(int(generator.choice(np.flatnonzero(nearest == nearest.max()))))
        nearest = np.minimum(nearest, (every != every[:, chosen[-1:]]).sum(0, dtype=np.int8))
    return every[:, chosen].T.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Cells:
    """An image divided into cells, each with a tile in the middle.

    Attributes:
        image: Shape.
        parts: Cells along each axis. What an edge is longer than their multiple stays free.

    Raises:
        ConfigError: If tiles would be too small to show anything, or too many.
    """

    image: tuple[int, ...]
    parts: tuple[int, ...]

    def __post_init__(self) -> None:
        if prod(self.parts) > MOST_TILES or prod(self.parts) < 2:
            raise ConfigError(
                f"a jigsaw of {' x '.join(map(str, self.parts))} has {prod(self.parts)} tiles",
                f"Use 2 to {MOST_TILES} tiles: 3 along each edge in 2D, 2 in 3D.",
            )
        if min(self.cell) < 4:
            raise ConfigError(
                f"images of {' x '.join(map(str, self.image))} are too small for {' x '.join(map(str, self.parts))} "
                "tiles with gaps",
                f"Use edges of at least {4 * max(self.parts)}.",
            )

    @property
    def cell(self) -> tuple[int, ...]:
        """Edges of a cell."""
        return tuple(size // part for size, part in zip(self.image, self.parts, strict=True))

    @property
    def tile(self) -> tuple[int, ...]:
        """Edges of a tile."""
        return tuple(edge - max(1, round(_GAP * edge)) for edge in self.cell)

    def slices(self, index: int, offset: Iterable[int]) -> tuple[slice, ...]:
        """Where a tile lies.

        Args:
            index: Of its cell.
            offset: From the beginning of the cell.
        """
        places = np.unravel_index(index, self.parts)
        starts = [int(at) * edge + more for at, edge, more in zip(places, self.cell, offset, strict=True)]
        return tuple(slice(start, start + edge) for start, edge in zip(starts, self.tile, strict=True))


class Jigsaw:
    """Cross-entropy of the order, each image having one of its own.

    A tile is taken from a random place within its cell, so that no edge goes on in the next one, and normalised by
    itself, so that brightness does not tell where it was. What is padding or in the frame of the image somewhere in a
    tile is covered in all of them.

    Args:
        network: That learns.
        shape: Of images, without channels.
        border: What is covered of each tile; of the image it is a frame of the same width, whatever the kind, since no
            tile has anything in common with those at the other corners of a disc.
        orders: How many there are.
        seed: Chooses them.
        parts: Tiles along each axis; None: 3 in 2D, 2 in 3D.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        border: Border,
        orders: int = 100,
        seed: int = 0,
        parts: Sequence[int] | None = None,
    ) -> None:
        self.cells = Cells(tuple(shape), tuple(parts or (3 if len(shape) == 2 else 2,) * len(shape)))
        self.orders = distant_orders(prod(self.cells.parts), orders, seed)
        self.head = nn.Linear(width_of(network) * prod(self.cells.parts), orders)
        self.visible = border.visible(self.cells.tile)
        self.frame = Border("frame", border.width).visible(shape)
        self.covers = border.kind != "none"

    @property
    def heads(self) -> nn.Module:
        """Features of all tiles in, a number for each order out."""
        return self.head

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        """Images of tiles in another order, and the numbers of these orders."""
        images = batch["images"]
        order = generator.integers(len(self.orders), size=len(images))
        spare = np.subtract(self.cells.cell, self.cells.tile)
        offsets = generator.integers(spare + 1, size=(len(images), prod(self.cells.parts), len(spare)))
        tiles, visible = self._tiles(images, offsets), self.visible.to(images.device)
        if self.covers:
            inside = content(images) & self.frame.to(images.device)
            visible = visible & self._tiles(inside, offsets).all(1, keepdim=True)
        tiles = _normalised(tiles, visible.expand_as(tiles[:, :, :1])) * visible
        puzzle = torch.zeros_like(images)
        chosen = torch.from_numpy(self.orders[order]).to(images.device)
        tiles = tiles.gather(1, chosen.view(*chosen.shape, *[1] * (tiles.ndim - 2)).expand_as(tiles))
        for place in range(len(self.orders[0])):
            puzzle[:, :, *self.cells.slices(place, spare // 2)] = tiles[:, place]
        return {"image": puzzle, "order": torch.from_numpy(order).to(images.device)}

    def loss(self, network: nn.Module, views: Views) -> torch.Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self.logits(network, views["image"]), views["order"])

    def logits(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """A number for each order; shape (n, orders)."""
        features = encode(network, images)
        pool = F.adaptive_avg_pool2d if features.ndim == 4 else F.adaptive_avg_pool3d
        logits: torch.Tensor = self.head(pool(features, self.cells.parts).flatten(1))  # type: ignore[arg-type]
        return logits

    def _tiles(self, images: torch.Tensor, offsets: NDArray[np.int64]) -> torch.Tensor:
        """Shape (n, tiles, channels, *tile)."""
        return torch.stack(
            [
                torch.stack([image[:, *self.cells.slices(at, offset)] for at, offset in enumerate(of_image)])
                for image, of_image in zip(images, offsets, strict=True)
            ]
        )


def _normalised(tiles: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Each tile with mean 0 and variance 1 over what is visible of it, all channels alike."""
    axes = tuple(range(2, tiles.ndim))
    count = (visible.sum(axes, keepdim=True) * tiles.shape[2]).clamp(min=1)
    centred = tiles - (tiles * visible).sum(axes, keepdim=True) / count
    return centred / (((centred * visible) ** 2).sum(axes, keepdim=True) / count + _TINY).sqrt()
