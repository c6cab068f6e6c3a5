"""Boxes that hypothesis draws, and the voxels that they hold."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from canvas import Box, Triple


@st.composite
def boxes_in(draw: st.DrawFn, shape: Triple, shortest: int = 1) -> Box:
    """A box inside of a volume, with edges of so many voxels at least."""
    start = tuple(draw(st.integers(0, edge - shortest)) for edge in shape)
    return Box(start, tuple(draw(st.integers(low + shortest, edge)) for low, edge in zip(start, shape, strict=True)))


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """A small box near the origin, which may be empty or reach below it."""
    start = draw(st.tuples(*[st.integers(-3, 9)] * 3))
    return Box.of(start, draw(st.tuples(*[st.integers(0, 9)] * 3)))


def painted(boxes: list[Box], volume: Triple) -> np.ndarray:
    """A mask of all voxels of a volume that lie in some box."""
    inside = np.zeros(volume, dtype=bool)
    for box in boxes:
        inside[box.clip(Box.whole(volume)).slices] = True
    return inside
