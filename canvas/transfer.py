"""Moving voxels between a volume and canvases."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from canvas.box import Box, Triple
from canvas.pack import Canvas, Placement

Read = Callable[[Box, Triple], NDArray[np.float32]]
"""Gives the voxels of a box, resized to a shape: (box, shape) -> (channels, *shape)."""


def gather(canvas: Canvas, read: Read, channels: int) -> NDArray[np.float32]:
    """Fill a canvas with its crops.

    Args:
        canvas: What lies where.
        read: Reads a region of the working grid at the size of its slot.
        channels: Channels that ``read`` returns.

    Returns:
        Shape (channels, *canvas.shape); 0, the mean intensity of a normalised volume, where no crop lies.
    """
    data = np.zeros((channels, *canvas.shape), np.float32)
    for slot, source in {placement.slot: placement.source for placement in canvas.placements}.items():
        data[(slice(None), *slot.slices)] = read(source, slot.shape)
    return data


def scatter(canvas: Canvas, output: NDArray[np.float32]) -> Iterator[tuple[Placement, NDArray[np.float32]]]:
    """Cut a canvas' result into those of its crops.

    Args:
        canvas: What lies where.
        output: Network output, shape (heads, *canvas.shape).

    Yields:
        Each placement with a view of its slot, shape (heads, *placement.slot.shape).
    """
    for placement in canvas.placements:
        yield placement, output[(slice(None), *placement.slot.slices)]
