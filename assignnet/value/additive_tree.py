"""A tree whose regions' counts add up: what a selection is worth, and what is best where worth adds up too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from assignnet.value.voxel_counts import Counts, Metric

Mask = NDArray[np.bool_]
Index = NDArray[np.int64]

SLACK = 1e-9
"""Rounding that a budget forgives: shares of many regions may sum up to a little more than 1."""


@dataclass(frozen=True, slots=True, eq=False)
class AdditiveTree:
    """A tree in which everything adds up; quality is the mean over classes of ``above / below``.

    Attributes:
        first: First region of each family, its parent, or the leaf that is a family by itself; shape (families,).
        family: Number of each region's family, shape (regions,).
        split: Whether a region is a parent of several, shape (regions,).
        child: Whether it has a parent other than itself, shape (regions,).
        above: What each region adds to numerators, shape (regions, classes).
        below: What each region adds to denominators, shape (regions, classes).
        base_above: Numerators if nothing is selected, shape (classes,).
        base_below: Denominators if nothing is selected, shape (classes,).
        true: Voxels in the reference, shape (classes,); denominators of real counts are never less.
        cost: Of each region, shape (regions,).
        weight: What cost 1 is worth in quality.
        budget: Most cost; infinite if there is no limit.
    """

    first: Index
    family: Index
    split: Mask
    child: Mask
    above: Counts
    below: Counts
    base_above: Counts
    base_below: Counts
    true: Counts
    cost: Counts
    weight: float
    budget: float

    @classmethod
    def of(
        cls,
        parent: Index,
        common: Counts,
        found: Counts,
        true: Counts,
        cost: Counts,
        weight: float,
        metric: Metric,
        budget: float | None = None,
        base_common: Counts | None = None,
        base_found: Counts | None = None,
    ) -> Self:
        """What regions yield, from counts of voxels.

        Args:
            parent: As ``RoiTree.parent_of``, shape (regions,).
            common: Voxels rightly found that each region adds, shape (regions, classes); see ``VoxelCounts.alone``.
            found: Voxels found that each region adds, same shape.
            true: Voxels in the reference, shape (classes,).
            cost: Of each region, as a share of all children's; shape (regions,).
            weight: What cost 1 is worth in quality.
            metric: Dice or IoU, the mean over classes.
            budget: Most cost; None = no limit.
            base_common: Voxels rightly found if nothing is selected, shape (classes,); None = none.
            base_found: Voxels found if nothing is selected, same shape; None = none.

        Raises:
            ValueError: If the regions are in another order than that of ``RoiTree.rois``.
        """
        own = parent == np.arange(len(parent))
        first, family = np.flatnonzero(own), np.cumsum(own) - 1
        if len(parent) and not (own[0] and np.array_equal(first[family], parent)):
            raise ValueError("the children of every parent must follow it; use the order of RoiTree.rois")
        base_common = np.zeros(len(true)) if base_common is None else base_common
        base_found = np.zeros(len(true)) if base_found is None else base_found
        if metric == "dice":
            terms = 2 * common, found, 2 * base_common, base_found + true
        else:
            terms = common, found - common, base_common, base_found + true - base_common
        split = own & (np.bincount(parent, minlength=len(parent)) > 1)
        limit = np.inf if budget is None else budget
        return cls(first, family, split, ~own, *terms, true, cost, weight, limit)

    def total(self, chosen: Mask | Counts) -> tuple[Counts, Counts]:
        """Numerators and denominators of selections, or shares of regions, shape (rows, regions).

        Both are of shape (rows, classes).
        """
        taken = chosen.astype(np.float64)
        return self.base_above + taken @ self.above, self.base_below + taken @ self.below

    @staticmethod
    def quality(above: Counts, below: Counts) -> Counts:
        """Mean over classes of ratios, all of shape (rows, classes); a class that neither side has counts 1."""
        ratio: Counts = np.where(below > 0, above / np.where(below > 0, below, 1.0), 1.0)
        return ratio.mean(axis=1)

    def reward(self, chosen: Mask) -> Counts:
        """Quality less weighted cost of selections of shape (rows, regions), whatever the budget; shape (rows,)."""
        return self.quality(*self.total(chosen)) - self.weight * (chosen @ self.cost)

    def fits(self, chosen: Mask) -> Mask:
        """Whether selections of shape (rows, regions) stay within the budget, shape (rows,)."""
        return chosen @ self.cost <= self.budget + SLACK

    def slope(self, above: Counts, below: Counts) -> tuple[Counts, Counts]:
        """The tangent at given numerators and denominators; all of shape (rows, classes).

        Returns:
            How much the quality rises with each numerator, and falls with each denominator.
        """
        scale, some = 1.0 / above.shape[1], below > 0
        safe = np.where(some, below, 1.0)
        # A class that neither side has is perfect, and a single voxel spoils it.
        return np.where(some, scale / safe, 0.0), np.where(some, scale * above / safe**2, scale)

    def value(self, above: Counts, below: Counts) -> Counts:
        """What each region adds to the reward by the tangents at (rows, classes) ratios; shape (rows, regions)."""
        rise, fall = self.slope(above, below)
        return rise @ self.above.T - fall @ self.below.T - self.weight * self.cost

    def value_at(self, chosen: Mask) -> Counts:
        """What each region adds to the reward by the tangent at one selection; both of shape (regions,)."""
        values: Counts = self.value(*self.total(chosen[None]))[0]
        return values

    def best(self, value: Counts) -> Mask:
        """The best selections if each region adds its value; both of shape (rows, regions)."""
        good = self.child & (value > 0)
        parts = np.add.reduceat(np.where(good, value, 0.0), self.first, axis=1)
        whole = value[:, self.first] > parts
        chosen = good & ~whole[:, self.family]
        chosen[:, self.first] = whole
        return chosen

    def most(self, value: Counts) -> Counts:
        """What the best selections are worth if each region adds its value; shape (rows,)."""
        parts = np.add.reduceat(np.where(self.child, np.maximum(value, 0.0), 0.0), self.first, axis=1)
        return np.maximum(parts, value[:, self.first]).sum(axis=1)
