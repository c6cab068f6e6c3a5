"""How much settings lose: bounds against SciPy's test, corrections against all subsets, and simulated cases."""

from __future__ import annotations

from itertools import combinations
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coarse2fine.calibration.bound import upper_bound, within

losses = st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=6)


@given(losses, st.sampled_from([0.8, 0.95, 0.99]))
def test_upper_bound__any_losses__is_scipys(values: list[float], confidence: float) -> None:
    """The one-sided confidence interval of a paired t test."""
    if np.std(values) < 1e-9:
        assert upper_bound(values, confidence) == pytest.approx(np.mean(values), abs=1e-6)
        return
    expected = stats.ttest_1samp(values, 0, alternative="less").confidence_interval(confidence).high
    assert upper_bound(values, confidence) == pytest.approx(expected)


def test_upper_bound__fewer_than_three_cases__bounds_nothing() -> None:
    """Nor is anything within any loss."""
    assert upper_bound([0.0, 0.0], 0.95) == inf
    assert within({"a": [0.0, 0.0], "b": []}, 1.0, 0.95) == set()


def test_within__one_settings__are_those_whose_bound_is() -> None:
    """With nothing to choose from, nothing is corrected; losses that are all alike are what they are."""
    values = [0.001, 0.003, 0.002, 0.004]
    bound = upper_bound(values, 0.95)
    assert within({"a": values}, bound + 1e-9, 0.95) == {"a"}
    assert within({"a": values}, bound - 1e-9, 0.95) == set()
    assert within({"a": [0.0, 0.0, 0.0]}, 0.0, 0.95) == {"a"}
    assert within({"a": [0.1, 0.1, 0.1]}, 0.05, 0.95) == set()


@given(st.lists(losses, min_size=1, max_size=4), st.floats(-0.2, 0.4))
def test_within__several_settings__are_those_that_every_subset_rejects(rows: list[list[float]], most: float) -> None:
    """Holm's procedure is closed testing: a hypothesis falls if each set of hypotheses that holds it does."""
    named = {str(index): row for index, row in enumerate(rows)}
    confidence = 0.9
    expected = {
        name
        for name in named
        if all(
            any(upper_bound(named[other], 1 - (1 - confidence) / len(some)) <= most for other in some)
            for size in range(1, len(named) + 1)
            for some in combinations(named, size)
            if name in some
        )
    }
    edges = [
        abs(upper_bound(row, 1 - (1 - confidence) / size) - most) for row in rows for size in range(1, len(rows) + 1)
    ]
    if min(edges) > 1e-9:  # what lies on the edge is decided by rounding
        assert within(named, most, confidence) == expected


@pytest.mark.parametrize("cases", [4, 14])
def test_within__six_settings_lose_just_too_much__one_seems_good_in_five_per_cent(cases: int) -> None:
    """Simulated cases, some harder for all settings than others: the confidence holds for the choice, not for each."""
    random = np.random.default_rng(0)
    draws, wrong, wrong_alone = 1500, 0, 0
    for _ in range(draws):
        hard = random.normal(0, 0.01, cases)
        rows = {str(index): (0.005 + hard + random.normal(0, 0.01, cases)).tolist() for index in range(6)}
        wrong += bool(within(rows, 0.005, 0.95))
        wrong_alone += upper_bound(rows["0"], 0.95) <= 0.005
    assert wrong / draws < 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    assert wrong_alone / draws == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / draws))
