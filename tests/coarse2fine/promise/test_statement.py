"""What a run is told of a kit's promise."""

from __future__ import annotations

import pytest

from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config, KnownConfig, PromiseConfig
from coarse2fine.promise.likeness import Likeness
from coarse2fine.promise.statement import promised, settings_fingerprint, state

CASE = Likeness((2.0, 1.0, 1.0), (0.0,), (9.0,), 5.0)
KNOWN = KnownConfig(
    spacing=((2.0, 2.0), (1.0, 1.0), (1.0, 1.0)), low=((0.0, 0.0),), high=((9.0, 9.0),), mass=(5.0, 5.0)
)


def with_promise(config: Config) -> Config:
    """Settings as a kit has them."""
    promise = PromiseConfig(
        miss=0.01,
        probability=0.9,
        cases=10,
        rank=1,
        foreground="labels",
        settings=settings_fingerprint(config),
        coarse_model="a",
        fine_model="b",
        known=KNOWN,
    )
    return config.model_copy(update={"promise": promise})


def test_promised__deadline__is_covered_unless_it_left_boxes_out() -> None:
    """Settings of a deadline change no box; boxes that were not reached are not what was promised of."""
    config = with_promise(Config())
    assign = config.assign.model_copy(update={"order": "mass"})
    timed = config.model_copy(update={"deadline": 30.0, "assign": assign})
    for given in (config, timed):
        kept = promised(given, CASE)
        assert kept is not None
        assert kept.covers
    cut = promised(timed, CASE, left=3)
    assert cut is not None
    assert not cut.covers
    assert cut.reasons == ("the deadline left out 3 of its boxes",)
    assert "the deadline left out 3 of its boxes" in cut.warnings[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "at most 1 % of its foreground lies outside of all boxes, with a probability of at least 90 % (split"),
        ({"miss": 0.025}, "at most 2.5 % of its foreground"),
        ({"foreground": "one-stage"}, "at most 1 % of its foreground that the fine model finds everywhere lies"),
        ({"confidence": 0.95}, "at least 90 % of them are such that of each at most 1 %"),
        ({"confidence": 0.95}, "with a confidence of 95 % (exact binomial, k = 1 of n = 10 calibration cases)"),
    ],
)
def test_state__any_promise__says_its_numbers_in_percent(changes: dict[str, object], words: str) -> None:
    """Of what, how much, and how sure that is."""
    promise = with_promise(Config()).promise
    assert promise is not None
    assert words in state(promise.model_copy(update=changes))


@pytest.mark.parametrize(
    ("same", "override"),
    [
        (True, "device=cpu"),
        (True, "blocks.cell=[8, 8, 8]"),
        (True, "assign.order=mass"),
        *((True, f"{stage}.{value}") for stage in ("coarse", "fine") for value in ("model=m", "folds=[1]")),
        *((True, f"{stage}.checkpoint=checkpoint_best.pth") for stage in ("coarse", "fine")),
        (False, "rois.threshold=0.4"),
        (False, "coarse.tile_step=0.7"),
        (False, "coarse.mirroring=true"),
        (False, "fine.grow=0"),
        (False, "assign.agent=all_children"),
        (False, "canvas.capacity=3"),
    ],
)
def test_settings_fingerprint__setting_changes__matters_if_boxes_depend_on_it(same: bool, override: str) -> None:
    """Models have fingerprints of their own."""
    changed, default = load_config(None, [override]), load_config(None)
    assert changed != default
    assert (settings_fingerprint(changed) == settings_fingerprint(default)) == same
    kept = promised(with_promise(default).model_copy(update={"deadline": None}), CASE)
    assert kept is not None
    assert kept.warnings == ()
    again = changed.model_copy(update={"promise": with_promise(default).promise})
    told = promised(again, CASE)
    assert told is not None
    assert told.covers == same
    assert ["settings were changed after calibration" in warning for warning in told.warnings] == [True] * (not same)


def test_state__cross_fitted__is_called_an_estimate() -> None:
    """What no theorem covers begins with that; what one covers names it."""
    promise = with_promise(Config()).promise
    assert promise is not None
    exact, estimate = state(promise), state(promise.model_copy(update={"crossed": True}))
    assert "split conformal" in exact
    assert "estimate" not in exact
    assert estimate.startswith("an estimate, not a guarantee")
    assert "split conformal" not in estimate
