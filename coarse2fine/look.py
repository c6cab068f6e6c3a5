"""Where a run looked, on the volume's own axes: for people, who know neither working grids nor transpositions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from canvas import Box
from coarse2fine.coarse.scene import Scene
from coarse2fine.regions.search_grid import Heatmap
from coarse2fine.segmenter import Segmented


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """Where a run looked; all boxes are in voxels of the volume, (z, y, x) as its file stores them.

    Attributes:
        heatmap: The coarse network's, 0 to 1, on its own grid, turned to the axes of the file.
        within: The part of the volume that the heatmap covers: what is not zero of it.
        boxes: What the fine network segmented.
        dropped: Regions that were found, of which nothing was chosen.
        left: What a deadline left no time for.
    """

    heatmap: Heatmap
    within: Box
    boxes: tuple[Box, ...]
    dropped: tuple[Box, ...] = ()
    left: tuple[Box, ...] = ()


def look_of(found: Segmented, scene: Scene) -> Look:
    """Where a run over a whole volume looked.

    Args:
        found: What was segmented.
        scene: In what.
    """
    view, tree = scene.view, found.tree
    back, start = view.turn.inverse, view.crop.start

    def stored(boxes: Iterable[Box]) -> tuple[Box, ...]:
        return tuple(back.box(found.writer.native(box).shift(start), view.full) for box in boxes)

    chosen = set(found.chosen)
    dropped = [
        parent.box
        for parent, children in zip(tree.parents, tree.children, strict=True)
        if chosen.isdisjoint({parent, *children})
    ]
    return Look(
        heatmap=back.last_axes(scene.coarse.heatmap),
        within=back.box(view.crop, view.full),
        boxes=stored(found.fine.boxes),
        dropped=stored(dropped),
        left=stored(found.fine.left),
    )
