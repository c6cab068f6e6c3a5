"""The best selection if it is known what every region yields, and counts add up.

A reward is a mean of ratios less a cost, so it is not a sum over regions. With every ratio replaced by its tangent it
is: then each family of a tree (a parent and its children) is decided by itself, and exactly: the parent, or the
children that are worth something, or nothing. ``solve`` decides all families so for many tangents, takes new tangents
where that leads until nothing changes (Dinkelbach, "On Nonlinear Fractional Programming", 1967, does so for one
ratio), and improves the best of what it found by exchanges: of one region, then of the ten most doubtful in all
combinations (the "core" of Balas and Zemel, "An Algorithm for Large Zero-One Knapsack Problems", 1980).

There is no guarantee, but ``assignnet.value.upper_bound`` says how much better a selection could be at most.
"""

from __future__ import annotations

import numpy as np

from assignnet.value.additive_tree import AdditiveTree, Index, Mask
from assignnet.value.voxel_counts import Counts

QUALITIES, SIZES = 17, 9
"""Tangents that a search starts from: so many levels of quality times so many denominators."""
ROUNDS = 12
"""A search ends after so many new sets of tangents, should they never come to rest."""
FINALISTS = 4
"""Selections that are improved by exchanges, of all that were found."""
DOUBTFUL = 5
"""Children of a family that are tried in all combinations."""
COMBINATIONS = 1024
"""Exchanges in several families at once that are tried."""
HALVINGS = 30
"""Steps of a bisection; they narrow a range to a billionth."""
GAIN = 1e-12
"""Least improvement that is not taken for rounding."""
TINY = 1e-12
"""Cost, as a share, that stands for none where something is divided by it."""


def solve(sums: AdditiveTree) -> Mask:
    """Select the regions with the greatest quality less cost, if what regions yield adds up.

    Args:
        sums: What they yield.

    Returns:
        Selected regions, shape (regions,); no region together with its parent.

    >>> parent = np.array([0, 0, 0])  # two children with detail, or their parent for half of the cost
    >>> common, found = np.array([[40.0], [30.0], [25.0]]), np.array([[60.0], [30.0], [25.0]])
    >>> true, cost = np.array([60.0]), np.array([0.5, 0.5, 0.5])
    >>> solve(AdditiveTree.of(parent, common, found, true, cost, 0.1, "dice")).tolist()
    [False, True, True]
    >>> solve(AdditiveTree.of(parent, common, found, true, cost, 1.0, "dice")).tolist()
    [False, True, False]
    """
    if not len(sums.cost):
        return np.zeros(0, dtype=bool)
    improved = np.array([_improve(sums, chosen) for chosen in _finalists(sums)])
    selected: Mask = improved[int(np.argmax(sums.reward(improved)))]
    return selected


def _finalists(sums: AdditiveTree) -> Mask:
    """The best selections that tangents lead to, all within the budget; shape (rows, regions), at least one row."""
    reached = [np.zeros((1, len(sums.cost)), dtype=bool)]
    seen = {reached[0].tobytes()}
    value = sums.value(*_starts(sums))
    for _ in range(ROUNDS):
        options = _within(sums, value)
        keyed = {row.tobytes(): index for index, row in enumerate(options)}
        fresh = [index for key, index in keyed.items() if key not in seen]
        if not fresh:
            break
        seen.update(keyed)
        reached.append(options[fresh])
        value = sums.value(*sums.total(options[fresh]))
    options = np.concatenate(reached)
    fits = sums.fits(options)
    inside, outside = options[fits], options[~fits]
    inside = inside[np.argsort(-sums.reward(inside), kind="stable")[:FINALISTS]]
    # The less a selection is over the budget, the less of it has to go.
    outside = outside[np.argsort(outside @ sums.cost, kind="stable")[:FINALISTS]]
    return np.array([*inside, *(_trimmed(sums, chosen) for chosen in outside)])


def _starts(sums: AdditiveTree) -> tuple[Counts, Counts]:
    """Numerators and denominators at which to take the first tangents, each of shape (rows, classes)."""
    quality, share = np.meshgrid(np.linspace(0, 1, QUALITIES), np.linspace(0, 1, SIZES))
    below = sums.base_below + share.reshape(-1, 1) * sums.most(sums.below.T)
    return quality.reshape(-1, 1) * below, below


