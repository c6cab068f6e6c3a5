"""What a run did, in numbers that add up: those of a volume are the sums of those of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from assignnet import Roi, RoiTree
from canvas import Box, Triple, share_of_volume
from coarse2fine.coarse.scene import Scene
from coarse2fine.regions.search_grid import Heatmap, Place, SearchGrid
from coarse2fine.report import Boxes, Canvases, Coverage, LeftBox
from coarse2fine.segmenter import Segmented


@dataclass(frozen=True, slots=True)
class Tally:
    """Numbers of a volume, or of a cell of one.

    Attributes:
        children, parents, selected: Regions that were found, merged, and chosen.
        dropped: Parents of which neither they nor a child were chosen.
        grown: Regions that were added because a mask reached out of its box.
        cut: Faces of boxes that still cut through a mask.
        canvases: Inputs of the fine network.
        canvas_voxels: Their voxels.
        filled: Of these, in slots that are in use.
        network_voxels: Voxels that went into the fine network, measuring ``norm: case`` included.
        working: Voxels of the working grid.
        covered: Of these, in boxes that were processed.
        mass: Sum of the heatmap.
        mass_covered: Of this, in boxes that were processed.
        unpacked: Regions that were segmented as two-stage mode does it, see ``selection.thin``.
    """

    children: int = 0
    parents: int = 0
    selected: int = 0
    dropped: int = 0
    grown: int = 0
    cut: int = 0
    canvases: int = 0
    canvas_voxels: int = 0
    filled: int = 0
    network_voxels: int = 0
    working: int = 0
    covered: int = 0
    mass: float = 0.0
    mass_covered: float = 0.0
    unpacked: int = 0

    def __add__(self, other: Tally) -> Self:
        """Both together."""
        return type(self)(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def to_dict(self) -> dict[str, float]:
        """For JSON; ``Tally(**values)`` is the inverse."""
        return asdict(self)

    @property
    def boxes(self) -> Boxes:
        """For the report."""
        return Boxes(**{field.name: getattr(self, field.name) for field in fields(Boxes)})

    @property
    def warnings(self) -> tuple[str, ...]:
        """What users would not expect of the settings that they gave."""
        if not self.unpacked:
            return ()
        return (
            "the volume, less its rim of zeros, is thinner than a patch of the fine model: "
            f"{self.unpacked} region(s) were segmented as two-stage mode does it, all of them; neither canvases nor "
            "the rule or agent of assign.agent took part",
        )

    @property
    def network_inputs(self) -> Canvases:
        """For the report."""
        fill = self.filled / self.canvas_voxels if self.canvas_voxels else 0.0
        return Canvases(self.canvases, self.canvas_voxels, self.network_voxels, fill)

    @property
    def coverage(self) -> Coverage:
        """For the report; where there is nothing, nothing was missed.

        >>> Tally(working=8, covered=2).coverage
        Coverage(volume=0.25, heatmap_mass=1.0)
        """
        volume, mass = (
            min(1.0, part / whole) if whole else 1.0
            for part, whole in ((self.covered, self.working), (self.mass_covered, self.mass))
        )
        return Coverage(volume, mass)


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of what is seen is one's own; by default all of it.

    Attributes:
        heatmap: Voxels of the heatmap whose mass is one's own; None for all.
        core: Voxels of the working grid that are one's own; None for all.
        elsewhere: Boxes of the working grid that others count.
    """

    heatmap: Box | None = None
    core: Box | None = None
    elsewhere: tuple[Box, ...] = ()


def tally(found: Segmented, scene: Scene, share: Share = Share()) -> Tally:
    """Numbers of a volume, or of a cell of one.

    Args:
        found: What was segmented.
        scene: In what.
        share: What counts of it.
    """
    tree, chosen, fine = found.tree, found.chosen, found.fine
    heatmap, volume, place = scene.coarse.heatmap, scene.view.whole, scene.coarse.place
    own, elsewhere, offset = share.heatmap, share.elsewhere, scene.view.window.start
    boxes = [box.shift(offset).clip(Box.whole(volume)) for box in fine.boxes]
    core = share.core or Box.whole(volume)
    # What boxes reach of other cells counts where these do not count it themselves, as far as is known here.
    covered = _union([box.clip(core) for box in boxes], volume)
    covered += _union([*boxes, *elsewhere, core], volume) - _union([*elsewhere, core], volume)
    mine = np.ones(heatmap.shape, bool)
    if own is not None:
        mine[:] = False
        mine[own.slices] = True
    counted = _inside(heatmap, volume, boxes, place) & (mine | ~_inside(heatmap, volume, elsewhere, place))
    canvases = fine.canvases
    return Tally(
        children=len(tree.leaves),
        parents=len(tree.parents),
        selected=len(chosen),
        dropped=count_dropped(tree, chosen),
        grown=fine.grown,
        cut=fine.cut,
        canvases=len(canvases),
        canvas_voxels=sum(prod(canvas.shape) for canvas in canvases),
        filled=sum(canvas.filled for canvas in canvases),
        network_voxels=fine.network_voxels,
        working=core.volume,
        covered=covered,
        mass=float(heatmap.sum(where=mine, dtype=np.float64)),
        mass_covered=float(heatmap.sum(where=counted, dtype=np.float64)),
        unpacked=len(chosen) if found.unpacked else 0,
    )


def _union(boxes: Sequence[Box], volume: Triple) -> int:
    """Voxels that lie in at least one box."""
    return round(share_of_volume(boxes, volume) * prod(volume))


def _inside(heatmap: Heatmap, volume: Triple, boxes: Sequence[Box], place: Place | None) -> NDArray[np.bool_]:
    """Voxels of a heatmap whose centres lie in boxes of the working grid."""
    grid, inside = SearchGrid.of(heatmap.shape, volume, place), np.zeros(heatmap.shape, bool)
    for box in boxes:
        inside[grid.inside(box)] = True
    return inside


def count_dropped(tree: RoiTree, chosen: Sequence[Roi]) -> int:
    """Parents of which neither they nor a child were chosen: places that may hold an object and are not looked at."""
    wanted = set(chosen)
    return sum(
        wanted.isdisjoint({parent, *children}) for parent, children in zip(tree.parents, tree.children, strict=True)
    )


def boxes_left(found: Segmented, scene: Scene) -> tuple[tuple[LeftBox, ...], float]:
    """The boxes that were not reached in time, and the share of the heatmap's mass that lies in them alone.

    Args:
        found: What was segmented, of a whole volume.
        scene: In what.
    """
    heatmap, view, writer = scene.coarse.heatmap, scene.view, found.writer
    grid = SearchGrid.of(heatmap.shape, view.whole, None)
    missed, left = heatmap * ~_inside(heatmap, view.whole, found.fine.boxes, None), []
    voxel = prod(view.whole) / heatmap.size
    for box in found.fine.left:
        place = view.turn.inverse.box(writer.native(box).shift(view.crop.start), view.full)
        mass = float(missed[grid.inside(box.clip(Box.whole(view.whole)))].sum(dtype=np.float64)) * voxel
        left.append(LeftBox(place.start, place.stop, mass))
    alone = missed * _inside(heatmap, view.whole, found.fine.left, None)
    whole = float(heatmap.sum(dtype=np.float64))
    return tuple(left), float(alone.sum(dtype=np.float64)) / whole if whole else 0.0
