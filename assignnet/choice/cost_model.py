"""What an assigner has to know besides the tree: how boxes are processed, what that costs and what speed is worth."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

import numpy as np

from canvas.box import Box, Triple, triple


def tiles_along(edge: int, tile: int, step: float) -> int:
    """Number of sliding-window positions on one axis, as nnU-Net counts them.

    Args:
        edge: Length to cover in voxels.
        tile: Length of the window in voxels.
        step: Largest distance between neighbouring windows as a share of ``tile``.

    >>> tiles_along(100, 64, 0.5), tiles_along(64, 64, 0.5), tiles_along(10, 64, 0.5)
    (3, 1, 1)
    """
    return 1 if edge <= tile else ceil((edge - tile) / (tile * step)) + 1


@dataclass(frozen=True, slots=True)
class CostModel:
    """How boxes are processed, what that costs, and what speed is worth.

    Attributes:
        slot: Size (z, y, x) in voxels of a slot: the unit of cost, and what one crop occupies in same-size packing.
        weight: What one unit of cost is worth in units of value (lambda in the original system); 0 looks at value only.
        large: What happens to a box that is larger than ``native``: it is shrunk (``"resize"``), or processed at native
            resolution by a sliding window (``"native"``).
        tile_step: Step of that sliding window as a share of ``native``.
        drop: Whether rules may leave out regions that are not worth their cost. Off by default: no object is lost
            silently. Needs a positive weight. Trained agents always may.
        native: Largest box that the network sees at native resolution; None = ``slot``.
        context: Surroundings packed along on each side of a box, in voxels, in same-scale packing; None = same-size
            packing, where every crop occupies a whole slot.
        budget: Most slots that may be spent in total; None = no limit. Rules ignore it.
        keep: Number of regions that the rule ``top_k`` selects, at most; None = half of the parents.

    Raises:
        ValueError: If a number is out of its range, or regions may be dropped at no weight.
    """

    slot: Triple
    weight: float = 0.0
    large: Literal["resize", "native"] = "resize"
    tile_step: float = 0.5
    drop: bool = False
    native: Triple | None = None
    context: Triple | None = None
    budget: float | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        for name, size in (("slot", self.slot), ("native", self.largest)):
            if min(size) < 1:
                raise ValueError(f"{name} {size} has an edge below 1 voxel")
        if self.context is not None and min(self.context) < 0:
            raise ValueError(f"context {self.context} is negative")
        if not self.weight >= 0:
            raise ValueError(f"weight {self.weight} is negative")
        if self.large not in ("resize", "native"):
            raise ValueError(f"large boxes can be processed by 'resize' or 'native', not by {self.large!r}")
        if not 0 < self.tile_step <= 1:
            raise ValueError(f"tile_step {self.tile_step} is not in (0, 1]")
        if self.drop and self.weight == 0:
            raise ValueError("drop needs a positive weight: without one, nothing is too expensive to keep")
        if self.budget is not None and not self.budget >= 0:
            raise ValueError(f"budget {self.budget} is negative")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep {self.keep} is below 1: top_k would select nothing")

    @property
    def largest(self) -> Triple:
        """Largest box that stays native."""
        return self.native or self.slot

    def slots(self, box: Box) -> float:
        """Cost of processing a box, in slots: the room that its crops take on canvases, over that of a slot.

        >>> CostModel(slot=(8, 8, 8)).slots(Box.whole((8, 16, 16)))
        1.0
        >>> CostModel(slot=(8, 8, 8), large="native").slots(Box.whole((8, 16, 16)))
        9.0
        >>> CostModel(slot=(8, 8, 8), context=(2, 2, 2)).slots(Box.whole((4, 4, 4)))
        1.0
        """
        shown = triple(min(edge, limit) for edge, limit in zip(box.shape, self.largest, strict=True))
        tiles = 1
        if self.large == "native":
            edges = zip(box.shape, shown, strict=True)
            tiles = prod(tiles_along(edge, max(tile, 1), self.tile_step) for edge, tile in edges)
        if self.context is None:
            return float(tiles)
        return tiles * prod(edge + 2 * side for edge, side in zip(shown, self.context, strict=True)) / prod(self.slot)

    def fidelity(self, box: Box) -> float:
        """Share of the box's native detail that the network sees, in (0, 1].

        The geometric mean over the three axes of how much each is shrunk: 1 if the box stays native, 1/2 if all its
        edges are twice as long as that allows.

        >>> round(CostModel(slot=(8, 8, 8)).fidelity(Box.whole((16, 16, 16))), 6)
        0.5
        """
        if self.large == "native":
            return 1.0
        shrink = [min(1.0, limit / edge) for edge, limit in zip(box.shape, self.largest, strict=True) if edge]
        return float(np.cbrt(prod(shrink)))
