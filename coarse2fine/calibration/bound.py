"""How much quality settings lose, from cases that were segmented both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, sqrt

import numpy as np
from scipy import special

FEWEST = 3
"""Cases; of fewer, that they are alike proves nothing."""


def upper_bound(losses: Sequence[float], confidence: float) -> float:
    """The mean loss over all cases is at most this, with a confidence: one-sided, paired, by Student's t.

    Cases are taken to be drawn like those to come, and the mean of so many losses to be about normal. A loss that is
    rare and large is easily missed by a few cases, whatever the bound; hence the largest one that was seen is always
    shown beside it.

    Args:
        losses: One for each case.
        confidence: Such as 0.95.

    Returns:
        Infinite for fewer than three cases.

    >>> round(upper_bound([0.0, 0.002, 0.001, 0.001], 0.95), 5)
    0.00196
    """
    count = len(losses)
    if count < FEWEST:
        return inf
    error = float(np.std(losses, ddof=1)) / sqrt(count)
    return float(np.mean(losses)) + float(special.stdtrit(count - 1, confidence)) * error


def within(losses: Mapping[str, Sequence[float]], most: float, confidence: float) -> set[str]:
    """Which settings lose at most so much on average; with the confidence, none of them is wrongly among these.

    Whoever tries many settings finds one that seems good by chance. So they are tested one after the other, the
    clearest first, each against what the number of those that are left demands (Holm, Scand. J. Statist. 6, 1979).

    Args:
        losses: Of each settings one for each case.
        most: Mean loss that is allowed.
        confidence: Over the draw of the cases.
    """
    chances = {name: _chance(values, most) for name, values in losses.items()}
    found: set[str] = set()
    for left, name in zip(range(len(chances), 0, -1), sorted(chances, key=lambda name: chances[name]), strict=True):
        if chances[name] > (1 - confidence) / left:
            break
        found.add(name)
    return found


def _chance(losses: Sequence[float], most: float) -> float:
    """Of losses as low as these if the true mean were ``most``."""
    count = len(losses)
    if count < FEWEST:
        return 1.0
    error, spare = float(np.std(losses, ddof=1)) / sqrt(count), most - float(np.mean(losses))
    if not error:
        return 0.0 if spare >= 0 else 1.0
    return float(special.stdtr(count - 1, -spare / error))
