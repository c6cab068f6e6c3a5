"""Labelled images or volumes of any size, crops of them to learn from, and windows to predict in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarse2fine.pretrain.crops import random_start
from coarse2fine.pretrain.objective import Batch

Array = NDArray[Any]

_FOREGROUND = 1 / 3
"""Share of crops that are centred on a voxel of the foreground, as in nnU-Net."""
_PLACES = 10_000
"""Voxels of a class that are remembered of each image, as in nnU-Net."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Images with labels.

    Attributes:
        images: Each (channels, *image), 32 bit; may lie on the disk.
        targets: Of each: a row of numbers, one for each label of the image; or a map of classes, shape (*image).
        patients: Whose each is.
        names: Of each, for tables.
    """

    images: Sequence[Array]
    targets: Sequence[Array]
    patients: Sequence[str]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def dense(self) -> bool:
        """Whether every voxel has a label."""
        return self.targets[0].ndim > 1

    @property
    def present(self) -> Array:
        """Which labels, or foreground classes up to the highest one, each image has; shape (images, labels)."""
        if not self.dense:
            return np.stack(self.targets)
        classes = range(1, 1 + max(int(target.max()) for target in self.targets))
        return np.array([[bool((target == number).any()) for number in classes] for target in self.targets])

    def take(self, numbers: Sequence[int] | NDArray[np.intp]) -> Examples:
        """Some of them."""
        return Examples(
            [self.images[number] for number in numbers],
            [self.targets[number] for number in numbers],
            [self.patients[number] for number in numbers],
            [self.names[number] for number in numbers],
        )


@dataclass(frozen=True, slots=True, eq=False)
class LabelledCrops:
    """Where labelled crops come from; images of the patch's shape are taken whole.

    Attributes:
        examples: What is cropped.
        patch: Shape of crops.
    """

    examples: Examples
    patch: tuple[int, ...]
    _places: list[list[Array]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cropped = self.examples.dense and any(image.shape[1:] != self.patch for image in self.examples.images)
        found = [_foreground(target) for target in self.examples.targets] if cropped else []
        object.__setattr__(self, "_places", found)

    def draw(self, count: int, generator: np.random.Generator) -> Batch:
        """Crops, each of any image: ``images``, shape (count, channels, *patch), and ``targets``."""
        crops = [self._crop(int(generator.integers(len(self.examples))), generator) for _ in range(count)]
        images, targets = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*crops, strict=True))
        return {"images": images, "targets": targets}

    def _crop(self, number: int, generator: np.random.Generator) -> tuple[Array, Array]:
        image, target = self.examples.images[number], self.examples.targets[number]
        shape = image.shape[1:]
        start = np.array(random_start(shape, self.patch, np.inf, generator))
        if self._places and self._places[number] and generator.random() < _FOREGROUND:
            places = self._places[number][int(generator.integers(len(self._places[number])))]
            wanted = places[int(generator.integers(len(places)))] - np.array(self.patch) // 2
            spare = np.subtract(shape, self.patch)
            start = np.where(spare > 0, np.clip(wanted, 0, np.maximum(spare, 0)), start)
        crop = cut(image, start, self.patch)
        return crop, cut(target[None], start, self.patch)[0] if self.examples.dense else target


def cut(array: Array, start: Sequence[int] | Array, shape: Sequence[int]) -> Array:
    """A part of an array (channels, *image), with zeros where it reaches beyond."""
    part = np.zeros((len(array), *shape), array.dtype)
    inside, source = [slice(None)], [slice(None)]
    for low, size, whole in zip(map(int, start), shape, array.shape[1:], strict=True):
        first, last = max(low, 0), min(low + size, whole)
        source.append(slice(first, last))
        inside.append(slice(first - low, last - low))
    part[tuple(inside)] = array[tuple(source)]
    return part


def windows(shape: Sequence[int], patch: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Where windows begin that cover an image and overlap by at least half, as in nnU-Net.

    Along an axis where the image is smaller it lies in the middle of the window.

    >>> list(windows((8,), (4,)))
    [(0,), (2,), (4,)]
    """
    axes = []
    for size, edge in zip(shape, patch, strict=True):
        spare = size - edge
        starts = np.linspace(0, spare, ceil(2 * spare / edge) + 1).round() if spare > 0 else [spare // 2]
        axes.append([int(start) for start in starts])
    return product(*axes)


def _foreground(target: Array) -> list[Array]:
    """Places of each foreground class that there is; each of shape (places, axes)."""
    found = []
    for label in np.unique(target):
        if label:
            places = np.argwhere(target == label)
            found.append(places[:: ceil(len(places) / _PLACES)])
    return found
