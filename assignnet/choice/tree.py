"""Regions of interest and the tree of large and small ones that an assigner chooses from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from canvas.box import Box, Triple

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Roi:
    """A box that may hold foreground.

    Attributes:
        box: The region, in voxels of the working grid, axes (z, y, x).
        score: Highest foreground probability that the heatmap has for it, 0 to 1.
        mass: Sum of the heatmap inside the box, counted in voxels of the working grid: a region of 100 working
            voxels with probability 0.5 weighs 50, whatever the resolution of the heatmap.
    """

    box: Box
    score: float
    mass: float


@dataclass(frozen=True, slots=True)
class RoiTree:
    """Large regions (parents), each with the small ones (children) that it was merged from.

    Parent and children are two ways to cover the same objects: one crop with less detail, or several with more. A
    parent that has one child *is* that child and counts as one node.

    Attributes:
        parents: The large regions.
        children: ``children[i]`` are the regions of which ``parents[i]`` is the hull; never empty.
        volume: Shape of the working grid (z, y, x) in voxels.

    Raises:
        ValueError: If a parent has no child, a single child differs from its parent, a child reaches out of its
            parent, or the same box is more than one node.

    >>> left, right = Roi(Box((0, 0, 0), (4, 4, 4)), 0.9, 40.0), Roi(Box((0, 0, 3), (4, 4, 7)), 0.8, 30.0)
    >>> lone = Roi(Box((8, 8, 8), (9, 9, 9)), 0.5, 0.5)
    >>> tree = RoiTree((Roi(Box((0, 0, 0), (4, 4, 7)), 0.9, 60.0), lone), ((left, right), (lone,)), (16, 16, 16))
    >>> len(tree.parents), len(tree.leaves), len(tree.rois), tree.is_leaf(1)
    (2, 3, 4, True)
    """

    parents: tuple[Roi, ...]
    children: tuple[tuple[Roi, ...], ...]
    volume: Triple

    def __post_init__(self) -> None:
        if len(self.parents) != len(self.children):
            raise ValueError(f"{len(self.parents)} parents, but children of {len(self.children)}")
        for parent, children in zip(self.parents, self.children, strict=True):
            if not children:
                raise ValueError(f"parent {parent.box} has no child")
            if len(children) == 1 and children[0] != parent:
                raise ValueError(f"parent {parent} has the single child {children[0]}; they must be the same region")
            for child in children:
                if not parent.box.contains(child.box):
                    raise ValueError(f"child {child.box} reaches out of its parent {parent.box}")
        nodes = self.rois
        if len({roi.box for roi in nodes}) < len(nodes):
            raise ValueError("the same box is more than one node of the tree")

    def is_leaf(self, index: int) -> bool:
        """Whether ``parents[index]`` is its own single child."""
        return len(self.children[index]) == 1

    @property
    def leaves(self) -> tuple[Roi, ...]:
        """All children, parent by parent."""
        return tuple(child for children in self.children for child in children)

    @property
    def rois(self) -> tuple[Roi, ...]:
        """All nodes, each once: every parent, followed by its children if it is not a leaf."""
        nodes: list[Roi] = []
        for index, parent in enumerate(self.parents):
            nodes.append(parent)
            if not self.is_leaf(index):
                nodes.extend(self.children[index])
        return tuple(nodes)

    @property
    def mass(self) -> float:
        """Sum of the parents' masses; what two overlapping parents share counts twice."""
        return sum(parent.mass for parent in self.parents)

    @property
    def parent_of(self) -> NDArray[np.int64]:
        """For each of ``rois`` the index of its parent in ``rois``; of a parent (or leaf) its own index; shape (n,).

        >>> left, right = Roi(Box((0, 0, 0), (4, 4, 4)), 0.9, 40.0), Roi(Box((0, 0, 3), (4, 4, 7)), 0.8, 30.0)
        >>> RoiTree((Roi(Box((0, 0, 0), (4, 4, 7)), 0.9, 60.0),), ((left, right),), (16, 16, 16)).parent_of.tolist()
        [0, 0, 0]
        """
        index: list[int] = []
        for parent, children in enumerate(self.children):
            index += [len(index)] * (1 if self.is_leaf(parent) else len(children) + 1)
        return np.array(index, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a network sees in the regions of a tree and in the whole volume.

    Attributes:
        nodes: Shape (regions, F), rows in the order of ``RoiTree.rois``; F may be 0.
        volume: The whole volume's, shape (G,); G may be 0.
    """

    nodes: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    volume: Floats = field(default_factory=lambda: np.zeros(0, np.float32))


NO_FEATURES = Features()
"""For assigners that look at boxes only."""
