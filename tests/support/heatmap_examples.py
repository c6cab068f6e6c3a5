"""Heatmaps that hypothesis draws, and the grid on which voxels of heatmap and volume are whole."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from canvas import Box, Triple

SHAPES = st.tuples(*[st.integers(1, 4)] * 3)
VOLUMES = st.tuples(*[st.integers(1, 9)] * 3)


@st.composite
def heatmaps(draw: st.DrawFn) -> np.ndarray:
    """Small heatmaps of multiples of 1/8, whose sums floating point holds exactly."""
    return draw(arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 0.125, 0.375, 0.875])))


def spot(shape: Triple, *filled: tuple[Triple, Triple, float]) -> np.ndarray:
    """A heatmap of zeros with (start, stop, probability) filled in."""
    heatmap = np.zeros(shape, dtype=np.float32)
    for start, stop, value in filled:
        heatmap[Box(start, stop).slices] = value
    return heatmap


def common_grid(heatmap: np.ndarray, volume: Triple, box_or_voxel: Box) -> tuple[np.ndarray, np.ndarray]:
    """Heatmap and box on the grid whose voxels divide both heatmap and working voxels without remainder."""
    fine = heatmap
    for axis in range(3):
        fine = fine.repeat(volume[axis], axis=axis)
    inside = np.zeros(fine.shape, dtype=bool)
    clipped = box_or_voxel.clip(Box.whole(volume))
    start, stop = (np.multiply(corner, heatmap.shape) for corner in (clipped.start, clipped.stop))
    inside[tuple(slice(*ends) for ends in zip(start, stop, strict=True))] = True
    return fine, inside
