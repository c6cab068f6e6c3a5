"""The best selection of an instance, whose every outcome is known, and how good one could be at most.

Where regions that may be selected together share no voxels, counts add up, and ``solve`` finds it. Where they share
some, what a region adds depends on what else is selected; then ``solve`` is only a start, and selections are improved
by exchanges that are counted exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress

import numpy as np

from assignnet.choice.rules import in_space_order
from assignnet.choice.tree import Roi
from assignnet.value.additive_tree import AdditiveTree, Index, Mask
from assignnet.value.instance import Instance, total_slots
from assignnet.value.solver import GAIN, solve
from assignnet.value.upper_bound import upper_bound
from assignnet.value.voxel_counts import Counts, Metric, VoxelCounts

SWAPS = 500
"""A selection in which families overlap is given up as good enough after so many exchanges within families."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is best, as far as is known.

    Attributes:
        selection: Regions, in the order of space.
        reward: What they are worth (``Instance.reward``).
        bound: No selection is worth more, if regions that may be selected together share no voxels. Where they do,
            more could be possible.
    """

    selection: tuple[Roi, ...]
    reward: float
    bound: float


def oracle(instance: Instance, metric: Metric, weight: float, budget: float | None = None) -> Choice:
    """The best selection for somebody who knows all outcomes.

    Args:
        instance: The tree and its outcomes. What its cost model says of weight and budget does not count.
        metric: Quality to maximise.
        weight: Of cost.
        budget: Most cost, as a share of all children's; None = no limit.
    """
    tree, outcomes = instance.tree, instance.outcomes
    nothing = np.zeros(len(tree.rois), dtype=bool)
    base, cost = outcomes.confusion(nothing), instance.slots / total_slots(tree, instance.cost_model)
    common, found = outcomes.alone(len(nothing))
    sums = AdditiveTree.of(
        tree.parent_of, common, found, base.true, cost, weight, metric, budget, base.common, base.found
    )
    chosen = solve(sums)
    limit = upper_bound(sums, chosen) - base.quality(metric)
    if _overlap(outcomes, sums):
        ends = [_improve(sums, outcomes, metric, start) for start in (chosen, nothing)]
        chosen = max(ends, key=lambda end: _reward(sums, outcomes, metric, end))
    selection = in_space_order(compress(tree.rois, chosen), instance.cost_model.slot)
    reward = instance.reward(selection, metric, weight)
    return Choice(selection, reward, max(limit, reward))


def flips(outcomes: VoxelCounts, chosen: Mask) -> tuple[Counts, Counts]:
    """What changes if one region more, or one less, is selected: for each region by itself.

    With nothing chosen this is ``VoxelCounts.alone``.

    Args:
        outcomes: Of the tree.
        chosen: What is selected so far, shape (regions,).

    Returns:
        Voxels rightly found, and voxels found, each of shape (regions, classes).
    """
    row, rows, regions = _row(outcomes), len(outcomes.count), len(chosen)
    taken = chosen[outcomes.node]
    step, covers = np.where(taken, -1, 1), np.bincount(row[taken], minlength=rows)
    left = covers[row] + step
    common, found = np.zeros((regions, len(outcomes.classes))), np.zeros((regions, len(outcomes.classes)))
    for index, name in enumerate(outcomes.classes):
        here, apart = outcomes.label == name, outcomes.outside == name
        votes = np.bincount(row[taken & here], minlength=rows)
        before = np.where(covers > 0, votes / np.maximum(covers, 1), apart)[row]
        after = np.where(left > 0, (votes[row] + step * here) / np.maximum(left, 1), apart[row])
        voxels = (after - before) * outcomes.count[row]
        found[:, index] = np.bincount(outcomes.node, voxels, minlength=regions)
        common[:, index] = np.bincount(outcomes.node, voxels * (outcomes.truth[row] == name), minlength=regions)
    return common, found


def _row(outcomes: VoxelCounts) -> Index:
    """Row of each entry."""
    return np.repeat(np.arange(len(outcomes.count)), np.diff(outcomes.start))


def _overlap(outcomes: VoxelCounts, sums: AdditiveTree) -> bool:
    """Whether any voxel lies in two regions that may be selected together: all but a parent and its child."""
    row, family = _row(outcomes), sums.family[outcomes.node]
    strangers = (row[1:] == row[:-1]) & (family[1:] != family[:-1])
    siblings = np.bincount(row[~sums.split[outcomes.node]]) > 1
    return bool(strangers.any() or siblings.any())


def _reward(sums: AdditiveTree, outcomes: VoxelCounts, metric: Metric, chosen: Mask) -> float:
    """Quality less cost as it really is; nothing is worth less than what is over the budget."""
    if not sums.fits(chosen):
        return -np.inf
    return outcomes.quality(chosen, metric) - sums.weight * float(sums.cost[chosen].sum())


def _improve(sums: AdditiveTree, outcomes: VoxelCounts, metric: Metric, chosen: Mask) -> Mask:
    """Exchange regions as long as that helps: the best single one, or else the first family that helps."""
    reward, left = _reward(sums, outcomes, metric, chosen), SWAPS
    while left > 0:
        for option in (_flipped(sums, outcomes, metric, chosen), *_swapped(sums, chosen)):
            left -= 1
            better = _reward(sums, outcomes, metric, option)
            if better > reward + GAIN:
                chosen, reward = option, better
                break
        else:
            break
    return chosen


def _flipped(sums: AdditiveTree, outcomes: VoxelCounts, metric: Metric, chosen: Mask) -> Mask:
    """The best selection that differs in one region."""
    now, spent, parent = outcomes.confusion(chosen), float(sums.cost[chosen].sum()), sums.first[sums.family]
    cost = np.where(chosen, -sums.cost, sums.cost)
    terms = (*flips(outcomes, chosen), now.true, cost, sums.weight, metric, sums.budget - spent, now.common, now.found)
    changes, single = AdditiveTree.of(parent, *terms), np.eye(len(chosen), dtype=bool)
    parts = np.logical_or.reduceat(chosen & sums.child, sums.first)[sums.family]
    barred = ~chosen & ((sums.child & (chosen & sums.split)[parent]) | (sums.split & parts))
    reward = np.where(~barred & changes.fits(single), changes.reward(single), -np.inf)
    return chosen ^ single[int(np.argmax(reward))]


def _swapped(sums: AdditiveTree, chosen: Mask) -> Iterator[Mask]:
    """Selections in which a parent gives way to its children, or these to it, or to nothing."""
    useful = sums.child & (sums.value_at(chosen) > 0)
    for first in np.flatnonzero(sums.split):
        family = sums.family == sums.family[first]
        rest = chosen & ~family
        if chosen[first]:
            yield rest | (family & useful)
            yield rest | (family & sums.child)
        else:
            yield rest | (family & sums.split)
            yield rest
