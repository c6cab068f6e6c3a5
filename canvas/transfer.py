"""Moving voxels between a volume and canvases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self, TypeVar

from canvas.box import Box, Triple
from canvas.pack import Canvas, Placement


class Array(Protocol):
    """What voxels are in: a NumPy array, or something that is indexed like one."""

    def __getitem__(self, key: Any, /) -> Self:
        """A part of it."""

    def __setitem__(self, key: Any, value: Any, /) -> None:
        """Overwrites a part of it."""


Voxels = TypeVar("Voxels", bound=Array)
Read = Callable[[Box, Triple], Voxels]
"""Gives the voxels of a box, resized to a shape: (box, shape) -> (channels, *shape)."""


def gather(canvas: Canvas, read: Read[Voxels], data: Voxels) -> Voxels:
    """Fill a canvas with its crops.

    Args:
        canvas: What lies where.
        read: Reads a region of the working grid at the size of its slot.
        data: Receives the crops, shape (channels, *canvas.shape). Elsewhere it stays as it is, and should be 0, the
            mean intensity of a normalised volume.

    Returns:
        ``data``.
    """
    for slot, source in {placement.slot: placement.source for placement in canvas.placements}.items():
        data[(slice(None), *slot.slices)] = read(source, slot.shape)
    return data


def scatter(canvas: Canvas, output: Voxels) -> Iterator[tuple[Placement, Voxels]]:
    """Cut a canvas' result into those of its crops.

    Args:
        canvas: What lies where.
        output: Network output, shape (heads, *canvas.shape).

    Yields:
        Each placement with a view of its slot, shape (heads, *placement.slot.shape).
    """
    for placement in canvas.placements:
        yield placement, output[(slice(None), *placement.slot.slices)]
