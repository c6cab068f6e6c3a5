"""Which blocks of a patch are hidden. In any number of dimensions; True is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from coarse2fine.pretrain.blocks import Mask

FLOOR = 0.1
"""Weight of what is infinitely far from the centre, where the centre has 1."""
_STRETCH = 0.3
"""Least ratio between the edges of a box that a block mask hides at once (Bao and others, BEiT, 2022)."""
_LEAST = 16 / 196
"""Share of all blocks that the smallest such box hides, likewise."""

Floats = NDArray[np.float64]


def visible_count(blocks: int, ratio: float) -> int:
    """How many of some blocks stay visible: ``int(blocks * (1 - ratio))``, as if computed without rounding.

    >>> visible_count(10, 0.9)  # in floating point it is 0.9999999999999998
    1
    """
    return int(blocks * (1 - ratio) + 1e-9)


def random_mask(
    shape: Sequence[int], hidden: int, generator: np.random.Generator, weights: Floats | None = None
) -> Mask:
    """Hide some blocks, drawn without replacement.

    The blocks with the greatest sum of weight and Gumbel noise are those that one draws one after the other with
    probabilities in proportion to exp(weight).

    Args:
        shape: Of the blocks.
        hidden: How many.
        generator: Source of random numbers.
        weights: Logarithm of the weight of each block; None: all the same.
    """
    noise = generator.gumbel(size=prod(shape))
    scores = noise if weights is None else noise + weights.ravel()
    mask = np.zeros(prod(shape), bool)
    mask[np.argsort(-scores, kind="stable")[:hidden]] = True
    return mask.reshape(shape)


def block_mask(shape: Sequence[int], hidden: int, generator: np.random.Generator) -> Mask:
    """Hide boxes of blocks, until as many blocks are hidden as shall be.

    Args:
        shape: Of the blocks.
        hidden: How many; the last box is cut to hide no more.
        generator: Source of random numbers.
    """
    mask = np.zeros(tuple(shape), bool)
    while (left := hidden - int(mask.sum())) > 0:
        visible = np.argwhere(~mask)
        inside = generator.choice(visible)  # so that every box hides something
        edges = _box(shape, left, generator)
        starts = [
            int(np.clip(at - generator.integers(edge), 0, size - edge))
            for at, edge, size in zip(inside, edges, shape, strict=True)
        ]
        box = np.zeros_like(mask)
        box[tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))] = True
        new = np.argwhere(box & ~mask)
        mask[tuple(new[:left].T)] = True
    return mask


def _box(shape: Sequence[int], most: int, generator: np.random.Generator) -> list[int]:
    """Edges of a box of at most about ``most`` blocks, longer one way than the other at random."""
    least = min(max(1.0, _LEAST * prod(shape)), most)
    volume = generator.uniform(least, most)
    stretch = generator.uniform(np.log(_STRETCH), -np.log(_STRETCH), len(shape)) / 2
    edges = volume ** (1 / len(shape)) * np.exp(stretch - stretch.mean())
    return [int(np.clip(round(edge), 1, size)) for edge, size in zip(edges, shape, strict=True)]


def grid_mask(shape: Sequence[int], generator: np.random.Generator) -> Mask:
    """Leave every second block along every axis visible; where a grid begins is random.

    An axis with one block has nothing to leave out. Of 2 axes 3/4 are hidden, of 3 axes 7/8.
    """
    visible = np.ones(tuple(shape), bool)
    for axis, size in enumerate(shape):
        if size > 1:
            along = np.arange(size) % 2 == generator.integers(2)
            visible &= along.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return ~visible


def block_centres(shape: Sequence[int]) -> Floats:
    """Where blocks lie in their patch, from -1 to 1 along each axis; shape (*shape, axes)."""
    axes = [(2 * np.arange(size) + 1) / size - 1 for size in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def centre_weights(places: Floats, sigma: float, floor: float = FLOOR) -> Floats:
    """Logarithm of ``floor + (1 - floor) exp(-|c|^2 / (2 sigma^2))``.

    Args:
        places: Shape (..., axes), each axis from -1 to 1.
        sigma: Width; infinite: all weights are 1.
        floor: Weight far from the centre.
    """
    distance = np.square(places).sum(-1) / (2 * sigma**2)
    return np.asarray(np.log(floor + (1 - floor) * np.exp(-distance)))
