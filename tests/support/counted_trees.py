"""Trees with made-up counts of voxels, and a search through all selections that they allow."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from assignnet.value.additive_tree import AdditiveTree


@dataclass(frozen=True)
class CountedTree:
    """Voxels that regions find, rightly and at all, and that are true, by class; and what else rewards depend on."""

    parent: NDArray[np.int64]
    common: NDArray[np.float64]
    found: NDArray[np.float64]
    true: NDArray[np.float64]
    cost: NDArray[np.float64]
    weight: float
    metric: str
    budget: float | None

    def sums(self, **changes: object) -> AdditiveTree:
        names = ("parent", "common", "found", "true", "cost", "weight", "metric", "budget")
        return AdditiveTree.of(**{name: getattr(self, name) for name in names} | changes)


@dataclass(frozen=True)
class BasedTree(CountedTree):
    """Counts that add up, and those of what is there without any region."""

    base_common: NDArray[np.float64]
    base_found: NDArray[np.float64]

    def sums(self, **changes: object) -> AdditiveTree:
        return super().sums(**{"base_common": self.base_common, "base_found": self.base_found} | changes)

    def rewards(self, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """What selections of shape (rows, regions) are worth; those over the budget nothing."""
        right = self.base_common + chosen @ self.common
        wrong = self.base_found - self.base_common + chosen @ (self.found - self.common)
        missed = self.true - right
        factor = 2 if self.metric == "dice" else 1
        with np.errstate(invalid="ignore"):
            quality = np.nan_to_num(factor * right / (factor * right + wrong + missed), nan=1.0).mean(axis=1)
        cost = chosen @ self.cost
        over = cost > (np.inf if self.budget is None else self.budget + 1e-9)
        return np.where(over, -np.inf, quality - self.weight * cost)

    @property
    def best(self) -> float:
        return float(self.rewards(every_selection(self.parent)).max())


def is_valid(parent: NDArray[np.int64], chosen: NDArray[np.bool_]) -> bool:
    """Whether no region is selected together with its parent."""
    return not any(chosen[region] and chosen[head] for region, head in enumerate(parent) if region != head)


def every_selection(parent: NDArray[np.int64]) -> NDArray[np.bool_]:
    """All masks in which no region is selected together with its parent, shape (selections, regions)."""
    families = []
    for head in np.flatnonzero(parent == np.arange(len(parent))):
        children = [region for region in np.flatnonzero(parent == head) if region != head]
        sets = [set(some) for size in range(len(children) + 1) for some in combinations(children, size)]
        families.append([{head}, *sets])
    rows = [[region in set().union(*way) for region in range(len(parent))] for way in product(*families)]
    return np.array(rows, dtype=bool).reshape(-1, len(parent))


def based_tree(seed: int, regions: int, classes: int, *, budget: bool | None = None) -> BasedTree:
    """Counts that voxels could have, from few voxels with many ties to thousands; some classes occur nowhere."""
    random = np.random.default_rng(seed)
    parent, most = _parents(random, regions), int(random.choice([3, 20, 3000]))
    own = parent == np.arange(regions)
    right, true = np.zeros((regions, classes)), np.zeros(classes)
    for head in np.flatnonzero(own):
        children = np.flatnonzero((parent == head) & ~own)
        parts = children if len(children) else np.array([head])
        held = random.integers(0, most + 1, (len(parts), classes)) * (random.random((len(parts), classes)) < 0.7)
        right[parts] = random.integers(0, held + 1)
        right[head] = random.integers(0, held.sum(axis=0) + 1)
        true += held.sum(axis=0)
    there = random.random(classes) > 0.15
    base = random.integers(0, most + 1, (3, classes)) * (random.random((3, classes)) < 0.4)
    wrong = random.integers(0, 2 * most + 1, (regions, classes)) * (random.random((regions, classes)) < 0.6)
    cost = random.integers(1, 5, regions) * 1.0 if random.random() < 0.3 else random.uniform(0.02, 1, regions)
    limited = random.random() < 0.4 if budget is None else budget
    return BasedTree(
        parent,
        right * there,
        right * there + wrong,
        (true + base[0] + base[1]) * there,
        cost / cost.sum(),
        float(random.choice([0.0, np.exp(random.uniform(np.log(0.01), np.log(2)))])),
        str(random.choice(["dice", "iou"])),
        float(random.uniform(0, 1)) if limited else None,
        base[0] * there,
        base[0] * there + base[2],
    )


def _parents(random: np.random.Generator, regions: int) -> NDArray[np.int64]:
    parent: list[int] = []
    while len(parent) < regions:
        head, left = len(parent), regions - len(parent)
        children = int(random.integers(2, min(5, left - 1) + 1)) if left >= 3 and random.random() < 0.5 else 0
        parent += [head] * (1 + children)
    return np.array(parent)
