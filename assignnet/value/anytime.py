"""How good the result is at any time, if regions are segmented one after the other: a curve, and the area under it.

Time runs from 0, when nothing has been segmented, to 1, when all that is compared would be done. Quality changes
whenever something is done, and stays in between, so that the area is the mean quality over all moments at which the
work might be cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from assignnet.choice.cost_model import CostModel
from assignnet.choice.rules import Assigner, greedy
from assignnet.choice.tree import NO_FEATURES, Features, Roi, RoiTree
from assignnet.value.instance import Instance, total_slots
from assignnet.value.voxel_counts import Metric, VoxelCounts


@dataclass(frozen=True, slots=True)
class AnytimeCurve:
    """Quality against time.

    Attributes:
        times: When it changes, from 0 to 1; the first one is 0.
        qualities: From each of these times on.
    """

    times: tuple[float, ...]
    qualities: tuple[float, ...]

    @property
    def area(self) -> float:
        """Under the curve, from time 0 to 1.

        >>> AnytimeCurve((0.0, 0.25), (0.5, 0.9)).area
        0.8
        """
        lasts = np.diff([*np.minimum(self.times, 1.0), 1.0])  # what comes later than 1 comes too late
        return float(np.round(lasts @ np.array(self.qualities), 12))


def anytime_curve(
    outcomes: VoxelCounts,
    steps: Sequence[Sequence[int]],
    seconds: Sequence[float],
    metric: Metric,
    *,
    regions: int,
    total: float | None = None,
) -> AnytimeCurve:
    """The curve of an order.

    Args:
        outcomes: What each region yields.
        steps: Regions that are done together, such as those on one canvas, in the order in which they are done.
        seconds: How long each step takes, in any unit.
        metric: Quality.
        regions: How many there are.
        total: What time 1 means, same unit; None for what all steps take.
    """
    whole = (sum(seconds) if total is None else total) or 1.0
    done = np.zeros(regions, dtype=bool)
    times, qualities, spent = [0.0], [outcomes.quality(done, metric)], 0.0
    for rows, lasts in zip(steps, seconds, strict=True):
        done[list(rows)] = True
        spent += lasts
        times.append(spent / whole)
        qualities.append(outcomes.quality(done, metric))
    return AnytimeCurve(tuple(times), tuple(qualities))


def best_order(
    outcomes: VoxelCounts, steps: Sequence[Sequence[int]], seconds: Sequence[float], metric: Metric, *, regions: int
) -> list[int]:
    """The steps in the order in which each next one gains most for its time, in hindsight: for comparison only."""
    done, left, order = np.zeros(regions, dtype=bool), list(range(len(steps))), list[int]()

    def rate(step: int) -> float:
        after = done.copy()
        after[list(steps[step])] = True
        return (outcomes.quality(after, metric) - outcomes.quality(done, metric)) / max(seconds[step], 1e-12)

    while left:
        best = max(left, key=rate)
        left.remove(best)
        order.append(best)
        done[list(steps[best])] = True
    return order


def order_area(instance: Instance, order: Sequence[Roi], metric: Metric) -> float:
    """Area under the curve if regions are segmented one after the other; time 1 is when all children would be done.

    Args:
        instance: What regions yield and cost.
        order: Nodes of its tree.
        metric: Quality.
    """
    rows = {roi: row for row, roi in enumerate(instance.tree.rois)}
    steps, total = [rows[roi] for roi in order], total_slots(instance.tree, instance.cost_model)
    seconds = instance.slots[steps].tolist()
    curve = anytime_curve(instance.outcomes, [(row,) for row in steps], seconds, metric, regions=len(rows), total=total)
    return curve.area


def mean_area(assigner: Assigner, instances: Sequence[Instance], metric: Metric) -> float:
    """Mean over instances of the area that an assigner's order reaches."""
    orders = ((one, assigner(one.tree, one.cost_model, one.features)) for one in instances)
    return float(np.mean([order_area(instance, order, metric) for instance, order in orders]))


def _ordered(rate: Callable[[Roi, CostModel], float]) -> Assigner:
    """The regions that ``greedy`` chooses, the highest rate first."""

    def order(tree: RoiTree, cost_model: CostModel, features: Features = NO_FEATURES) -> tuple[Roi, ...]:
        return tuple(sorted(greedy(tree, cost_model), key=lambda roi: (-rate(roi, cost_model), roi.box)))

    return order


def _at_random(tree: RoiTree, cost_model: CostModel, features: Features = NO_FEATURES) -> tuple[Roi, ...]:
    chosen = greedy(tree, cost_model)
    return tuple(chosen[index] for index in np.random.default_rng(len(chosen)).permutation(len(chosen)))


ORDERS: Final[Mapping[str, Assigner]] = MappingProxyType(
    {
        "mass": _ordered(lambda roi, cost_model: roi.mass / cost_model.slots(roi.box)),
        "score": _ordered(lambda roi, cost_model: roi.score),
        "space": greedy,
        "random": _at_random,
    }
)
"""Rules to compare an agent's order with, by name."""
