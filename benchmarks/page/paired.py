"""How far a row's quality differs from one-stage mode's on the same cases, and how sure that is.

Cases are the unit: they are a sample of those that a user may have. Intervals are percentiles of means over cases drawn
with replacement (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13); of fewer than about ten
cases they are somewhat too narrow.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.stats import bootstrap

MARGIN: Final = 0.005
"""How much of the measure may be lost at most for a row to count as no worse than one-stage mode."""
CONFIDENCE: Final = 0.95
DRAWS: Final = 9999
FEWEST: Final = 2
"""Cases without which nothing can be said about others."""


@dataclass(frozen=True, slots=True)
class Paired:
    """A row beside one-stage mode.

    Attributes:
        deviation: Standard deviation of its quality over cases; None of a single case.
        difference: Mean over cases of its quality less one-stage mode's; None without that.
        interval: That covers the mean over all such cases with ``CONFIDENCE``; None of a single case.
    """

    deviation: float | None
    difference: float | None
    interval: tuple[float, float] | None

    @property
    def non_inferior(self) -> bool | None:
        """Whether the whole interval lies above ``-MARGIN``; None without one."""
        return None if self.interval is None else self.interval[0] > -MARGIN


def compare_cases(scores: Sequence[float], reference: Sequence[float] | None) -> Paired:
    """Compare a row with another one, case by case.

    Args:
        scores: Quality of each case.
        reference: That of the other row, cases in the same order; None if there is none.
    """
    deviation = statistics.stdev(scores) if len(scores) >= FEWEST else None
    if reference is None:
        return Paired(deviation, None, None)
    differences = np.subtract(scores, reference)
    return Paired(deviation, float(differences.mean()), mean_interval(differences))


def mean_interval(values: Sequence[float] | np.ndarray[Any, Any]) -> tuple[float, float] | None:
    """The bootstrap interval of a mean over cases, the same at each call; None of fewer than ``FEWEST`` cases."""
    if len(values) < FEWEST:
        return None
    generator = np.random.default_rng(0)
    found = bootstrap(
        (values,), np.mean, n_resamples=DRAWS, confidence_level=CONFIDENCE, method="percentile", rng=generator
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mean_by_label(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean Dice over cases of each label, by its name; empty where a case does not tell."""
    known = [row.get("dice_by_label") or {} for row in found]
    names = [name for name in known[0] if all(name in one for one in known)] if known else []
    return {name: statistics.fmean(one[name] for one in known) for name in names}
