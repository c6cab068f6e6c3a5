"""Ways of spoiling an image that a network can repair only if it knows what such images look like.

In 2D one of cut-outs, out-painting, swapped blocks or nothing, as in DiRA (Haghighi and others, CVPR 2022); in 3D
non-linear intensities, shuffling and painting, as in Models Genesis (Zhou and others, Medical Image Analysis 2021).
Images have the shape (channels, *image) here, and any range of values; noise has that of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

Distortion = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]

_MOST_HOLES = {2: 10, 3: 5}
_HOLES = {2: (10 / 224, 70 / 224), 3: (1 / 6, 1 / 3)}
"""Shares of edges that a hole has at least and at most; in 2D holes of 10 to 70 pixels of 224."""
_WINDOWS = (3 / 7, 4 / 7)
"""The same of what out-painting removes."""
_MOST_WINDOWS = 5
_SWAPS, _SWAPPED = 10, (10 / 224, 15 / 224)
"""How many pairs of blocks are swapped, and the shares of their edges."""
_SHUFFLED = 1 / 10
"""Share of an edge within which voxels are shuffled at most."""
_STEPS = 1000
"""Of the table of a curve of intensities."""


def distort(images: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Each image in a way of its own.

    Args:
        images: Shape (n, channels, *image), with two or three axes; left as they are.
        generator: Source of random numbers.
    """
    change = _distorted_flat if images.ndim == 4 else _distorted_volume
    return torch.stack([change(image, generator) for image in images])


def _distorted_flat(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    kinds: list[Distortion] = [cut_out, paint_out, swap, lambda same, _: same]
    return kinds[int(generator.integers(len(kinds)))](image, generator)


def _distorted_volume(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """With Models Genesis' chances."""
    if generator.random() < 0.5:
        image = shuffle(image, generator)
    if generator.random() < 0.9:
        image = bend(image, generator)
    if generator.random() < 0.9:
        image = (paint_out if generator.random() < 0.8 else cut_out)(image, generator)
    return image


def cut_out(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Noise in boxes."""
    axes = image.ndim - 1
    noise, spoilt = _noise(image, generator), image.clone()
    for _ in range(int(generator.integers(1, _MOST_HOLES[axes] + 1))):
        box = _box(image.shape[1:], _HOLES[axes], generator)
        spoilt[:, *box] = noise[:, *box]
    return spoilt


def paint_out(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Noise everywhere but in a few windows that overlap as they like."""
    spoilt = _noise(image, generator)
    least, most = _WINDOWS
    for _ in range(int(generator.integers(1, _MOST_WINDOWS + 1))):
        box = _box(image.shape[1:], (1 - most, 1 - least), generator)
        spoilt[:, *box] = image[:, *box]
    return spoilt


def swap(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Blocks that change places."""
    spoilt = image.clone()
    for _ in range(_SWAPS):
        first = _box(image.shape[1:], _SWAPPED, generator)
        edges = [part.stop - part.start for part in first]
        second = _placed(image.shape[1:], edges, generator)
        kept = spoilt[:, *first].clone()
        spoilt[:, *first] = spoilt[:, *second]
        spoilt[:, *second] = kept
    return spoilt


def shuffle(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Voxels change places within blocks, all channels alike.

    The blocks divide the image, with edges and a first corner of their own each time. Models Genesis draws 10,000 that
    overlap, which takes seconds.
    """
    number = np.zeros(image.shape[1:], np.int64)
    for axis, size in enumerate(image.shape[1:]):
        edge = int(generator.integers(1, max(2, round(_SHUFFLED * size)) + 1))
        along = (np.arange(size) + generator.integers(edge)) // edge
        number = number * (size + 1) + along.reshape([-1 if other == axis else 1 for other in range(number.ndim)])
    block = number.ravel()
    source = np.lexsort((generator.random(block.size), block))
    target = np.argsort(block, kind="stable")
    moved = np.empty_like(source)
    moved[target] = source
    return image.flatten(1)[:, torch.from_numpy(moved).to(image.device)].view_as(image)


def bend(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Other intensities by a monotone Bezier curve of third order, falling as often as rising."""
    low, high = image.min(), image.max()
    points = np.concatenate([[[0, 0]], generator.random((2, 2)), [[1, 1]]])
    at = np.linspace(0, 1, _STEPS)[:, None]
    curve = (1 - at) ** 3 * points[0] + 3 * at * (1 - at) ** 2 * points[1]
    curve = np.sort(curve + 3 * at**2 * (1 - at) * points[2] + at**3 * points[3], axis=0)
    values = np.interp(np.linspace(0, 1, _STEPS), curve[:, 0], curve[:, 1])
    if generator.random() < 0.5:
        values = values[::-1]
    table = torch.from_numpy(values.astype(np.float32)).to(image.device)
    step = ((image - low) / (high - low).clamp(min=torch.finfo(image.dtype).tiny) * (_STEPS - 1)).round().long()
    return low + table[step.clamp(0, _STEPS - 1)] * (high - low)


def _noise(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Uniform between an image's least and greatest value."""
    noise = torch.from_numpy(generator.random(image.shape, np.float32)).to(image.device)
    return image.min() + noise * (image.max() - image.min())


def _box(shape: Sequence[int], shares: tuple[float, float], generator: np.random.Generator) -> tuple[slice, ...]:
    """A box anywhere, each edge of which is a random share of the image's."""
    edges = [max(1, round(generator.uniform(*shares) * size)) for size in shape]
    return _placed(shape, edges, generator)


def _placed(shape: Sequence[int], edges: Sequence[int], generator: np.random.Generator) -> tuple[slice, ...]:
    starts = [int(generator.integers(size - edge + 1)) for size, edge in zip(shape, edges, strict=True)]
    return tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))
