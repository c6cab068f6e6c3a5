"""The best selection of regions that overlap, as far as their boxes tell.

Counts of overlapping regions do not add up: what two boxes both hold is found once. Here a voxel that lies in k
selected boxes counts one k-th in each, with the overlap of two regions taken as that of their boxes.
"""

from __future__ import annotations

import numpy as np

from assignnet.value.additive_tree import SLACK, AdditiveTree, Index, Mask
from assignnet.value.solver import solve
from assignnet.value.voxel_counts import Counts
from canvas.box import Box, to_array

GAIN = 1e-9
"""Least improvement that is not taken for rounding."""
CHUNK = 256
"""Moves that are looked at together, so that memory stays small beside the shares."""


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


def solve_overlapping(sums: AdditiveTree, shares: Counts) -> Mask:
    """Select the regions with the greatest quality less cost.

    The choice for regions that share nothing (``solve``) is improved by adding or removing one region at a time, the
    best first, until nothing helps; a region that is added drives out its parent or its children.

    Args:
        sums: What each region yields by itself.
        shares: From ``box_shares``.

    Returns:
        Selected regions, shape (regions,).
    """
    chosen = solve(sums)
    rows, parent = np.arange(len(chosen)), sums.first[sums.family]
    child_of = (parent[:, None] == rows[None]) & (parent != rows)[:, None]
    exclude = child_of | child_of.T
    if not (shares * ~exclude).any():
        return chosen
    moves = _Moves(sums, shares, exclude, chosen)
    best = moves.reward
    for _ in range(2 * len(rows)):
        reached = moves.rewards()
        step = int(reached.argmax())
        if not reached[step] > best + GAIN:
            break
        best = float(reached[step])
        moves.take(step)
    return moves.chosen


class _Moves:
    """What each addition or removal of a region would change, kept up to date from move to move.

    A move changes the parts of the regions that overlap with what it adds or removes, so that it alters what the moves
    of their neighbours would change, and no others.

    Attributes:
        chosen: Selected regions, shape (regions,).
    """

    def __init__(self, sums: AdditiveTree, shares: Counts, exclude: Mask, chosen: Mask) -> None:
        self._sums, self._exclude, self._by_other = sums, exclude, np.ascontiguousarray(shares.T)
        self._near = (shares > 0) | (shares.T > 0) | np.eye(len(chosen), dtype=bool)
        self.chosen = chosen.copy()
        regions, classes = sums.above.shape
        self._above, self._below = np.zeros((regions, classes)), np.zeros((regions, classes))
        self._cost = np.zeros(regions)
        self._note(np.arange(regions))

    @property
    def reward(self) -> float:
        """Of what is selected; -inf over the budget."""
        nothing = np.zeros((1, self._above.shape[1]))
        return float(self._worth(nothing, nothing, np.zeros(1))[0])

    def rewards(self) -> Counts:
        """Of what each move leads to, shape (regions,)."""
        return self._worth(self._above, self._below, self._cost)

    def take(self, move: int) -> None:
        """Add or remove a region."""
        before = self.chosen.copy()
        if not before[move]:
            self.chosen &= ~self._exclude[move]
        self.chosen[move] = not before[move]
        parts = self._near[before != self.chosen].any(axis=0)
        near = self._near[parts].any(axis=0)
        self._note(np.flatnonzero(near | self._exclude[near].any(axis=0)))

    def _worth(self, above: Counts, below: Counts, cost: Counts) -> Counts:
        """Rewards of selections that differ from the present one by so much."""
        base_above, base_below = self._sums.total(self._parts(self.chosen[None], self._load[None]))
        spent = self.chosen @ self._sums.cost + cost
        quality = self._sums.quality(base_above + above, base_below + below)
        within = spent <= self._sums.budget + SLACK
        worth: Counts = np.where(within, quality - self._sums.weight * spent, -np.inf)
        return worth

    @staticmethod
    def _parts(chosen: Mask, load: Counts) -> Counts:
        """Share of each region's voxels that counts for it, where others hold so many of them, too."""
        parts: Counts = chosen / (1.0 + load)
        return parts

    @property
    def _load(self) -> Counts:
        """How much of each region the selected ones hold, shape (regions,)."""
        load: Counts = self._by_other[self.chosen].sum(axis=0)
        return load

    def _note(self, moves: Index) -> None:
        """Compute anew what some moves would change."""
        load = self._load
        now = self._parts(self.chosen, load)
        for some in np.split(moves, range(CHUNK, len(moves), CHUNK)):
            adds = ~self.chosen[some]
            sign = np.where(adds, 1.0, -1.0)
            dropped = self._exclude[some] & self.chosen & adds[:, None]
            loads = load + sign[:, None] * self._by_other[some]
            row, region = np.nonzero(dropped)
            np.subtract.at(loads, row, self._by_other[region])
            after = self.chosen & ~dropped
            after[np.arange(len(some)), some] = adds
            change = self._parts(after, loads) - now
            self._above[some], self._below[some] = change @ self._sums.above, change @ self._sums.below
            self._cost[some] = sign * self._sums.cost[some] - dropped @ self._sums.cost
