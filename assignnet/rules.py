"""Rules that choose from a tree of regions which boxes to process, and in which order.

Every rule has the interface that a learned agent has too, ``Assigner``. What a choice is worth and what it costs:

- **value** of a node: its mass times its fidelity, as a share of the mass of all parents. Fidelity is the share of
  the native detail that reaches the network (``Problem.fidelity``), so a region that must be shrunk counts for less.
- **cost** of a node: the slots that it occupies (``Problem.slots``), as a share of the slots that all children of the
  whole tree would occupy.
- **utility** = value - weight * cost. Both are shares, so the weight has no unit: at weight 0.1, a tenth of the cost
  of the whole tree must buy one per cent of its mass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, prod
from types import MappingProxyType
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from assignnet.tree import Roi, RoiTree
from canvas.box import Box, Triple, to_array


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
class Problem:
    """What an assigner has to know besides the tree: how boxes are processed and what speed is worth.

    Attributes:
        slot: Size (z, y, x) in voxels that one crop occupies at the input of the network.
        weight: What one unit of cost is worth in units of value (lambda in the record); 0 looks at value only.
        large: What happens to a box that is larger than a slot: it is shrunk into one slot (``"resize"``), or
            processed at native resolution by a sliding window of slots (``"native"``).
        tile_step: Step of that sliding window as a share of the slot.
        drop: Whether regions may be left out if they are not worth their cost. Off by default: no object is lost
            silently. Needs a positive weight.

    Raises:
        ValueError: If a number is out of its range, or regions may be dropped at no weight.
    """

    slot: Triple
    weight: float = 0.0
    large: Literal["resize", "native"] = "resize"
    tile_step: float = 0.5
    drop: bool = False

    def __post_init__(self) -> None:
        if min(self.slot) < 1:
            raise ValueError(f"slot {self.slot} has an edge below 1 voxel")
        if not self.weight >= 0:
            raise ValueError(f"weight {self.weight} is negative")
        if self.large not in ("resize", "native"):
            raise ValueError(f"large boxes can be processed by 'resize' or 'native', not by {self.large!r}")
        if not 0 < self.tile_step <= 1:
            raise ValueError(f"tile_step {self.tile_step} is not in (0, 1]")
        if self.drop and self.weight == 0:
            raise ValueError("drop needs a positive weight: without one, nothing is too expensive to keep")

    def slots(self, box: Box) -> float:
        """Cost of processing a box, in slots.

        >>> Problem(slot=(8, 8, 8)).slots(Box.whole((8, 16, 16)))
        1.0
        >>> Problem(slot=(8, 8, 8), large="native").slots(Box.whole((8, 16, 16)))
        9.0
        """
        if self.large == "resize":
            return 1.0
        edges = zip(box.shape, self.slot, strict=True)
        return float(prod(tiles_along(edge, slot, self.tile_step) for edge, slot in edges))

    def fidelity(self, box: Box) -> float:
        """Share of the box's native detail that the network sees, in (0, 1].

        The geometric mean over the three axes of how much each is shrunk: 1 if the box fits into a slot or is
        processed natively, 1/2 if all its edges are twice the slot's.

        >>> Problem(slot=(8, 8, 8)).fidelity(Box.whole((16, 16, 16)))
        0.5
        """
        if self.large == "native":
            return 1.0
        shrink = [min(1.0, slot / edge) for edge, slot in zip(box.shape, self.slot, strict=True) if edge]
        return float(np.cbrt(prod(shrink)))


class Assigner(Protocol):
    """Chooses the boxes to process: a rule below, or a trained agent."""

    def __call__(self, tree: RoiTree, problem: Problem) -> tuple[Roi, ...]:
        """Nodes of the tree in the order in which to process them.

        The order decides which crops share a canvas: they fill it one after the other. A node excludes its parent
        and its children, because they cover the same objects (``check_selection``). A parent may be left out
        together with all its children; the caller reports how much of the heatmap that loses.
        """
        ...


def check_selection(tree: RoiTree, selection: Iterable[Roi]) -> None:
    """Check what an assigner returned.

    Raises:
        ValueError: If a region is no node of the tree, is listed twice, or is listed together with its parent.
    """
    chosen = Counter(selection)
    unknown = chosen.keys() - set(tree.rois)
    if unknown:
        raise ValueError(f"not a node of the tree: {min(unknown, key=lambda roi: roi.box).box}")
    repeated = [roi.box for roi, count in chosen.items() if count > 1]
    if repeated:
        raise ValueError(f"selected more than once: {repeated[0]}")
    for index, parent in enumerate(tree.parents):
        if parent in chosen and not tree.is_leaf(index):
            for child in tree.children[index]:
                if child in chosen:
                    raise ValueError(f"selected together with its parent {parent.box}: {child.box}")


def all_parents(tree: RoiTree, problem: Problem) -> tuple[Roi, ...]:
    """Every large region: the fewest crops, large objects shrunk."""
    return in_space_order(tree.parents, problem.slot)


def all_children(tree: RoiTree, problem: Problem) -> tuple[Roi, ...]:
    """Every small region: the most detail and the most crops."""
    return in_space_order(tree.leaves, problem.slot)


def greedy(tree: RoiTree, problem: Problem) -> tuple[Roi, ...]:
    """For every parent, its children if the detail that they add is worth the slots that they add.

    With value and cost as in the module's docstring, the children replace their parent if::

        value(children) - value(parent) > weight * (cost(children) - cost(parent))

    Children may overlap, and what they share is worth processing only once: the sum of their masses is capped at
    the parent's mass, ``value(children) = mean fidelity * min(sum of masses, mass of parent)`` with the mean weighted
    by mass. Hence a parent that fits into a slot is always preferred to several children.

    Every object stays covered, by a parent or by its children, unless ``problem.drop`` is set: then a chosen node
    is left out if ``value < weight * cost``.
    """
    total_mass = tree.mass or 1.0
    total_slots = sum(map(problem.slots, (leaf.box for leaf in tree.leaves))) or 1.0

    def value(rois: tuple[Roi, ...], cap: float) -> float:
        mass = sum(roi.mass for roi in rois)
        detail = sum(roi.mass * problem.fidelity(roi.box) for roi in rois)
        return detail * min(1.0, cap / mass) / total_mass if mass > 0 else 0.0

    def cost(rois: tuple[Roi, ...]) -> float:
        return sum(problem.slots(roi.box) for roi in rois) / total_slots

    chosen: list[Roi] = []
    for index, parent in enumerate(tree.parents):
        whole, parts = (parent,), tree.children[index]
        gain = value(parts, parent.mass) - value(whole, parent.mass)
        split = not tree.is_leaf(index) and gain > problem.weight * (cost(parts) - cost(whole))
        chosen.extend(parts if split else whole)
    if problem.drop:
        chosen = [roi for roi in chosen if value((roi,), roi.mass) >= problem.weight * cost((roi,))]
    return in_space_order(chosen, problem.slot)


RULES: Final[Mapping[str, Assigner]] = MappingProxyType(
    {"all_parents": all_parents, "all_children": all_children, "greedy": greedy}
)
"""The rules by the names that a configuration uses."""


def in_space_order(rois: Iterable[Roi], slot: Triple) -> tuple[Roi, ...]:
    """Regions in the order of a Morton (z-order) curve through their centres.

    Neighbours in space should share a canvas: instance normalisation takes its statistics over the whole canvas, and
    crops from the same place look alike. Distances count in eighths of a slot, so that anisotropic voxels do not
    favour an axis. Ties go to the smaller box in the order of ``Box``.

    >>> far, near, first = (Roi(Box.of((0, 0, x), (8, 8, 8)), 1.0, 1.0) for x in (64, 8, 0))
    >>> in_space_order([far, near, first], (8, 8, 8)) == (first, near, far)
    True
    """
    listed = sorted(rois, key=lambda roi: (roi.box, roi.score, roi.mass))
    corners = to_array(roi.box for roi in listed)
    doubled_centres = corners[:, :3] + corners[:, 3:]
    cells = np.maximum(doubled_centres * 4 // np.array(slot), 0)
    return tuple(listed[position] for position in np.argsort(_morton(cells), kind="stable"))


def _morton(cells: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Interleave the bits of non-negative (n, 3) coordinates, z highest; 21 bits per axis."""
    code = np.zeros(len(cells), dtype=np.uint64)
    for bit in range(21):
        for axis in range(3):
            bits = (cells[:, axis] >> bit) & 1
            code |= bits.astype(np.uint64) << np.uint64(3 * bit + 2 - axis)
    return code
