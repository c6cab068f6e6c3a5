"""How sure one can be, against MAPIE, SciPy and simulated draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.regression import SplitConformalRegressor
from scipy.stats import beta
from sklearn.dummy import DummyRegressor

from coarse2fine.promise.conformal import cases_needed, common_limit, confidence_of, probability_of, rank_for

SHARES = st.sampled_from([0.5, 0.6, 0.75, 0.8, 0.9, 0.95, 0.99])


@pytest.mark.parametrize(
    ("cases", "probability"),
    [(10, 0.5), (10, 0.8), (10, 0.9), (25, 0.95), (40, 0.9), (99, 0.5), (99, 0.95), (100, 0.99)],
)
def test_common_limit__rank_of_a_probability__is_mapies_conformal_quantile(cases: int, probability: float) -> None:
    """MAPIE's interval around 0 for residuals of 1 - limit ends where the limit that we take lies."""
    limits = np.random.default_rng(cases).random(cases)
    nothing = np.zeros((cases, 1))
    zero = DummyRegressor(strategy="constant", constant=0.0).fit(nothing, limits)
    mapie = SplitConformalRegressor(zero, confidence_level=probability, prefit=True).conformalize(nothing, 1 - limits)
    _, interval = mapie.predict_interval(nothing[:1])
    assert common_limit(limits, rank_for(cases, probability)) == pytest.approx(1 - float(interval.max()))


@settings(deadline=None)
@given(st.integers(1, 80), SHARES, SHARES)
def test_rank_for__with_confidence__is_the_largest_that_beta_allows(
    cases: int, probability: float, confidence: float
) -> None:
    """The share of cases beyond the k-th lowest of n follows Beta(n + 1 - k, k)."""
    ranks = np.arange(1, cases + 1)
    held = beta.sf(probability, cases + 1 - ranks, ranks)
    assert [confidence_of(cases, rank, probability) for rank in range(1, cases + 1)] == pytest.approx(held, abs=1e-9)
    if (abs(held - confidence) > 1e-9).all():  # no rank lies right at the border
        assert rank_for(cases, probability, confidence) == (held >= confidence).sum()


@given(st.integers(1, 400), SHARES)
def test_rank_for__without_confidence__is_the_largest_that_is_supported(cases: int, probability: float) -> None:
    """One rank more would promise less; shares are decimal, 0.9 of 10 is 9."""
    rank, hundredths = rank_for(cases, probability), round(100 * probability)
    assert 100 * rank <= (100 - hundredths) * (cases + 1) < 100 * (rank + 1)


def test_cases_needed__asked_for_shares__are_the_known_numbers() -> None:
    """22 cases for 90 % at 90 %, 59 for 95 % at 95 % (Wilks); one less supports nothing."""
    for probability, confidence, needed in ((0.9, 0.9, 22), (0.95, 0.95, 59), (0.9, None, 9), (0.95, None, 19)):
        assert cases_needed(probability, confidence) == needed
        assert rank_for(needed, probability, confidence) == 1
        assert rank_for(needed - 1, probability, confidence) == 0
        assert probability_of(needed, 1, confidence) >= probability > probability_of(needed - 1, 1, confidence)
    with pytest.raises(ValueError, match="more than 10000"):
        cases_needed(0.99999)
    with pytest.raises(ValueError, match="rank 2"):
        probability_of(59, 2, 0.9)


@pytest.mark.parametrize(("cases", "probability"), [(9, 0.9), (14, 0.9), (30, 0.8), (22, 0.9)])
def test_common_limit__ten_thousand_draws__keep_what_is_promised(cases: int, probability: float) -> None:
    """New cases lie at or above the limit as often as promised, on average over draws, and no rank more would do."""
    random, draws = np.random.default_rng(0), 10_000
    rank = rank_for(cases, probability)
    limits, new = np.sort(random.normal(size=(draws, cases))), random.normal(size=draws)
    kept, less = ((new >= limits[:, k - 1]).mean() for k in (rank, rank + 1))
    error = 3 * np.sqrt(probability * (1 - probability) / draws)
    assert kept >= 1 - rank / (cases + 1) - error
    assert kept >= probability - error > less - 2 * error


@pytest.mark.parametrize(("cases", "confidence"), [(22, 0.9), (45, 0.5)])
def test_rank_for__ten_thousand_draws__confidence_is_that_of_the_draws(cases: int, confidence: float) -> None:
    """In so many draws of calibration cases the share of all cases that keep it is at least what was promised."""
    rank = rank_for(cases, 0.9, confidence)
    limits = np.sort(np.random.default_rng(1).random((10_000, cases)))  # uniform: a limit is the share below it
    for taken, enough in ((rank, True), (rank + 1, False)):
        kept = float((1 - limits[:, taken - 1] >= 0.9).mean())
        assert (kept >= confidence - 0.01) is enough
