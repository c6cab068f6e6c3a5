"""Geometry and packing: boxes, canvases, and the transfer of voxels between them. NumPy only."""

from canvas.box import Box, Triple, to_array, triple
from canvas.pack import (
    Canvas,
    Crop,
    Placement,
    canvas_grids,
    pack_same_scale,
    pack_same_size,
    pack_tiles,
    share_filled,
    trim,
)
from canvas.transfer import Read, gather, scatter
from canvas.union import share_of_volume

__all__ = [
    "Box",
    "Canvas",
    "Crop",
    "Placement",
    "Read",
    "Triple",
    "canvas_grids",
    "gather",
    "pack_same_scale",
    "pack_same_size",
    "pack_tiles",
    "scatter",
    "share_filled",
    "share_of_volume",
    "to_array",
    "trim",
    "triple",
]
