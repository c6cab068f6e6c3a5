"""A small picture of a slice, with its outlines in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from coarse2fine.page.pictures import png

_EDGE = 128  # pixels of the longer edge
COLOURS = ("#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#d55e00", "#ffffff")
"""Of outlines, by rank, as in the pages' style: Okabe's and Ito's, less those that are dark on grey."""


def thumbnail(
    grey: NDArray[np.uint8], labels: NDArray[np.unsignedinteger[Any]], extent: tuple[float, float], values: list[int]
) -> str:
    """A PNG as a data URL.

    Args:
        grey: The slice, (rows, columns).
        labels: Its labels; perhaps of other size.
        extent: Height and width.
        values: All label values; their order decides their colours.
    """
    height, width = (max(1, round(edge * _EDGE / max(extent))) for edge in extent)
    small = Image.fromarray(grey).resize((width, height), Image.Resampling.BOX)
    pixels = np.repeat(np.asarray(small)[..., np.newaxis], 3, axis=2)
    rows, columns = (
        np.minimum(((np.arange(size) + 0.5) * edge / size).astype(int), edge - 1)
        for size, edge in zip((height, width), labels.shape, strict=True)
    )
    shown = labels[np.ix_(rows, columns)]
    for rank, value in enumerate(values):
        mask = shown == value
        if mask.any():
            pixels[mask & ~binary_erosion(mask)] = _rgb(COLOURS[rank % len(COLOURS)])
    return png(pixels)


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue
