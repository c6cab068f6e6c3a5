"""How good predictions are on what was held out: AUROC, accuracy, Dice, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_RESAMPLES = 500
"""Of the bootstrap; its ends then vary by a few percent of the interval's width."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure with its interval of 95 %; not a number where it is not defined."""

    value: float
    interval: tuple[float, float]


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Chance that a positive example has a higher score than a negative one, where ties count half.

    After Mann and Whitney, 1947. Not a number if one of the two kinds is missing.

    Args:
        scores: Shape (n,).
        positive: Shape (n,), true or false.

    >>> auroc([0.1, 0.4, 0.4, 0.8], [False, False, True, True])
    0.875
    """
    positive = np.asarray(positive, bool)
    _, places, counts = np.unique(np.asarray(scores, np.float64), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places.reshape(-1)]
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not (ones and zeros):
        return float("nan")
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def mean_auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Mean over the labels that have both kinds of examples; not a number if none has.

    Args:
        scores: Shape (n, labels).
        positive: Shape (n, labels), true or false.
    """
    columns = zip(np.asarray(scores).T, np.asarray(positive, bool).T, strict=True)
    return mean([auroc(score, label) for score, label in columns])


def mean(values: ArrayLike) -> float:
    """The mean of those that are numbers; not a number if none is."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else float("nan")


def dice(found: NDArray[np.integer], reference: NDArray[np.integer], classes: int) -> Floats:
    """Dice of each class but the background, which is 0; not a number where a class is in neither of the two.

    Args:
        found: Labels, any shape.
        reference: Labels, the same shape.
        classes: With the background.

    Returns:
        Shape (classes - 1,).
    """
    sizes, wanted = (np.bincount(labels.reshape(-1), minlength=classes)[:classes] for labels in (found, reference))
    hits = np.bincount(reference[found == reference].reshape(-1), minlength=classes)[:classes]
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * hits / (sizes + wanted), np.float64)[1:]


def with_interval(statistic: Callable[[NDArray[np.intp]], float], patients: Sequence[str]) -> Measure:
    """A statistic of all examples, and where it lies in 95 % of samples of patients with replacement (Efron, 1979).

    Args:
        statistic: Of some examples, given their numbers.
        patients: Whose each example is; those of one patient are drawn together.
    """
    _, groups = np.unique(np.asarray(patients), return_inverse=True)
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(groups))[:-1])
    generator = np.random.default_rng(0)
    draws = [
        statistic(np.concatenate([members[one] for one in generator.integers(len(members), size=len(members))]))
        for _ in range(_RESAMPLES)
    ]
    known = [value for value in draws if not np.isnan(value)]
    low, high = np.quantile(known, (0.025, 0.975)) if known else (np.nan, np.nan)
    return Measure(statistic(np.arange(len(patients))), (float(low), float(high)))
