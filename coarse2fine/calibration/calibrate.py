"""From measured cases to the threshold that is promised something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Any

from coarse2fine.calibration.misses import MeasuredCase, beyond, limits_of
from coarse2fine.errors import ConfigError
from coarse2fine.promise.conformal import cases_needed, common_limit, probability_of, rank_for
from coarse2fine.promise.likeness import Known

LISTED = 5
"""Cases that a message names."""
FEWEST = 3
"""Cases; of fewer, nothing that is promised is worth its words."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be promised.

    Attributes:
        miss: Most share of a case's foreground outside of boxes.
        probability: With which a new case keeps that; None for the highest that the cases support.
        confidence: Over the draw of the calibration cases; then ``probability`` is the share of all cases.
    """

    miss: float = 0.01
    probability: float | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came of the cases.

    Attributes:
        threshold: To be used for all; if there is a limit, the lowest that was measured.
        rank: The k-th lowest of the cases' limits.
        probability: That is promised.
        boxes: Median over cases of the share of the working grid inside of boxes at that threshold.
        missed: Of each case the share of its foreground that is missed there, by name; None if not measured.
        limit: Why no threshold keeps what is asked for, in words; None if one does.
    """

    threshold: float
    rank: int
    probability: float
    boxes: float
    missed: dict[str, float | None]
    limit: str | None = None


def least_cases(asked: Asked) -> int:
    """How many cases must be calibrated on at least."""
    if asked.probability is None:
        return FEWEST
    return max(FEWEST, cases_needed(asked.probability, asked.confidence))


def check_asked(asked: Asked, cases: int) -> int:
    """The rank that supports what is asked for, known before anything is measured.

    Raises:
        ConfigError: If there are too few cases, naming how many would do.
    """
    if cases < FEWEST:
        raise ConfigError(f"{cases} case(s) to calibrate on", f"Give at least {FEWEST} that no model was trained on.")
    if asked.probability is None:
        return 1
    rank = rank_for(cases, asked.probability, asked.confidence)
    if rank:
        return rank
    sure = "" if asked.confidence is None else f" at a confidence of {asked.confidence:g}"
    try:
        enough = f"Give {cases_needed(asked.probability, asked.confidence)} cases, or ask for less"
    except ValueError:
        enough = "Ask for less"
    most = probability_of(cases, 1, asked.confidence)
    raise ConfigError(
        f"{cases} cases cannot support a probability of {asked.probability:g}{sure}",
        f"{enough}: --probability {int(1000 * most) / 1000:g} is the most for {cases}.",
    )


def calibrate(cases: Sequence[MeasuredCase], asked: Asked) -> Calibration:
    """The highest threshold that is supported, unless even the lowest misses too much of too many cases.

    Args:
        cases: Measured.
        asked: What is to be promised; ``check_asked`` holds.
    """
    rank = check_asked(asked, len(cases))
    threshold, limit = common_limit(limits_of(cases, asked.miss), rank), None
    if threshold == -inf:
        threshold, limit = cases[0].misses[0].threshold, _limit(cases, asked)
    probability = asked.probability or probability_of(len(cases), rank, asked.confidence)
    there = {case.name: case.at(threshold) for case in cases}
    boxes = median(miss.boxes for miss in there.values() if miss is not None)
    missed = {name: miss.missed if miss is not None else None for name, miss in there.items()}
    return Calibration(threshold, rank, probability, boxes, missed, limit)


def _limit(cases: Sequence[MeasuredCase], asked: Asked) -> str:
    """That the coarse model is the limit, and of which cases and objects."""
    hard = beyond(cases, asked.miss)
    more = f" and {len(hard) - LISTED} more" if len(hard) > LISTED else ""
    return (
        f"the coarse model is the limit: even the threshold {cases[0].misses[0].threshold:g} misses more than "
        f"{100 * asked.miss:g} % of the foreground of {len(hard)} of {len(cases)} cases: "
        f"{', '.join(map(_missed_of, hard[:LISTED]))}{more}"
    )


def _missed_of(case: MeasuredCase) -> str:
    share, hardest = f"{100 * case.misses[0].missed:.3g} % missed", case.hardest
    if hardest is None:
        return f"{case.name} ({share})"
    return (
        f"{case.name} ({share}, most of it {hardest.missed} of the {hardest.voxels} voxels of the object around voxel "
        f"{list(hardest.at)} (z, y, x))"
    )


def known_of(cases: Sequence[MeasuredCase]) -> dict[str, Any]:
    """What the cases were like, for the configuration."""
    known = Known.of([case.likeness for case in cases])
    return {name: _lists(getattr(known, name)) for name in Known.__slots__}


def _lists(value: Any) -> Any:
    return [_lists(part) for part in value] if isinstance(value, tuple) else value
