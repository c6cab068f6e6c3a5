"""The settings of a kit: the fastest whose loss against one-stage mode is within what is allowed.

Cases come from small to large, as many as there is time for. On each of them one-stage mode and all candidates that are
left run with the same models, the same mirroring and the same volume in memory. After two, four, eight, ... cases
candidates that are clearly behind are dropped, and from two cases on those that are slower than one-stage mode. What is
measured is kept in the work folder: a search that was cut short goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import mean, median

from coarse2fine.calibration.bound import upper_bound, within
from coarse2fine.calibration.candidates import Candidate, candidates
from coarse2fine.calibration.cases import CalibrationCase
from coarse2fine.calibration.found import Found, Tried, conclude
from coarse2fine.calibration.passes import as_compared
from coarse2fine.calibration.trial import Bench, Clock, Trial
from coarse2fine.config.schema import Config
from coarse2fine.nnunet.model import Model
from coarse2fine.system.timing import Ticks

FEWEST = 3
"""Cases that are looked at whatever time it takes, where there are so many."""
CLEARLY = 1.1
"""Factor in seconds by which a candidate is clearly slower than another; timings of one machine vary."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a search may take.

    Attributes:
        seconds: From its start; no case is begun that would not be done by then, but for the first ``FEWEST``, on
            which only the best candidate is tried once the time is over.
        clock: Tells the time.
    """

    seconds: float
    clock: Clock = time.monotonic


@dataclass(slots=True)
class _Running:
    """A candidate, its trials so far, and why it was dropped."""

    candidate: Candidate
    trials: list[Trial]
    dropped: str | None = None


def search(
    cases: Sequence[tuple[CalibrationCase, Model]],
    config: Config,
    fine: Model,
    work: Path,
    budget: Budget,
    *,
    loss: float = 0.005,
    confidence: float = 0.95,
    ticks: Ticks = lambda done, total: None,
    bench: Callable[..., Bench] = Bench,
) -> Found:
    """Measure candidates on cases and choose.

    Args:
        cases: Each with the coarse model that may look at it: one that was not trained on it.
        config: Settings with the threshold that was calibrated together with ``also_calibrated``.
        fine: The fine model.
        work: Folder of what is known already.
        budget: How long that may take.
        loss: Mean Dice that may be lost against one-stage mode.
        confidence: That the chosen candidate loses no more, over the draw of the cases.
        ticks: Told of runs.
        bench: Who segments.
    """
    coarse = cases[0][1] if cases else None
    running = [_Running(candidate, []) for candidate in candidates(config, fine, coarse)]
    ordered = sorted(cases, key=lambda pair: _bytes(pair[0]))
    began, reference, done, over = budget.clock(), list[Trial](), 0, False
    for index, (case, coarse) in enumerate(ordered):
        if index >= FEWEST:
            spent, next_one = budget.clock() - began, _seconds_of_next(running, reference, ordered, index)
            if spent + next_one > budget.seconds:
                break
        here = bench(case, config, coarse, fine, work)
        reference.append(here.one_stage())
        for one in running:
            if one.dropped is None:
                one.trials.append(here.candidate(one.candidate))
                done += 1
                ticks(done, len(running) * len(ordered))
        _drop(running, reference, loss, late=budget.clock() - began > budget.seconds)
        over = all(one.dropped for one in running)
        if over:
            break
    ticks(len(running) * len(ordered), len(running) * len(ordered))
    tried = _judge(running, reference, loss, confidence)
    return conclude(
        config,
        reference,
        tried,
        {one.candidate.name: one.candidate.config for one in running},
        loss=loss,
        confidence=confidence,
        left_out=0 if over else len(ordered) - len(reference),
        labelled=all(case.labels is not None for case, _ in cases),
        mirrored=as_compared(config).fine.mirroring,
    )


def _bytes(case: CalibrationCase) -> int:
    return sum(path.stat().st_size for path in case.images)


def _seconds_of_next(
    running: Sequence[_Running],
    reference: Sequence[Trial],
    ordered: Sequence[tuple[CalibrationCase, Model]],
    index: int,
) -> float:
    """What a case will take with all that are left, as slow by its size as the one before it."""
    before = reference[-1].seconds + sum(one.trials[-1].seconds for one in running if one.dropped is None)
    return before * _bytes(ordered[index][0]) / max(1, _bytes(ordered[index - 1][0]))


def _drop(running: Sequence[_Running], reference: Sequence[Trial], loss: float, *, late: bool) -> None:
    """What is not tried on the cases that follow."""
    _drop_slow(running, reference)
    _drop_worse_half(running, reference, loss)
    if late:
        _keep_best(running, reference, loss)


def _drop_slow(running: Sequence[_Running], reference: Sequence[Trial]) -> None:
    """From two cases on: what is clearly slower than one-stage mode cannot be chosen."""
    for one in running:
        if len(reference) >= 2 and one.dropped is None:
            slower = _seconds(one.trials) / _seconds(reference)
            if slower > CLEARLY:
                one.dropped = f"after {len(reference)} cases: takes {slower:.3g} times as long as one-stage mode"


def _drop_worse_half(running: Sequence[_Running], reference: Sequence[Trial], loss: float) -> None:
    """After two, four, eight, ... cases: what is in the worse half, and clearly so, is not looked at any further."""
    count = len(reference)
    if count < 2 or count & (count - 1):
        return
    left = [one for one in running if one.dropped is None]
    if not left:
        return
    ranked = sorted(left, key=lambda one: _rank(one, reference, loss))
    best = ranked[0]
    least = mean(_losses(best.trials, reference))
    for one in ranked[ceil(len(ranked) / 2) :]:
        lost, slower = mean(_losses(one.trials, reference)), _seconds(one.trials) / _seconds(best.trials)
        if lost > loss and lost > least + loss:
            one.dropped = f"after {count} cases: loses {lost:.3g}, while {best.candidate.name} loses {least:.3g}"
        elif slower > CLEARLY:
            one.dropped = f"after {count} cases: takes {slower:.3g} times as long as {best.candidate.name}"


def _keep_best(running: Sequence[_Running], reference: Sequence[Trial], loss: float) -> None:
    """When the time is over: on the few cases that are looked at all the same, only the best is tried."""
    left = [one for one in running if one.dropped is None]
    for one in sorted(left, key=lambda one: _rank(one, reference, loss))[1:]:
        one.dropped = f"after {len(reference)} case(s): the time was over"


def _rank(one: _Running, reference: Sequence[Trial], loss: float) -> tuple[float, float]:
    """Candidates that lose too much come last, the worst at the end; of others the fastest comes first."""
    lost = mean(_losses(one.trials, reference))
    return (0.0, _seconds(one.trials)) if lost <= loss else (lost, 0.0)


def _losses(trials: Sequence[Trial], reference: Sequence[Trial]) -> list[float]:
    """By case, as far as there are both."""
    return [plain.dice - trial.dice for trial, plain in zip(trials, reference, strict=False)]


def _seconds(trials: Sequence[Trial]) -> float:
    return sum(trial.seconds for trial in trials)


def _judge(
    running: Sequence[_Running], reference: Sequence[Trial], loss: float, confidence: float
) -> tuple[Tried, ...]:
    losses = {one.candidate.name: _losses(one.trials, reference) for one in running}
    # One that was dropped has been looked at all the same: it counts among those that could have seemed good by chance.
    counted = {one.candidate.name: losses[one.candidate.name] if one.dropped is None else [] for one in running}
    good = within(counted, loss, confidence)
    found = []
    for one in running:
        name, own = one.candidate.name, losses[one.candidate.name]
        plain = median(trial.seconds for trial in reference[: len(one.trials)])
        seconds = median(trial.seconds for trial in one.trials)
        found.append(
            Tried(
                name=name,
                changes=dict(one.candidate.changes),
                trials=tuple(one.trials),
                losses=tuple(own),
                mean_loss=mean(own),
                bound=upper_bound(own, confidence),
                worst=max(own),
                seconds=seconds,
                ratio=plain / seconds,
                dropped=one.dropped,
                qualifies=name in good,
            )
        )
    return tuple(found)
