"""The best selection of regions that overlap, as far as their boxes tell.

Counts of overlapping regions do not add up: what two boxes both hold is found once. Here a voxel that lies in k
selected boxes counts one k-th in each, with the overlap of two regions taken as that of their boxes.
"""

from __future__ import annotations

import numpy as np

from assignnet.outcomes import Counts
from assignnet.plan import plan
from assignnet.sums import Mask, Sums
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


def plan_overlapping(sums: Sums, shares: Counts) -> Mask:
    """Select the regions with the greatest quality less cost.

    The choice for regions that share nothing (``plan``) is improved by adding or removing one region at a time, the
    best first, until nothing helps; a region that is added drives out its parent or its children.

    Args:
        sums: What each region yields by itself.
        shares: From ``box_shares``.

    Returns:
        Selected regions, shape (regions,).
    """
    chosen = plan(sums)
    rows, parent = np.arange(len(chosen)), sums.first[sums.family]
    child_of = (parent[:, None] == rows[None]) & (parent != rows)[:, None]
    exclude = child_of | child_of.T
    if not (shares * ~exclude).any():
        return chosen

    def rewards(selections: Mask) -> Counts:
        held = selections / (1.0 + selections @ shares.T)
        quality = sums.quality(*sums.total(held))
        return np.where(sums.fits(selections), quality - sums.weight * (selections @ sums.cost), -np.inf)

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
