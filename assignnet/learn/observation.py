"""What an agent sees of a tree: numbers per region that do not change while it chooses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from assignnet.choice.cost_model import CostModel
from assignnet.choice.tree import Features, Floats, RoiTree
from canvas.box import to_array

OWN = 7
"""The original system's numbers beside those of the network: centre (3), size (3) and score."""
PLACE = 6
"""Numbers that say where a region's box lies: first and last corner."""
STANDING = 6 + PLACE
"""Numbers that say how a region stands among the others; see ``Observation``."""


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """A tree as an agent sees it; rows in the order of ``RoiTree.rois``.

    Attributes:
        nodes: Shape (regions, F + 7): the network's features, centre (as a share of the volume, z, y, x), size (over
            the largest native box), score.
        standing: Shape (regions, 12): cost as a share of all children's, mass as a share of all parents', fidelity,
            mean probability in the box (mass over voxels), whether it is a parent of several, whether it has a parent
            other than itself; and where the box begins and ends (z, y, x), in units of the largest native box. Networks
            compute overlaps from the last six and use them for nothing else.
        parent: Row of each region's parent, its own if it has none; shape (regions,).
        volume: The whole volume's features, shape (G,).
    """

    nodes: Floats
    standing: Floats
    parent: NDArray[np.int64]
    volume: Floats

    @property
    def cost(self) -> Floats:
        """Cost of each region as a share of all children's, shape (regions,)."""
        return self.standing[:, 0]


def observe(tree: RoiTree, cost_model: CostModel, features: Features) -> Observation:
    """A tree as an agent sees it.

    Raises:
        ValueError: If there are features, but not for every region.
    """
    rois, parent = tree.rois, tree.parent_of
    if features.nodes.shape[1] and len(features.nodes) != len(rois):
        raise ValueError(f"{len(features.nodes)} rows of features for {len(rois)} regions")
    corners = to_array(roi.box for roi in rois).astype(np.float64)
    size = corners[:, 3:] - corners[:, :3]
    slots = np.array([cost_model.slots(roi.box) for roi in rois])
    mass = np.array([roi.mass for roi in rois])
    families = np.bincount(parent, minlength=len(rois))
    is_leaf = (families[parent] == 1) if len(rois) else np.zeros(0, bool)
    is_parent = (parent == np.arange(len(rois))) & ~is_leaf
    own = [
        (corners[:, :3] + corners[:, 3:]) / 2 / np.array(tree.volume),
        size / np.array(cost_model.largest),
        np.array([[roi.score] for roi in rois]).reshape(-1, 1),
    ]
    standing = [
        slots / (slots[~is_parent].sum() or 1.0),
        mass / (tree.mass or 1.0),
        [cost_model.fidelity(roi.box) for roi in rois],
        mass / np.maximum(size.prod(axis=1), 1),
        is_parent,
        parent != np.arange(len(rois)),
        *(corners / np.tile(cost_model.largest, 2)).T,
    ]
    network = features.nodes if features.nodes.shape[1] else np.zeros((len(rois), 0))
    return Observation(
        np.concatenate([network, *own], axis=1).astype(np.float32),
        np.array(standing, dtype=np.float32).T.reshape(-1, STANDING),
        parent,
        features.volume,
    )


def still_free(parent: NDArray[np.int64], taken: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Regions that may still be chosen: neither they, nor their parent, nor one of their children are taken.

    Args:
        parent: As in ``Observation``.
        taken: Regions chosen so far, shape (regions,).

    >>> still_free(np.array([0, 0, 0, 3]), np.array([False, True, False, False])).tolist()
    [False, False, True, True]
    """
    by_child = np.zeros(len(parent), dtype=bool)
    by_child[parent[taken]] = True
    return ~(taken | taken[parent] | (by_child & (parent == np.arange(len(parent)))))
