"""Pictures of a page: PNG data, with outlines and frames to be drawn over them as SVG."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MOST_PIXELS = 1024  # of an edge
_SMALLEST_MM = 60.0  # edge of a close-up
_CLOSE = 0.6  # a close-up that shows more than this share of a slice's width is none
_MARGIN = 1.6  # how much longer than what it is of a close-up is


@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle, in the unit of the volume.

    Attributes:
        left, top, width, height: As of SVG.
        kind: What it is of, for styles.
    """

    left: float
    top: float
    width: float
    height: float
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """A scale bar.

    Attributes:
        length: In the unit of the volume.
        words: The same in words.
    """

    length: float
    words: str


def png(pixels: NDArray[np.uint8]) -> str:
    """A picture as a data URL; (rows, columns) is grey, (rows, columns, 4) coloured and perhaps transparent."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", optimize=True)
    return as_source(stream.getvalue())


def as_source(picture: bytes) -> str:
    """A PNG file as the ``src`` of an image."""
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def reduced(slice_: NDArray[Any]) -> tuple[NDArray[np.float32], int]:
    """A slice small enough for a page: means of squares of pixels, and the edge of these squares.

    Pixels at the end that fill no square are averaged with zeros by nobody: they count alone.

    Args:
        slice_: (rows, columns).
    """
    factor = -(-max(slice_.shape) // _MOST_PIXELS)
    values = np.asarray(slice_, np.float32)
    if factor == 1:
        return values, 1
    edges = [(0, -size % factor) for size in values.shape]
    padded = np.pad(values, edges, mode="edge")
    rows, columns = (size // factor for size in padded.shape)
    return padded.reshape(rows, factor, columns, factor).mean(axis=(1, 3), dtype=np.float32), factor


def scale_for(width: float, unit: str) -> Scale:
    """A round length of about a fifth of a picture's width.

    >>> scale_for(340.0, "mm").words, scale_for(5200.0, "nm").words, scale_for(900.0, "nm").words
    ('50 mm', '1 um', '100 nm')
    """
    power = 10.0 ** math.floor(math.log10(width / 5))
    length = max(step * power for step in (1, 2, 5) if step * power <= width / 5 * 1.000001)
    if unit == "nm" and length >= 1000:
        return Scale(length, f"{length / 1000:g} um")
    return Scale(length, f"{length:g} {unit}")


def close_up(frame: Frame, extent: tuple[float, float], unit: str) -> Frame | None:
    """What to show close up of a slice, with the slice's own proportions; None if that is nearly all of it.

    Args:
        frame: What was found there.
        extent: Height and width of the slice.
        unit: Of both.
    """
    height, width = extent
    smallest = _SMALLEST_MM / width if unit == "mm" else 0.15
    share = max(_MARGIN * frame.width / width, _MARGIN * frame.height / height, smallest)
    if share > _CLOSE:
        return None
    size = share * width, share * height
    left = frame.left + frame.width / 2 - size[0] / 2
    top = frame.top + frame.height / 2 - size[1] / 2
    left, top = min(max(left, 0.0), width - size[0]), min(max(top, 0.0), height - size[1])
    return Frame(left, top, *size)
