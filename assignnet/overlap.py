"""The best selection of regions that overlap, as far as their boxes tell.

Counts of overlapping regions do not add up: what two boxes both hold is found once. Here a voxel that lies in k
selected boxes counts one k-th in each, with the overlap of two regions taken as that of their boxes.
"""

from __future__ import annotations

import numpy as np

from assignnet.outcomes import Counts, Metric
from assignnet.plan import plan
from assignnet.sums import Index, Mask
from canvas.box import Box, to_array

GAIN = 1e-9
"""Least improvement that is not taken for rounding."""


def box_shares(boxes: list[Box]) -> Counts:
    """Share of each box that lies in each other; shape (n, n): row in column, 0 on the diagonal.

    >>> box_shares([Box.whole((2, 2, 2)), Box((0, 0, 1), (2, 2, 5))]).tolist()
    [[0.0, 0.5], [0.25, 0.0]]
    """
    corners = to_array(boxes).astype(np.float64)
    low, high = corners[:, :3], corners[:, 3:]
    shared = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
    volume = np.maximum((high - low).prod(axis=1), 1)
    shares = np.maximum(shared, 0).prod(axis=2) / volume[:, None]
    np.fill_diagonal(shares, 0)
    return shares


def plan_overlapping(
    parent: Index,
    common: Counts,
    found: Counts,
    true: Counts,
    cost: Counts,
    weight: float,
    metric: Metric,
    shares: Counts,
    budget: float | None = None,
) -> Mask:
    """Select the regions with the greatest quality less cost.

    The choice for regions that share nothing (``plan``) is improved by adding or removing one region at a time, the
    best first, until nothing helps; a region that is added drives out its parent or its children.

    Args:
        parent: As for ``plan``; so are all others but ``shares``.
        common: Shape (regions, classes).
        found: Shape (regions, classes).
        true: Shape (classes,).
        cost: Shape (regions,).
        weight: Of cost.
        metric: Dice or IoU.
        shares: From ``box_shares``.
        budget: Most cost; None = no limit.

    Returns:
        Selected regions, shape (regions,).
    """
    chosen = plan(parent, common, found, true, cost, weight, metric, budget)
    rows = np.arange(len(parent))
    related = parent[:, None] == parent[None]
    exclude = (
        related & ((parent[:, None] == rows[None]) | (rows[:, None] == parent[None])) & ~np.eye(len(rows), dtype=bool)
    )
    exclude |= exclude.T
    if not (shares * ~exclude).any():
        return chosen

    def rewards(selections: Mask) -> Counts:
        held = selections / (1.0 + selections @ shares.T)
        right, seen = held @ common, held @ found
        above, below = (2 * right, seen + true) if metric == "dice" else (right, seen + true - right)
        quality = np.where(below > 0, above / np.where(below > 0, below, 1.0), 1.0).mean(axis=1)
        spent = selections @ cost
        over = np.inf if budget is None else budget + 1e-9
        return np.where(spent <= over, quality - weight * spent, -np.inf)

    best = rewards(chosen[None])[0]
    for _ in range(2 * len(rows)):
        moves = np.where(chosen[:, None], chosen, chosen & ~exclude)
        moves[rows, rows] ^= True
        reached = rewards(moves)
        step = int(reached.argmax())
        if not reached[step] > best + GAIN:
            break
        chosen, best = moves[step], reached[step]
    return chosen
