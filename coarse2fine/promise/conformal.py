"""How sure one can be of a case that nobody has seen, from some that were measured.

The unit is the case: cases are exchangeable, voxels and blocks of one are not. Each measured case has a limit, the
highest threshold at which it still keeps what is to be promised; a lower threshold keeps it, too. If the k-th lowest of
n limits is taken for all, a new case keeps the promise with probability at least 1 - k / (n + 1), over the draw of all
n + 1 cases (split conformal prediction; Vovk et al., Algorithmic Learning in a Random World, 2005). How often it is
kept once the n cases are drawn is another question: the share of all cases that keep it follows Beta(n + 1 - k, k), so
that it is at least p with a confidence that the binomial distribution gives exactly (Wilks, Ann. Math. Stat. 12, 1941).
"""

from __future__ import annotations

from fractions import Fraction
from itertools import count

import numpy as np
from numpy.typing import NDArray

MOST_CASES = 10_000
"""Nobody calibrates on more, so that a search for a sufficient number ends."""


def rank_for(cases: int, probability: float, confidence: float | None = None) -> int:
    """Which of the lowest limits may be taken: the largest k that supports what is asked for; 0 if none does.

    Args:
        cases: Measured cases, n.
        probability: With which a new case is to keep the promise; with ``confidence``, the share of all cases.
        confidence: Over the draw of the n cases. None: the probability is over that draw, too.

    >>> rank_for(19, 0.95), rank_for(18, 0.95), rank_for(22, 0.9, 0.9), rank_for(21, 0.9, 0.9)
    (1, 0, 1, 0)
    """
    if confidence is None:
        return int((1 - _exact(probability)) * (cases + 1))
    return int(np.count_nonzero(_confidences(cases, probability) >= confidence))  # they fall with the rank


def probability_of(cases: int, rank: int, confidence: float | None = None) -> float:
    """What the ``rank``-th lowest of some limits supports: the inverse of ``rank_for``.

    Args:
        cases: Measured cases, n.
        rank: k, from 1 to n.
        confidence: As there; only for rank 1, which is the one that has a closed form.

    >>> round(probability_of(9, 1), 3), round(probability_of(22, 1, 0.9), 4)
    (0.9, 0.9006)
    """
    if confidence is None:
        return 1 - rank / (cases + 1)
    if rank != 1:
        raise ValueError(f"rank {rank}: with a confidence, only rank 1 is supported")
    return float((1 - confidence) ** (1 / cases))


def confidence_of(cases: int, rank: int, probability: float) -> float:
    """How sure it is that a share ``probability`` of all cases keeps the promise, over the draw of the measured ones.

    That is so if at least ``rank`` of the measured cases lie among the rest, the ones that may break it.
    """
    return float(_confidences(cases, probability)[rank - 1])


def _confidences(cases: int, probability: float) -> NDArray[np.float64]:
    """``confidence_of`` for each rank from 1 to ``cases``."""
    rest, hits = float(1 - _exact(probability)), np.arange(1, cases)
    # Each term of the binomial sum from the one before it, in logarithms, which do not underflow.
    steps = np.log(cases - hits + 1) - np.log(hits) + np.log(rest) - np.log1p(-rest)
    terms = cases * np.log1p(-rest) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.asarray(1 - np.cumsum(np.exp(terms)), np.float64)


def cases_needed(probability: float, confidence: float | None = None) -> int:
    """The least number of cases that supports what is asked for.

    Raises:
        ValueError: If no number does.

    >>> cases_needed(0.9), cases_needed(0.9, 0.9), cases_needed(0.95, 0.95)
    (9, 22, 59)
    """
    for cases in count(1):
        if cases > MOST_CASES:
            raise ValueError(f"a probability of {probability} would need more than {MOST_CASES} cases")
        if (1 - _exact(probability)) * (cases + 1) < 1:  # the weaker one of both, and quick
            continue
        if confidence is None or confidence_of(cases, 1, probability) >= confidence:
            return cases
    raise AssertionError


def common_limit(limits: NDArray[np.floating], rank: int) -> float:
    """The ``rank``-th lowest limit: what is taken for all cases.

    Args:
        limits: One for each measured case; -inf for one that keeps the promise nowhere.
        rank: From ``rank_for``.
    """
    return float(np.sort(limits)[rank - 1])


def _exact(probability: float) -> Fraction:
    """A share as it was typed: 1 - 0.9 is less than a tenth in floating point."""
    return Fraction(repr(float(probability)))
