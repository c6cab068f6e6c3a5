"""What a search for settings found, and what it says of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from coarse2fine.calibration.trial import ONE_STAGE, Trial
from coarse2fine.config.schema import Config


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate, and how it did.

    Attributes:
        name: In words.
        changes: In what its settings differ from those that were calibrated.
        trials: By case.
        losses: Likewise: Dice of one-stage mode, less the candidate's.
        mean_loss: Of the cases.
        bound: The mean over all cases to come is at most this, with the confidence asked for; infinite for
            fewer than three.
        worst: The largest loss that was seen.
        seconds: Median of the cases.
        ratio: One-stage mode's median seconds over the candidate's, on the same cases.
        dropped: After how many cases it was not looked at any further, and why; None if it stayed.
        qualifies: Whether its loss is within what is allowed, corrected for how many were tried.
    """

    name: str
    changes: dict[str, Any]
    trials: tuple[Trial, ...]
    losses: tuple[float, ...]
    mean_loss: float
    bound: float
    worst: float
    seconds: float
    ratio: float
    dropped: str | None
    qualifies: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows no infinity."""
        return asdict(self) | {"bound": self.bound if isfinite(self.bound) else None}


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        winner: Name of a candidate, or ``one-stage``.
        config: Its settings.
        reason: Why that one, in words.
        one_stage: One-stage mode's trials, by case from small to large.
        tried: The candidates.
        loss: Mean Dice that might be lost.
        confidence: That the winner loses no more.
        left_out: Cases that there was no time for.
        labelled: Whether Dice is against true labels, not against one-stage mode's result.
        mirrored: Whether inputs were mirrored, on both sides alike.
    """

    winner: str
    config: Config
    reason: str
    one_stage: tuple[Trial, ...]
    tried: tuple[Tried, ...]
    loss: float
    confidence: float
    left_out: int
    labelled: bool
    mirrored: bool

    @property
    def chosen(self) -> Tried | None:
        """The winner among the candidates; None if it is one-stage mode."""
        return next((tried for tried in self.tried if tried.name == self.winner), None)

    @property
    def ratio(self) -> float:
        """How many times faster than one-stage mode the winner is."""
        return self.chosen.ratio if self.chosen else 1.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the settings, which a kit has anyway."""
        names = ("winner", "reason", "loss", "confidence", "left_out", "labelled", "mirrored", "ratio")
        return {
            **{name: getattr(self, name) for name in names},
            "one_stage": [trial.to_dict() for trial in self.one_stage],
            "tried": [tried.to_dict() for tried in self.tried],
        }


def conclude(
    config: Config,
    reference: Sequence[Trial],
    tried: Sequence[Tried],
    configs: Mapping[str, Config],
    *,
    loss: float,
    confidence: float,
    left_out: int,
    labelled: bool,
    mirrored: bool,
) -> Found:
    """Choose the fastest candidate that qualifies and is faster than one-stage mode; else one-stage mode.

    Args:
        config: Settings that were calibrated.
        reference: One-stage mode's trials.
        tried: The candidates.
        configs: Their settings, by name.
        loss: Mean Dice that may be lost.
        confidence: That a candidate that qualifies loses no more.
        left_out: Cases that there was no time for.
        labelled: Whether there are true labels.
        mirrored: Whether inputs were mirrored.
    """
    good = [one for one in tried if one.qualifies and one.ratio > 1]
    best = max(good, key=lambda one: one.ratio, default=None)
    accelerated = [one for one in tried if configs[one.name].mode != "two-stage"]
    against = (
        "true labels" if labelled else "the fine model's own one-stage results, which any difference counts against"
    )
    if best is None:
        winner, settings = ONE_STAGE, config.model_copy(update={"mode": "one-stage"})
        reason = f"no candidate is both faster than one-stage mode and within a loss of {loss:g}"
    else:
        winner, settings = best.name, configs[best.name]
        reason = f"it is the fastest whose loss is within {loss:g}: {statement(best, confidence)}"
    closest = min(accelerated, key=lambda one: (one.dropped is not None, one.bound), default=None)
    if closest is not None and (best is None or settings.mode == "two-stage" != config.mode):
        why = f", dropped {closest.dropped}" if closest.dropped else ""
        reason += f"; the closest accelerated one, {closest.name}: {statement(closest, confidence)}{why}"
    return Found(
        winner,
        settings,
        f"{reason} (Dice against {against})",
        tuple(reference),
        tuple(tried),
        loss,
        confidence,
        left_out,
        labelled,
        mirrored,
    )


def statement(one: Tried, confidence: float) -> str:
    """What is known of a candidate's loss.

    A bound by a few cases is wide, and that shows.
    """
    count = len(one.losses)
    sure = f"at most {one.bound:.3g} with {100 * confidence:.3g} % confidence" if isfinite(one.bound) else "no bound"
    return (
        f"n = {count}: mean loss {one.mean_loss:.3g}, {sure}, at worst {one.worst:.3g} in a case, "
        f"{one.ratio:.3g} times as fast as one-stage mode"
    )
