"""Rules that choose from a tree of regions which boxes to process, and in which order.

Every rule has the interface that a learned agent has too, ``Assigner``. ``random_rule`` and ``top_k`` are what others
are compared with; unlike the rest they leave regions out without being allowed to (``CostModel.drop``). What a choice
is worth to ``greedy``, and what it costs:

- **value** of a node: its mass times its fidelity, as a share of the mass of all parents. Fidelity is the share of
  the native detail that reaches the network (``CostModel.fidelity``), so a region that must be shrunk counts for less.
- **cost** of a node: the slots that it occupies, or the room that it takes (``CostModel.slots``), as a share of what
  all children of the whole tree would occupy.
- **utility** = value - weight * cost. Both are shares, so the weight has no unit: at weight 0.1, a tenth of the cost
  of the whole tree must buy one per cent of its mass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from assignnet.choice.cost_model import CostModel
from assignnet.choice.tree import NO_FEATURES, Features, Roi, RoiTree
from canvas.box import Triple, to_array


class Assigner(Protocol):
    """Chooses the boxes to process: a rule below, or a trained agent."""

    def __call__(self, tree: RoiTree, cost_model: CostModel, features: Features = NO_FEATURES) -> tuple[Roi, ...]:
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


def all_parents(tree: RoiTree, cost_model: CostModel, features: Features = NO_FEATURES) -> tuple[Roi, ...]:
    """Every large region: the fewest crops, large objects shrunk."""
    return in_space_order(tree.parents, cost_model.slot)


def all_children(tree: RoiTree, cost_model: CostModel, features: Features = NO_FEATURES) -> tuple[Roi, ...]:
    """Every small region: the most detail and the most crops."""
    return in_space_order(tree.leaves, cost_model.slot)


def greedy(tree: RoiTree, cost_model: CostModel, features: Features = NO_FEATURES) -> tuple[Roi, ...]:
    """For every parent, its children if the detail that they add is worth the slots that they add.

    With value and cost as in the module's docstring, the children replace their parent if::

        value(children) - value(parent) > weight * (cost(children) - cost(parent))

    Children may overlap, and what they share is worth processing only once: the sum of their masses is capped at
    the parent's mass, ``value(children) = mean fidelity * min(sum of masses, mass of parent)`` with the mean weighted
    by mass. Hence a parent that stays native is preferred to its children wherever it costs no more than they do, as is
    always so in same-size packing. In same-scale packing, where room is what costs, it gives way if its children save
    room that is worth more than the mass between them.

    Every object stays covered, by a parent or by its children, unless ``cost_model.drop`` is set: then a chosen node
    is left out if ``value < weight * cost``.
    """
    total_mass = tree.mass or 1.0
    total_slots = sum(map(cost_model.slots, (leaf.box for leaf in tree.leaves))) or 1.0

    def value(rois: tuple[Roi, ...], cap: float) -> float:
        mass = sum(roi.mass for roi in rois)
        detail = sum(roi.mass * cost_model.fidelity(roi.box) for roi in rois)
        # In this order no rounding lets children of full fidelity be worth more than their parent.
        return detail / mass * min(mass, cap) / total_mass if mass > 0 else 0.0

    def cost(rois: tuple[Roi, ...]) -> float:
        return sum(cost_model.slots(roi.box) for roi in rois) / total_slots

    chosen: list[Roi] = []
    for index, parent in enumerate(tree.parents):
        whole, parts = (parent,), tree.children[index]
        gain = value(parts, parent.mass) - value(whole, parent.mass)
        split = not tree.is_leaf(index) and gain > cost_model.weight * (cost(parts) - cost(whole))
        chosen.extend(parts if split else whole)
    if cost_model.drop:
        chosen = [roi for roi in chosen if value((roi,), roi.mass) >= cost_model.weight * cost((roi,))]
    return in_space_order(chosen, cost_model.slot)


def top_k(tree: RoiTree, cost_model: CostModel, features: Features = NO_FEATURES) -> tuple[Roi, ...]:
    """The large regions with the highest scores, as many as ``cost_model.keep`` says, or half of them, rounded up.

    Ties go to the greater mass, then to the box that comes first.
    """
    keep = (len(tree.parents) + 1) // 2 if cost_model.keep is None else cost_model.keep
    ranked = sorted(tree.parents, key=lambda roi: (-roi.score, -roi.mass, roi.box))
    return in_space_order(ranked[:keep], cost_model.slot)


def random_rule(tree: RoiTree, cost_model: CostModel, features: Features = NO_FEATURES) -> tuple[Roi, ...]:
    """For every parent by chance itself, its children, or nothing, all equally likely; a leaf or nothing; any order.

    The same boxes lead to the same choice.
    """
    boxes = to_array(roi.box for roi in tree.rois).astype("<i8")
    chance = np.random.default_rng(crc32(boxes.tobytes()))
    chosen: list[Roi] = []
    for index, parent in enumerate(tree.parents):
        ways = ((), (parent,)) if tree.is_leaf(index) else ((), (parent,), tree.children[index])
        chosen.extend(ways[chance.integers(len(ways))])
    return tuple(chosen[position] for position in chance.permutation(len(chosen)))


RULES: Final[Mapping[str, Assigner]] = MappingProxyType(
    {
        "all_parents": all_parents,
        "all_children": all_children,
        "greedy": greedy,
        "top_k": top_k,
        "random": random_rule,
    }
)
"""The rules by the names that a configuration uses."""


def in_space_order(rois: Iterable[Roi], slot: Triple) -> tuple[Roi, ...]:
    """Regions in the order of a Morton (z-order) curve through their centres.

    Neighbours in space should share a canvas: instance normalisation takes its statistics over the whole canvas, and
    crops from the same place look alike. Distances count in eighths of a slot, so that anisotropic voxels do not
    favour an axis. Ties go to the smaller box in the order of ``Box``.

    >>> from canvas import Box
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
