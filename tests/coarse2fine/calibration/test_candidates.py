"""Which settings are tried, and that none of them misses more than was calibrated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs

from coarse2fine.calibration.candidates import CALIBRATED, TWO_STAGE, WIDE_TWO_STAGE, also_calibrated, candidates
from coarse2fine.calibration.misses import THRESHOLDS, jointly, measure_case
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.fine.segment import FineStage
from coarse2fine.io import Grid, Volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.promise.statement import settings_fingerprint
from coarse2fine.segmenter import make_segmenter, preset

SPACING = (2.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> tuple[Model, Model]:
    return load_model(model_folder(spacing=(4.0, 2.0, 2.0), seed=5)), load_model(
        model_folder(seed=6, patch=(16, 32, 32))
    )


@pytest.mark.parametrize("shape", [(24, 48, 48), (8, 48, 48)])
def test_also_calibrated__any_candidate__misses_no_more_than_the_joint_measurement(
    models: tuple[Model, Model], shape: tuple[int, int, int]
) -> None:
    """So any may be chosen by looking at the cases that the threshold was calibrated on; in a thin volume, too."""
    coarse, fine = models
    volume = Volume((blobs(shape, seed=1),), Grid(shape, SPACING), "blobs")
    truth = np.random.default_rng(0).random(shape) < 0.02
    config = load_config(None, ["rois.threshold=0.55", "rois.margin=[1, 2, 2]"])
    thresholds = [threshold for threshold in THRESHOLDS if 0.3 < threshold < 0.65]

    def measured(settings: object) -> list[float]:
        segmenter = make_segmenter(settings, coarse, FineStage.of(fine, settings))  # type: ignore[arg-type]
        return [miss.missed for miss in measure_case(segmenter, volume, truth, thresholds).misses]

    segmenters = [
        make_segmenter(settings, coarse, FineStage.of(fine, settings))
        for settings in (config, *also_calibrated(config, fine))
    ]
    joint = [
        miss.missed for miss in jointly([measure_case(one, volume, truth, thresholds) for one in segmenters]).misses
    ]
    assert max(joint) > 0.1
    for candidate in candidates(config, fine, coarse):
        assert all(own <= most for own, most in zip(measured(candidate.config), joint, strict=True)), candidate.name


def test_candidates__settings_that_are_given__are_not_tried_otherwise(models: tuple[Model, Model]) -> None:
    """Only what was left open varies; two-stage mode comes last, and of two-stage settings nothing is tried."""
    _, fine = models
    names = [candidate.name for candidate in candidates(load_config(None, []), fine)]
    assert names[0] == CALIBRATED
    assert names[-1] == TWO_STAGE
    assert any("growth" in name for name in names)
    assert any("context" in name for name in names)
    given = load_config(None, ["fine.grow=1", "canvas.context=[1, 1, 1]", "canvas.norm=case"])
    names = [candidate.name for candidate in candidates(given, fine)]
    assert names == [CALIBRATED, "a lower threshold", WIDE_TWO_STAGE, TWO_STAGE]
    given = load_config(None, ["fine.tile_step=0.6"])
    assert WIDE_TWO_STAGE not in [candidate.name for candidate in candidates(given, fine)]
    assert len(candidates(load_config(None, ["mode=two-stage"]), fine)) == 1


def test_candidates__coarse_labels_outside__only_of_a_model_with_the_same_labels(
    models: tuple[Model, Model], model_folder: Callable[..., Path]
) -> None:
    """They change no box, so that nothing more is calibrated; a model that knows other labels is not asked."""
    coarse, fine = models
    config = load_config(None, [])
    found = [one for one in candidates(config, fine, coarse) if one.config.fine.outside == "coarse"]
    assert [one.config.fine.grow for one in found] == [config.fine.grow, 0]
    other = load_model(model_folder(labels={"background": 0, "else": 1}, seed=5))
    assert not any("coarse labels" in one.name for one in candidates(config, fine, other))
    given = load_config(None, ["fine.outside=background"])
    assert not any("coarse labels" in one.name for one in candidates(given, fine, coarse))


def test_candidates__lower_threshold__is_one_that_was_measured(models: tuple[Model, Model]) -> None:
    """At most a quarter of the calibrated one, and none where there is no lower one."""
    _, fine = models
    lower = next(c for c in candidates(load_config(None, ["rois.threshold=0.5"]), fine) if "lower" in c.name)
    assert lower.config.rois.threshold in THRESHOLDS
    assert 0.1 < lower.config.rois.threshold <= 0.125
    assert not any("lower" in c.name for c in candidates(load_config(None, ["rois.threshold=0.002"]), fine))


def test_also_calibrated__what_acts_after_boxes_are_chosen__is_not_measured(models: tuple[Model, Model]) -> None:
    """Normalisation, growth, lower thresholds begin with the same boxes, or more; context and two-stage mode do not."""
    _, fine = models
    config = load_config(None, [])
    also = [
        (one.mode, one.canvas.context, one.rois.window, one.fine.tile_step) for one in also_calibrated(config, fine)
    ]
    window = FineStage.of(fine, config).plan.window
    assert also == [
        ("accelerated", (2, 4, 4), window, 0.5),
        ("two-stage", None, None, 0.75),  # with half steps it begins with the same boxes
    ]


def test_candidates__written_into_a_kit_and_read_again__are_the_same_settings(models: tuple[Model, Model]) -> None:
    """So that the promise, which knows settings by their fingerprint, holds for whichever is chosen."""
    coarse, fine = models
    for candidate in candidates(load_config(None, ["rois.margin=[1, 2, 2]"]), fine, coarse):
        written = candidate.config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        again = preset(Config.model_validate(written))
        assert settings_fingerprint(again) == settings_fingerprint(candidate.config), candidate.name
