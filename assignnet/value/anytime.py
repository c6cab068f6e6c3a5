"""How good the result is at any time, if regions are segmented one after the other: a curve, and the area under it.

Time runs from 0, when nothing has been segmented, to 1, when all that is compared would be done. Quality changes
whenever something is done, and stays in between, so that the area is the mean quality over all moments at which the
work might be cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
        lasts = np.diff([*np.minimum(self.times, 1.0), 1.0])
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
