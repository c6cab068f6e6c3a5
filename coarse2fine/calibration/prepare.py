"""The path of ``c2f-prepare``: a fine model and some cases go in, calibrated settings and a coarse model come out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from coarse2fine.calibration.agent_worth import Worth, agent_worth
from coarse2fine.calibration.calibrate import Asked, Calibration, calibrate, check_asked, least_cases
from coarse2fine.calibration.candidates import also_calibrated
from coarse2fine.calibration.cases import CalibrationCase
from coarse2fine.calibration.division import KIT, Division, divide, held_out
from coarse2fine.calibration.found import Found
from coarse2fine.calibration.from_fine import FromFine, coarse_from_fine
from coarse2fine.calibration.kit import files_of
from coarse2fine.calibration.measure import measure
from coarse2fine.calibration.misses import MeasuredCase
from coarse2fine.calibration.passes import one_stage_pass
from coarse2fine.calibration.search import Budget, search
from coarse2fine.calibration.settle import at_threshold, everywhere, settle, with_margin
from coarse2fine.coarse_training.targets import LabelArray
from coarse2fine.coarse_training.train import Effort, TrainingCase, train_models
from coarse2fine.config.schema import Config
from coarse2fine.errors import ModelError, VolumeError
from coarse2fine.io import Volume
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.labels import read_labels
from coarse2fine.system.timing import Progress, Run

TRAINING = 0.45
"""Share of the time that goes into training; the search gets what the rest leaves."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a kit is to be.

    Attributes:
        asked: What is to be promised.
        loss: Mean Dice that may be lost against one-stage mode.
        minutes: That making it may take, as far as that can be kept.
        train: Whether a coarse model is trained if none is given; else the fine one looks coarsely itself.
        search: Whether other settings are tried than those that are given.
        seed: Of all random numbers.
    """

    asked: Asked
    loss: float = 0.005
    minutes: float = 20.0
    train: bool = True
    search: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a kit is made of.

    Attributes:
        cases: With labels or without.
        config: Settings to start from.
        coarse: The coarse model; None to make one.
        fine: The fine model.
        work: Folder of what an earlier run, which was cut short, has done already.
    """

    cases: Sequence[CalibrationCase]
    config: Config
    coarse: Model | None
    fine: Model
    work: Path


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """Who looks coarsely at which cases.

    Attributes:
        config: Settings, with those of the coarse stage.
        models: Coarse models by name.
        division: Which of them looks at which case.
        from_fine: How the fine model's voxel size was chosen, if it is the coarse one.
    """

    config: Config
    models: Mapping[str, Model]
    division: Division
    from_fine: FromFine | None = None

    def model_for(self, case: CalibrationCase) -> Model:
        """The model that looks at a calibration case."""
        return self.models[self.division.looks[case.name]]

    @property
    def origin(self) -> Literal["given", "trained", "fine"]:
        """Where the kit's coarse model comes from."""
        if self.from_fine is not None:
            return "fine"
        return "trained" if self.division.training else "given"


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Everything that a kit is written from.

    Attributes:
        config: Its settings, with the promise.
        coarse: Its coarse model.
        looks: Who looked at which case.
        measured: What thresholds miss of each case that has foreground.
        result: The threshold.
        found: What the search for settings found; None if there was none, as where the coarse model is the limit.
        empty: Cases without foreground, of which nothing can be missed.
        agent: Whether training an agent could pay; None if that was not looked at.
    """

    config: Config
    coarse: Model
    looks: Looks
    measured: tuple[MeasuredCase, ...]
    result: Calibration
    found: Found | None
    empty: tuple[str, ...]
    agent: Worth | None = None


def prepare(given: Given, wanted: Wanted, progress: Progress) -> Prepared:
    """Train a coarse model if there is none, calibrate its threshold, and search for the fastest settings.

    Where no threshold keeps what is asked for, one-stage mode is all that is left.

    Args:
        given: Cases, settings and models.
        wanted: What the kit is to be.
        progress: Told of every step: ``preprocess`` and ``train``, or ``spacing``; then ``calibrate`` and ``search``.

    Raises:
        ConfigError: If there are too few cases for what is asked.
        ModelError: If the models do not fit, or a training fails.
        VolumeError: If a case cannot be read, or none has foreground.
    """
    began, asked = time.monotonic(), wanted.asked
    cases, fine, work = given.cases, given.fine, given.work
    check_asked(asked, len(cases))
    looks = find_looks(given, wanted, progress)
    config = with_margin(looks.config, looks.models[KIT], fine)
    also = also_calibrated(config, fine) if wanted.search else []
    pairs = [(case, looks.model_for(case)) for case in cases if case.name in looks.division.looks]
    misses: list[MeasuredCase | None] = []
    for case, model in pairs:
        misses.append(measure(case, config, model, fine, work, also))
        progress("calibrate", len(misses), len(pairs))
    measured = [one for one in misses if one is not None]
    if not measured:
        raise VolumeError("no case has any foreground", "Give cases with something to find.")
    result = calibrate(measured, asked)
    with_foreground = [pair for pair, one in zip(pairs, misses, strict=True) if one is not None]
    found, agent, chosen = None, None, everywhere(at_threshold(config, result)) if result.limit else None
    if wanted.search and not result.limit:
        left = Budget(max(60 * wanted.minutes - (time.monotonic() - began), 0.0))
        calibrated, ticks = at_threshold(config, result), Run(progress=progress).ticks("search")
        found = search(with_foreground, calibrated, fine, work, left, loss=wanted.loss, ticks=ticks)
        chosen = found.config
        if found.chosen and 60 * wanted.minutes > time.monotonic() - began:
            agent = agent_worth(with_foreground, found.config, fine, work)
    settled = settle(
        config,
        looks.models[KIT],
        fine,
        measured,
        result,
        asked,
        labelled=all(case.labels for case, _ in pairs),
        crossed=looks.division.crossed,
        chosen=chosen,
    )
    empty = tuple(case.name for (case, _), one in zip(pairs, misses, strict=True) if one is None)
    return Prepared(settled, looks.models[KIT], looks, tuple(measured), result, found, empty, agent)


def find_looks(given: Given, wanted: Wanted, progress: Progress) -> Looks:
    """The coarse models that look at cases: the given one, trained ones, or the fine one; arguments as of ``prepare``.

    Raises:
        ModelError: If the fine model is a cascade and there is no coarse one, or a training fails.
    """
    cases, config, fine = given.cases, given.config, given.fine
    names = [case.name for case in cases]
    if given.coarse is not None:
        return Looks(config, {KIT: given.coarse}, held_out(names))
    if fine.cascade:
        raise ModelError(
            f"{fine.folder} is a cascade ({fine.configuration}): it needs the results of its own low-resolution model",
            "Name that with --coarse-model and --set fine.use_prior=true, or use a 3d_fullres model.",
        )
    if not wanted.train:
        chosen = coarse_from_fine(
            config,
            fine,
            cases,
            given.work,
            wanted.asked.miss,
            needed=least_cases(wanted.asked),
            ticks=Run(progress=progress).ticks("spacing"),
        )
        return Looks(
            chosen.config, {KIT: fine}, held_out([name for name in names if name not in chosen.tuning]), chosen
        )
    division = divide(names, wanted.asked, wanted.seed)
    training = [training_case(case, config, fine, given.work) for case in cases]
    effort = Effort(60 * wanted.minutes * TRAINING, seed=wanted.seed)
    models = train_models(division.training, training, fine, effort, given.work / "coarse", progress)
    return Looks(config, models, division)


def training_case(case: CalibrationCase, config: Config, fine: Model, work: Path) -> TrainingCase:
    """A case to train on; without labels its targets are what the fine model finds in one-stage mode."""

    def read() -> tuple[Volume[Any], LabelArray]:
        volume = case.read(fine)
        if case.labels is not None:
            return volume, read_labels(case.labels, fine, volume)
        return volume, one_stage_pass(case, volume, config, None, fine, work).labels

    return TrainingCase(case.name, files_of(case.files), read)