def _within(sums: AdditiveTree, value: Counts) -> Mask:
    """The best selections if each region adds its value; where they break the budget, those on both sides of it.

    A price on cost, the least at which the best selection is cheap enough, is found by bisection.
    """
    chosen = sums.best(value)
    over = ~sums.fits(chosen)
    if not over.any():
        return chosen
    value = value[over]
    dense = value / np.maximum(sums.cost, TINY)
    low, high = np.zeros((len(value), 1)), dense.max(axis=1, keepdims=True)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = sums.fits(sums.best(value - middle * sums.cost))[:, None]
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    sides = (sums.best(value - price * sums.cost) for price in (low, high))
    return np.concatenate([chosen[~over], *sides])


def _trimmed(sums: AdditiveTree, chosen: Mask) -> Mask:
    """A selection without the regions that are worth the least for their cost, as many as are over the budget."""
    dense = sums.value_at(chosen) / np.maximum(sums.cost, TINY)
    kept = chosen.copy()
    for region in np.argsort(dense, kind="stable"):
        if sums.fits(kept):
            break
        kept[region] = False
    return kept


def _improve(sums: AdditiveTree, chosen: Mask) -> Mask:
    """Exchange what is selected in a family as long as that helps, then in several families at once."""
    while True:
        options, family = _options(sums, chosen)
        better = _better(sums, options, chosen)
        if better is None:
            better = _better(sums, _combined(sums, chosen, options, family), chosen)
        if better is None:
            return chosen
        chosen = better


def _better(sums: AdditiveTree, options: Mask, chosen: Mask) -> Mask | None:
    """The best of the options within the budget; None if none is better than what is chosen."""
    rewards = np.where(sums.fits(options), sums.reward(options), -np.inf)
    best = int(np.argmax(rewards)) if len(rewards) else 0
    return options[best] if len(rewards) and rewards[best] > sums.reward(chosen[None])[0] + GAIN else None


def _options(sums: AdditiveTree, chosen: Mask) -> tuple[Mask, Index]:
    """Selections that differ in one family, shape (options, regions), and in which, shape (options,).

    A family offers its parent, nothing, and sets of children: those that are worth something, or that are selected,
    less or plus any of the most doubtful ones.
    """
    value = sums.value_at(chosen)
    alone = sums.first[~sums.split[sums.first]]
    flipped = np.tile(chosen, (len(alone), 1))
    flipped[np.arange(len(alone)), alone] ^= True
    rows, families = [flipped], [sums.family[alone]]
    for first in np.flatnonzero(sums.split).tolist():
        family = int(sums.family[first])
        end = int(sums.first[family + 1]) if family + 1 < len(sums.first) else len(chosen)
        local = _sets(chosen[first:end], value[first + 1 : end])
        row = np.tile(chosen, (len(local), 1))
        row[:, first:end] = local
        rows.append(row)
        families.append(np.full(len(local), family))
    return np.concatenate(rows), np.concatenate(families)


def _sets(now: Mask, value: Counts) -> Mask:
    """What a family offers besides what is selected of it now, shape (sets, 1 + children).

    Args:
        now: What is selected of the parent and its children, shape (1 + children,).
        value: What each child adds, shape (children,).
    """
    doubtful = np.argsort(np.abs(value), kind="stable")[:DOUBTFUL]
    subsets = (np.arange(1 << len(doubtful))[:, None] >> np.arange(len(doubtful))) & 1 > 0
    sets = np.zeros((len(subsets) + 2, len(now)), dtype=bool)
    sets[2:, 1:] = now[1:] if now[1:].any() else value > 0
    sets[2:, 1 + doubtful] ^= subsets
    sets[0, 0] = True
    different: Mask = sets[(sets != now).any(axis=1)]
    return different


def _combined(sums: AdditiveTree, chosen: Mask, options: Mask, family: Index) -> Mask:
    """The options that lose the least, of several families at once in all combinations; shape (rows, regions)."""
    loss = -sums.reward(options)
    if np.isfinite(sums.budget):
        # Cost counts at what the regions outside would make of it, or moves that save cost would never be looked at.
        dense = sums.value_at(chosen) / np.maximum(sums.cost, TINY)
        loss += dense[~chosen].max(initial=0.0) * (options @ sums.cost)
    core: dict[int, list[int]] = {}
    count = 1
    for option in np.argsort(loss, kind="stable").tolist():
        held = core.get(int(family[option]), [])
        grown = count // (len(held) + 1) * (len(held) + 2)
        if grown > COMBINATIONS:
            break
        core[int(family[option])] = [*held, option]
        count = grown
    rows = chosen[None]
    for members in core.values():
        flips = np.concatenate([np.zeros((1, len(chosen)), dtype=bool), options[members] ^ chosen])
        rows = (rows[:, None] ^ flips).reshape(-1, len(chosen))
    return rows
