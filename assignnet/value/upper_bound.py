"""How good a selection could be at most, if it is known what every region yields, and counts add up.

The quality N / D of a selection whose denominator D lies in [a, b] is, for any price q of a voxel in it::

    N / D  =  q + (N - q D) / D  <=  q + max((N - q D) / a, (N - q D) / b)

Numerator and denominator add up, so the greatest value that the right side has for any selection is exact, family by
family. It is made small by the choice of q, and the greatest over narrow intervals of D is a bound (Lagrange duality,
with the error of replacing D by the ends of its interval). A budget is another constraint with a price of its own.

The mean over classes is at most the mean of the classes' bounds. Each class then has its own best selection; how cost
is dealt out among the classes, as charges that may be negative and add up to the cost, decides how far these agree.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from assignnet.value.additive_tree import AdditiveTree, Mask
from assignnet.value.solver import TINY
from assignnet.value.voxel_counts import Counts

INTERVAL = 0.01
"""Width of the intervals of denominators, as a share. The error that it causes shrinks with its square."""
ROUNDING = 1e-12
"""Share by which intervals are widened, so that rounding cannot push a denominator out of them."""
PRICES = -2.0, 4.0
"""Range in which prices are sought; any price gives a bound, and quality itself lies between 0 and 1."""
BLENDS = 0.2, 0.5, 0.8
"""Ways to deal out cost among several classes that are tried, between the two of ``_charges``."""
GOLDEN = (5**0.5 - 1) / 2
STEPS = 14
"""Each narrows the range of a price to 62 %: all of them to a thousandth."""


def upper_bound(sums: AdditiveTree, chosen: Mask) -> float:
    """Quality less cost that no selection exceeds, if what regions yield adds up.

    Holds for counts that voxels can have: whatever is selected, 0 <= common <= found and common <= true.

    Args:
        sums: What regions yield.
        chosen: A selection, shape (regions,), such as ``solve`` makes; the better it is, the tighter the bound.

    >>> parent, common, found = np.array([0, 1]), np.array([[50.0], [10.0]]), np.array([[50.0], [30.0]])
    >>> sums = AdditiveTree.of(parent, common, found, np.array([60.0]), np.array([0.5, 0.5]), 0.1, "dice")
    >>> round(upper_bound(sums, np.array([True, False])), 4), round(100 / 110 - 0.05, 4)
    (0.8591, 0.8591)
    """
    if not len(sums.cost):
        return float(sums.reward(chosen[None])[0])
    present = sums.true > 0
    blends = BLENDS if present.sum() > 1 else (0.0,)
    split, level = _charges(sums, chosen, present)
    return min(_cases(sums, present, blend * level + (1 - blend) * split) for blend in blends)


def _charges(sums: AdditiveTree, chosen: Mask, present: Mask) -> tuple[Counts, Counts]:
    """Two ways to deal out cost among the classes that the reference has, each of shape (regions, classes).

    Either each class pays in proportion to what it gains by a region, or so that a region is worth the same to all of
    them. Both by the tangent at the chosen selection. The charges of a region sum up to its weighted cost times the
    number of classes.
    """
    rise, fall = sums.slope(*sums.total(chosen[None]))
    gain = np.where(present, rise * sums.above - fall * sums.below, 0.0)
    price = sums.weight * sums.cost[:, None]
    classes, payers = len(present), max(int(present.sum()), 1)
    part = np.where(present, np.maximum(gain, TINY), 0.0)
    part /= np.maximum(part.sum(axis=1, keepdims=True), TINY)
    worth = (gain.sum(axis=1, keepdims=True) - price) / payers
    return classes * price * part, classes * np.where(present, gain - worth, 0.0)


def _cases(sums: AdditiveTree, present: Mask, charge: Counts) -> float:
    """The bound for given charges.

    A class that the reference lacks is perfect until a voxel of it is found. So either no region is selected that
    finds one, or at least one such class is spoiled.
    """
    lowest = sums.base_below - sums.most(-sums.below.T)
    perfect = ~present & (lowest <= 0)
    clean = perfect & (sums.base_below <= 0) & (sums.below >= 0).all(axis=0)
    spoils: Mask = np.logical_or.reduce(sums.below[:, clean] > 0, axis=1)

    def mean(absent: int, banned: Mask) -> float:
        fees = np.where(banned[:, None], np.inf, charge)
        bounds = [_bound(sums, index, fees[:, index]) for index in np.flatnonzero(present).tolist()]
        return (sum(bounds) + absent) / len(present)

    best = mean(int(perfect.sum()), spoils)
    return max(best, mean(int(perfect.sum()) - 1, np.zeros_like(spoils))) if spoils.any() else best


def _bound(sums: AdditiveTree, index: int, charge: Counts) -> float:
    """The greatest that the quality of one class less charges can be, over all denominators that it may have."""
    above, below, true = sums.above[:, index], sums.below[:, index], sums.true[index]
    base_above, base_below = sums.base_above[index], sums.base_below[index]
    low = max(base_below - sums.most(-below[None])[0], true) * (1 - ROUNDING)
    high = max(base_below + sums.most(below[None])[0], low) * (1 + ROUNDING)
    edges = np.geomspace(low, high, int(np.ceil(np.log(high / low) / INTERVAL)) + 1)[:, None]
    limited = np.isfinite(sums.budget)

    def relaxed(price: Counts, toll: Counts) -> Counts:
        net, rest = above - price * below, base_above - price * base_below
        fee = charge + toll * sums.cost
        tops = [rest[:, 0] / end[:, 0] + sums.most(net / end - fee) for end in (edges[:-1], edges[1:])]
        paid: Counts = price[:, 0] + np.maximum(*tops) + (toll[:, 0] * sums.budget if limited else 0.0)
        return paid

    # Beyond this toll no region is worth its cost. Small ones matter more, hence the fourth power.
    dear = float(((above + PRICES[1] * np.abs(below)) / low / np.maximum(sums.cost, TINY)).max())

    def least(price: Counts) -> Counts:
        if not limited:
            return relaxed(price, np.zeros_like(price))
        return _least(lambda root: relaxed(price, dear * root**4), 0.0, 1.0, len(price))

    return float(_least(least, *PRICES, len(edges) - 1).max())


def _least(function: Callable[[Counts], Counts], low: float, high: float, count: int) -> Counts:
    """The least values of many functions that have one minimum each, by golden section search.

    Args:
        function: From places, shape (count, 1), to values, shape (count,).
        low: Start of the range.
        high: End of the range.
        count: Number of functions.

    Returns:
        The least values seen, shape (count,).

    >>> wanted = np.array([0.2, 0.9])
    >>> _least(lambda place: (place[:, 0] - wanted) ** 2, 0.0, 1.0, 2).round(6).tolist()
    [0.0, 0.0]
    """
    start, stop = np.full((count, 1), low), np.full((count, 1), high)
    left, right = stop - GOLDEN * (stop - start), start + GOLDEN * (stop - start)
    at_left, at_right = function(left), function(right)
    least = np.minimum(at_left, at_right)
    for _ in range(STEPS):
        lower = at_left <= at_right
        start, stop = np.where(lower[:, None], start, left), np.where(lower[:, None], right, stop)
        left, right = stop - GOLDEN * (stop - start), start + GOLDEN * (stop - start)
        new = function(np.where(lower[:, None], left, right))
        at_left, at_right = np.where(lower, new, at_right), np.where(lower, at_left, new)
        least = np.minimum(least, new)
    return least
