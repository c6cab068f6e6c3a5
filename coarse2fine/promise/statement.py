"""What a kit's calibration promises, in words, and whether a run may lean on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coarse2fine.config.schema import Config, PromiseConfig
from coarse2fine.errors import ModelError
from coarse2fine.nnunet.fingerprint import model_fingerprint
from coarse2fine.nnunet.model import Model
from coarse2fine.promise.likeness import Known, Likeness, unlike

_FREE = {
    "device": None,
    "deadline": None,
    "assign": ("order",),
    "promise": None,
    "blocks": None,
    "coarse": ("model", "folds", "checkpoint"),
    "fine": ("model", "folds", "checkpoint", "mirroring", "precision"),
}
"""Settings that no box depends on, or that models' fingerprints stand for."""


@dataclass(frozen=True, slots=True)
class Promised:
    """What was promised for a run.

    Attributes:
        statement: In words.
        covers: Whether it holds for this case.
        reasons: Why not.
    """

    statement: str
    covers: bool
    reasons: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """For those who read nothing else."""
        if self.covers:
            return ()
        return (f"the kit's promise does not cover this case: {'; '.join(self.reasons)}",)


def settings_fingerprint(config: Config) -> str:
    """Equal for settings that give the same boxes with the same models.

    >>> a, b, c = Config(device="cpu"), Config(device="cuda"), Config(mode="two-stage")
    >>> settings_fingerprint(a) == settings_fingerprint(b) != settings_fingerprint(c)
    True
    >>> settings_fingerprint(Config(fine={"mirroring": False})) == settings_fingerprint(a)
    True
    """
    values: dict[str, Any] = config.to_dict()
    for section, keys in _FREE.items():
        if keys is None:
            del values[section]
        else:
            values[section] = {key: value for key, value in values[section].items() if key not in keys}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def state(promise: PromiseConfig) -> str:
    """The promise in one sentence; an estimate is called one."""
    text = _state(promise)
    if not promise.crossed:
        return text
    return (
        f"an estimate, not a guarantee, as calibration cases were looked at by coarse models that were trained without "
        f"them, but the kit's own on all of them: {text}"
    )


def _state(promise: PromiseConfig) -> str:
    found = "foreground" if promise.foreground == "labels" else "foreground that the fine model finds everywhere"
    kept = f"at most {100 * promise.miss:g} % of its {found} lies outside of all boxes"
    ground = f"k = {promise.rank} of n = {promise.cases} calibration cases"
    if promise.confidence is None:
        sure = f"with a probability of at least {100 * promise.probability:.3g} %"
        how = "cross-fitting" if promise.crossed else "split conformal"
        return f"of a new case like the calibration cases, {kept}, {sure} ({how}, {ground})"
    sure = f"with a confidence of {100 * promise.confidence:.3g} %"
    share = f"at least {100 * promise.probability:.3g} % of them"
    return (
        f"of cases like the calibration cases, {share} are such that of each {kept}, {sure} (exact binomial, {ground})"
    )


def check_promise(config: Config, coarse: Model | None, fine: Model) -> None:
    """Refuse models that a kit was not made for.

    Raises:
        ModelError: Naming the model.
    """
    promise = config.promise
    if promise is None:
        return
    for stage, model, expected in (("coarse", coarse, promise.coarse_model), ("fine", fine, promise.fine_model)):
        if model is not None and model_fingerprint(model) != expected:
            raise ModelError(
                f"{model.folder} is not the {stage} model that the kit was made for: its weights differ",
                f"Use the kit's own {stage} model with the folds that it was made for, or make a kit for this one "
                "(c2f-prepare).",
            )


def promised(config: Config, case: Likeness | None, *, left: int = 0, masked: bool = False) -> Promised | None:
    """What a run was promised; None if it was made without a kit.

    Args:
        config: The run's settings.
        case: What the case is like; None if the run did not look, because it reads by region or needs no boxes.
        left: How many boxes the fine network did not reach in time.
        masked: Whether only a part of the volume was looked at, where a mask is set.
    """
    promise = config.promise
    if promise is None:
        return None
    reasons = tuple(_reasons(config, promise, case))
    if left:
        reasons += (f"the deadline left out {left} of its boxes",)
    if masked:
        reasons += ("only what the mask shows was looked at",)
    return Promised(state(promise), not reasons, reasons)


def _reasons(config: Config, promise: PromiseConfig, case: Likeness | None) -> Iterator[str]:
    if settings_fingerprint(config) != promise.settings:
        yield "settings were changed after calibration"
    if case is None:
        yield "it was calibrated on volumes that are held in memory as a whole"
        return
    known = promise.known
    yield from unlike(case, Known(known.spacing, known.low, known.high, known.mass))
