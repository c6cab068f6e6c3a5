"""Which regions come first where time may not suffice for all: those that promise most for their time.

What a region costs is known by its voxels. What it gains is what would be wrong if it were not segmented:

- ``doubt``: where regions that are not reached keep the coarse labels, a voxel of probability p is expected to be wrong
  with min(p, 1 - p); where they are background, with p.
- ``mass``: p, the foreground that is expected.

Others, which are compared with these, look at no voxel: ``score`` (the highest probability comes first), ``space``,
``random``, and ``agent``, the order in which an agent or rule listed the regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from assignnet import Roi, in_space_order
from canvas import Box, Triple, to_array
from coarse2fine.coarse.scene import Scene
from coarse2fine.fine.deadline import Worth
from coarse2fine.regions.search_grid import box_mass


def worth_of(order: str, rois: Sequence[Roi], scene: Scene, slot: Triple, *, kept: bool) -> Worth:
    """What segmenting a region, or a part of one, gains.

    Args:
        order: By which it is judged; see the module's docstring.
        rois: The regions in the order in which they were chosen.
        scene: What they are of.
        slot: Unit of distances in space.
        kept: Whether regions that are not reached keep the coarse labels.
    """
    coarse, view = scene.coarse, scene.view
    if order in ("doubt", "mass"):
        heatmap = coarse.heatmap
        if order == "doubt" and kept:
            heatmap = np.minimum(heatmap, 1 - heatmap)
        return lambda part, region: box_mass(heatmap, view.whole, part.shift(view.window.start), place=coarse.place)
    rate: dict[Box, float]
    if order == "score":
        rate = {roi.box: roi.score for roi in rois}
    else:
        rate = {box: 1 - index / len(rois) for index, box in enumerate(_listed(order, rois, slot))}
    return lambda part, region: rate.get(region, 0.0) * part.volume


def _listed(order: str, rois: Sequence[Roi], slot: Triple) -> list[Box]:
    """The boxes in an order."""
    if order == "space":
        return [roi.box for roi in in_space_order(rois, slot)]
    boxes = [roi.box for roi in rois]
    if order == "random":  # the same boxes lead to the same order
        chance = np.random.default_rng(crc32(to_array(boxes).astype("<i8").tobytes()))
        return [boxes[index] for index in chance.permutation(len(boxes))]
    return boxes
