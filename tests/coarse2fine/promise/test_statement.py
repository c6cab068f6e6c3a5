"""What a run is told of a kit's promise."""

from __future__ import annotations

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


def test_state__cross_fitted__is_called_an_estimate() -> None:
    """What no theorem covers begins with that; what one covers names it."""
    promise = with_promise(Config()).promise
    assert promise is not None
    exact, estimate = state(promise), state(promise.model_copy(update={"crossed": True}))
    assert "split conformal" in exact
    assert "estimate" not in exact
    assert estimate.startswith("an estimate, not a guarantee")
    assert "split conformal" not in estimate
