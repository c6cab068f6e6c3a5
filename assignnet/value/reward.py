"""What each choice is worth while an agent learns.

With Q the quality of the whole volume (Dice or IoU, mean over classes), S what has been chosen so far and lambda the
weight of cost, choosing a region is worth

    r = Q(S + region) - Q(S) - lambda * slots(region) / slots(all children)

and stopping is worth 0. Quality and costs are shares, so rewards and lambda have no unit. The sum over an episode
telescopes to ``Instance.reward`` of what was chosen, whatever the order: without discounting, the agent maximises what
is wanted, and still learns after each choice what that choice was good for. A potential-based reward in the sense of
Ng, Harada and Russell, "Policy invariance under reward transformations" (1999).

Two rewards add what the order does, because crops that are processed one after the other share a canvas; one is for
work that may be cut off at any time, where the order is all that matters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from math import hypot
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from assignnet.value.instance import Instance, total_slots
from assignnet.value.voxel_counts import Metric

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

RECENT = 256
"""Qualities that are remembered; one reward may serve that many environments side by side."""


class Reward(Protocol):
    """What choices are worth. It may remember what it computed, but its answers depend on its arguments alone."""

    @property
    def metric(self) -> Metric:
        """The quality that it is about."""
        ...

    def __call__(self, instance: Instance, chosen: Sequence[int], choice: int | None, weight: float) -> float:
        """What choosing a region is worth.

        Args:
            instance: The tree and what its regions yield.
            chosen: Rows of ``RoiTree.rois`` chosen so far, in order.
            choice: Row chosen now; None = stop.
            weight: Of cost (lambda).
        """
        ...


class GainReward:
    """The gain in quality less the cost; the equation is in the module's docstring.

    A step computes one quality: that of what had been chosen before is remembered from the step before.

    Args:
        metric: Of the whole volume.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        # Instances are told apart by identity. The keys hold them, so that none can be mistaken for a later one.
        self._qualities: _Recent[tuple[Instance, tuple[int, ...]], float] = _Recent(RECENT)
        self._costs: _Recent[Instance, NDArray[np.float64]] = _Recent(RECENT)

    def __call__(self, instance: Instance, chosen: Sequence[int], choice: int | None, weight: float) -> float:
        """See ``Reward``."""
        if choice is None:
            return 0.0
        gain = self.quality(instance, (*chosen, choice)) - self.quality(instance, chosen)
        return gain - weight * float(self._cost(instance)[choice])

    def quality(self, instance: Instance, chosen: Sequence[int]) -> float:
        """Quality of the regions in the rows ``chosen``, as it was counted for each region alone."""
        rows = tuple(chosen)

        def count() -> float:
            mask = np.zeros(len(self._cost(instance)), dtype=bool)
            mask[list(rows)] = True
            return instance.outcomes.quality(mask, self.metric)

        return self._qualities.get((instance, rows), count)

    def _cost(self, instance: Instance) -> NDArray[np.float64]:
        """Cost of each region as a share of all children's, shape (regions,)."""
        return self._costs.get(instance, lambda: instance.slots / total_slots(instance.tree, instance.cost_model))


class AdjacencyReward:
    """The gain less a price for jumping, which stands in for what the order of choices does.

    With d the distance between the centres of the region chosen before and of this one, in largest native boxes::

        r = gain - weight_of_order * d / (1 + d)

    Regions that are chosen one after the other share a canvas. There, instance normalisation takes its statistics
    over all of them, and each borders on the next; neighbours look alike and suffer least. That this costs as much as
    the price says is an assumption; ``CanvasReward`` measures it. The first choice has no price.

    Args:
        metric: Of the whole volume.
        weight: Of the order: the price of an infinitely long jump, in units of quality.

    Raises:
        ValueError: If ``weight`` is negative.
    """

    def __init__(self, metric: Metric, weight: float) -> None:
        if not weight >= 0:
            raise ValueError(f"weight of the order {weight} is negative")
        self.metric, self.weight = metric, weight
        self._gain = GainReward(metric)

    def __call__(self, instance: Instance, chosen: Sequence[int], choice: int | None, weight: float) -> float:
        """See ``Reward``."""
        gain = self._gain(instance, chosen, choice, weight)
        if choice is None or not chosen:
            return gain
        return gain - self.weight * jump(instance, chosen[-1], choice)


class AnytimeReward:
    """The gain, worth the less the later it comes, for work that may be cut off at any time.

    With t the cost of everything chosen so far, this region included, as a share of all children's::

        r = (Q(S + region) - Q(S)) * max(0, 1 - t)

    So an episode sums to the area under quality against time (``assignnet.value.anytime``), less Q of nothing. Time is
    the only price: lambda does not count.

    Args:
        metric: Of the whole volume.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._gain = GainReward(metric)

    def __call__(self, instance: Instance, chosen: Sequence[int], choice: int | None, weight: float) -> float:
        """See ``Reward``."""
        if choice is None:
            return 0.0
        spent = float(instance.slots[[*chosen, choice]].sum()) / total_slots(instance.tree, instance.cost_model)
        return self._gain(instance, chosen, choice, 0.0) * max(0.0, 1.0 - spent)


class CanvasReward:
    """The gain as counted for each region alone and, at the end, what really sharing canvases changes about it.

    That is::

        r(stop) = measured quality - counted quality

    so that an episode sums to the reward with the measured quality. An empty choice needs no canvas and no correction.

    Args:
        metric: Of the whole volume.
        measure: Runs the canvases for the rows of an instance, in that order, and returns the quality. Slow, so
            results are remembered by content (region, processing, and boxes in order), not by object.
        remember: Results to remember; those used least recently are forgotten.
    """

    def __init__(
        self, metric: Metric, measure: Callable[[Instance, tuple[int, ...]], float], *, remember: int = 10_000
    ) -> None:
        self.metric = metric
        self._gain, self._measure = GainReward(metric), measure
        self._measured: _Recent[Hashable, float] = _Recent(remember)

    def __call__(self, instance: Instance, chosen: Sequence[int], choice: int | None, weight: float) -> float:
        """See ``Reward``."""
        if choice is not None or not chosen:
            return self._gain(instance, chosen, choice, weight)
        rows, rois = tuple(chosen), instance.tree.rois
        # What speed is worth does not change what the canvases yield.
        processing = replace(instance.cost_model, weight=0.0, drop=False, budget=None)
        key = instance.case, instance.name, processing, tuple(rois[row].box for row in rows)
        measured = self._measured.get(key, lambda: self._measure(instance, rows))
        return measured - self._gain.quality(instance, rows)


def jump(instance: Instance, before: int, after: int) -> float:
    """How far two regions lie apart, from 0 (same centre) to 1 (infinitely far): d / (1 + d).

    Args:
        instance: Holds the tree; d is in units of the largest native box of its cost model, axis by axis.
        before: Row of one region.
        after: Row of the other.
    """
    rois = instance.tree.rois
    one, other = rois[before].box, rois[after].box
    corners = zip(one.start, one.stop, other.start, other.stop, instance.cost_model.largest, strict=True)
    distance = hypot(*((c + d - a - b) / 2 / unit for a, b, c, d, unit in corners))
    return distance / (1 + distance)


class _Recent(Generic[Key, Value]):
    """Values that were used lately.

    Args:
        most: Values to keep.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, compute: Callable[[], Value]) -> Value:
        """The value of a key, computed if it is not known or no longer."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = compute()
        if len(self._values) > self._most:
            self._values.popitem(last=False)
        return value
