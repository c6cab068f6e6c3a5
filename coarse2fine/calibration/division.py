"""Who is trained on which cases, and which model may look at which: never one at a case that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coarse2fine.calibration.calibrate import FEWEST, Asked, least_cases

KIT = "kit"
"""Name of the model that the kit gets."""
ENOUGH = 12
"""From so many cases on, some are held out of the training; of fewer, too little would be left on either side."""
HELD = 9
"""Cases that are held out at least, which support 90 %."""
FOLDS = 3


@dataclass(frozen=True, slots=True)
class Division:
    """A division of cases.

    Attributes:
        training: For each coarse model, by name, the cases that it is trained on; empty if none is trained.
        looks: For each calibration case the model that looks at it.
    """

    training: Mapping[str, tuple[str, ...]]
    looks: Mapping[str, str]

    @property
    def crossed(self) -> bool:
        """Whether cases were looked at by other models than the kit's, so that what is promised is an estimate."""
        return any(model != KIT for model in self.looks.values())


def held_out(cases: Sequence[str]) -> Division:
    """With a coarse model that was trained elsewhere, on other cases."""
    return Division({}, dict.fromkeys(cases, KIT))


def divide(cases: Sequence[str], asked: Asked, seed: int = 0) -> Division:
    """Hold cases out of the training, or with few cases cross-fit.

    With enough of them the model is trained on one part and calibrated on the other: at least ``HELD``, half of all,
    or as many as the promise needs. Else each part of the cases is looked at by a model that was trained on the others,
    and the kit's own model is trained on all.

    Args:
        cases: Their names.
        asked: What is to be promised.
        seed: Of the shuffling: nothing of how cases are named may decide.
    """
    names = sorted(cases)
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    held = max(HELD, len(order) // 2) if asked.probability is None else least_cases(asked)
    if len(order) >= ENOUGH and len(order) - held >= FEWEST:
        return Division({KIT: tuple(order[held:])}, dict.fromkeys(order[:held], KIT))
    folds = {f"fold {index + 1}": order[index::FOLDS] for index in range(FOLDS)}
    training = {name: tuple(case for case in order if case not in fold) for name, fold in folds.items()}
    looks = {case: name for name, fold in folds.items() for case in fold}
    return Division({KIT: tuple(order), **training}, looks)
