"""What a mask shows around a cell: where the heatmap counts, and which cell a region belongs to.

The heatmap is zero outside of the mask, so that regions lie in it; results are background outside of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.coarse.heatmap import CoarseResult
from coarse2fine.large.window import outwards
from coarse2fine.preprocessing.mask import Mask, pooled
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.regions.search_grid import Indices, SearchGrid


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The mask around a cell, in voxels of the cropped, transposed volume.

    Attributes:
        found: Whether voxels are set.
        box: Where these lie.
    """

    found: NDArray[np.bool_]
    box: Box

    def anchor(self, middle: Triple, region: Box, rim: Triple) -> Triple:
        """The voxel whose cell a region belongs to: its middle, or the set voxel next to that.

        A cell that holds no set voxel segments nothing, so that a region whose middle lies there needs another one.
        All cells that see a region whole find the same.

        Args:
            middle: Middle of the region.
            region: The voxels that it touches.
            rim: By how much set voxels may lie outside of these: what one voxel of the heatmap takes.
        """
        if self._at(middle):
            return middle
        for around in (region, region.grow(rim)):
            inside = around.clip(self.box)
            if not inside.volume:
                continue
            places = np.argwhere(self.found[inside.relative_to(self.box).slices]) + inside.start
            if len(places):
                distance = ((places - middle) ** 2).sum(axis=1)
                return triple(places[distance.argmin()].tolist())
        return middle

    def _at(self, voxel: Triple) -> bool:
        inside = Box.of(voxel, (1, 1, 1)).clip(self.box)
        return bool(inside.volume and self.found[inside.relative_to(self.box).slices].any())


def show(mask: Mask, view: WorkingView, box: Box) -> Shown:
    """The mask in a box of the cropped, transposed volume."""
    order = view.turn.axes
    inside = box.clip(Box.whole(view.crop.shape))
    in_file = inside.shift(view.crop.start).turned(order.index(axis) for axis in range(3))
    return Shown(mask.part(in_file).transpose(order), inside)


def heatmap_within(coarse: CoarseResult, mask: Mask, view: WorkingView) -> tuple[CoarseResult, Shown]:
    """A coarse result whose heatmap is zero where the mask is not set, and the mask there.

    Args:
        coarse: Of the whole volume, or a part.
        mask: The mask.
        view: The fine model's view.
    """
    native = view.crop.shape
    shown = show(mask, view, outwards(coarse.held, coarse.whole, native))
    kept = pooled(shown.found, shown.box, native, coarse.whole, coarse.held)
    return coarse.only_where(kept), shown


def held_by(
    cell: Box, shown: Shown, native: Triple, search: SearchGrid, rim: Triple, starts: Indices, stops: Indices
) -> NDArray[np.bool_]:
    """Whether a cell holds regions; arguments but for the last two as of ``Shown.anchor`` and ``window_of``.

    Args:
        cell: In voxels of the cropped, transposed volume.
        shown: The mask around it.
        native: Shape of that volume.
        search: The part of the grid on which regions were found.
        rim: Voxels of the volume that one voxel of the heatmap takes.
        starts: First voxels of the regions, counted from the start of the part, shape (n, 3).
        stops: The ones after the last.
    """
    # A voxel of the grid is above / below voxels of the working grid long, of which there are ``search.volume``.
    length = np.array([a * n for a, n in zip(search.above, native, strict=True)])
    count = np.array([b * n for b, n in zip(search.below, search.volume, strict=True)])
    low, high = starts + search.start, stops + search.start
    middles = ((2 * ((low + high) // 2) + 1) * length // (2 * count)).clip(0, np.array(native) - 1)
    firsts, lasts = low * length // count, np.minimum(-(-high * length // count), native)
    held = [
        cell.contains(Box.of(shown.anchor(triple(middle), Box(triple(first), triple(last)), rim), (1, 1, 1)))
        for middle, first, last in zip(middles.tolist(), firsts.tolist(), lasts.tolist(), strict=True)
    ]
    return np.array(held, bool)
