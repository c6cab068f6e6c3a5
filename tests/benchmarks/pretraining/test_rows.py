"""Rows of studies: gains, and intervals that hold over seeds and cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import import_benchmark
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import roc_auc_score

module = import_benchmark("pretraining.rows")
Row, gains, interval_of, pseudo_values = module.Row, module.gains, module.interval_of, module.pseudo_values
from_json, to_json = module.from_json, module.to_json

BASELINES = {"Dice": ("scratch", "scratch, slow")}


def row(method: str, seed: int, *cases: float, labels: str = "2", measure: str = "Dice", less: bool = False) -> Any:
    """A row whose value is the mean of its cases."""
    return Row(method, labels, seed, measure, float(np.mean(cases)), cases, less)


@pytest.mark.parametrize("cases", [1, 5])
def test_interval_of__seeds_that_differ_more_than_cases__is_the_paired_t_interval(cases: int) -> None:
    """Where only seeds matter the interval is Student's, as SciPy has it."""
    ours, theirs = np.array([0.61, 0.7, 0.66, 0.71]), np.array([0.6, 0.65, 0.68, 0.6])
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    found = interval_of(np.repeat((ours - theirs)[:, None], cases, 1))
    assert found == pytest.approx((expected.low, expected.high))


def test_interval_of__cases_that_differ_and_seeds_that_do_not__is_the_interval_over_cases() -> None:
    """Where training gives the same each time what is left is the chance of the cases."""
    of_cases = np.random.default_rng(0).normal(0.02, 0.1, 12)
    found = interval_of(np.repeat(of_cases[None], 3, 0) + np.array([[1e-9], [0], [-1e-9]]))
    expected = stats.ttest_1samp(of_cases, 0).confidence_interval(0.95)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-6)


@pytest.mark.parametrize("spread", [(0.05, 0.0, 0.02), (0.0, 0.05, 0.02), (0.02, 0.05, 0.02)])
def test_interval_of__many_studies_with_a_known_gain__covers_it_as_often_as_it_says(
    spread: tuple[float, float, float],
) -> None:
    """Whether seeds, cases or both vary: at least 93 of 100 of the intervals hold the true gain."""
    generator, hits, gain = np.random.default_rng(1), 0, 0.03
    for _ in range(1000):
        seeds, cases, rest = (generator.normal(0, size, shape) for size, shape in zip(spread, [(3, 1), 8, (3, 8)]))  # noqa: B905
        low, high = interval_of(gain + seeds + cases + rest)
        hits += low <= gain <= high
    assert hits >= 930


@given(arrays(float, st.tuples(st.integers(2, 5), st.integers(1, 6)), elements=st.floats(-1, 1)))
def test_interval_of__any_differences__holds_their_mean_and_turns_with_the_sign(differences: np.ndarray) -> None:
    """The interval lies around the mean, and is mirrored if baseline and method change places."""
    low, high = interval_of(differences)
    assert low <= differences.mean() + 1e-12
    assert high >= differences.mean() - 1e-12
    assert interval_of(-differences) == pytest.approx((-high, -low))


def test_interval_of__one_seed__says_nothing() -> None:
    """Of a single training nobody knows how much seeds matter."""
    assert interval_of(np.ones((1, 20))) is None


def test_gains__two_baselines__the_better_one_counts() -> None:
    """A method is compared with the best baseline, case by case and seed by seed."""
    rows = [row("scratch", seed, 0.5, 0.7) for seed in (0, 1)] + [
        row("scratch, slow", seed, 0.1, 0.2) for seed in (0, 1)
    ]
    rows += [row("mae", 0, 0.6, 0.8), row("mae", 1, 0.7, 0.9)]
    (key, gain), *rest = gains(rows, BASELINES).items()
    assert not rest
    assert key == ("Dice", "2", "mae")
    assert (gain.baseline, gain.mean) == ("scratch", pytest.approx(0.15))
    assert gain.by_seed == pytest.approx({0: 0.1, 1: 0.2})
    expected = stats.ttest_rel([0.7, 0.8], [0.6, 0.6]).confidence_interval(0.95)
    assert gain.interval == pytest.approx((expected.low, expected.high))


def test_gains__a_measure_of_which_less_is_better__are_above_0_for_less() -> None:
    """A lower loss is a gain."""
    rows = [
        row(method, seed, value, measure="loss", less=True)
        for method, value in (("a", 1.0), ("b", 0.4))
        for seed in (0, 1)
    ]
    assert gains(rows, {"loss": ("a",)})["loss", "2", "b"].mean == pytest.approx(0.6)


def test_gains__other_cases_than_the_baseline__are_refused() -> None:
    """Cases are paired, so there must be as many."""
    rows = [row("scratch", seed, 0.5, 0.7) for seed in (0, 1)] + [row("mae", seed, 0.5) for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"mae and scratch have different numbers of cases: \[1, 2\]"):
        gains(rows, BASELINES)


def test_gains__no_baseline_at_these_labels__are_none() -> None:
    """Nothing is compared across labels or measures."""
    rows = [row("scratch", 0, 0.5, labels="2"), row("mae", 0, 0.5, labels="5"), row("mae", 0, 0.5, measure="IoU")]
    assert gains(rows, BASELINES) == {}


def test_to_json__rows_with_and_without_baseline__come_back_and_hold_the_gain() -> None:
    """Files hold what the issue of gains needs, and rows are read back as they were."""
    rows = [
        row("scratch", 0, 0.5, 0.7),
        row("mae", 0, 0.6, 0.8),
        row("scratch", 1, 0.4),
        row("mae", 1, 0.5, labels="5"),
    ]
    lines = to_json(rows[:2], BASELINES)
    assert from_json(to_json(rows[:2], BASELINES)) == rows[:2]
    assert lines[0] | {"value": 0, "cases": 0} == {
        **{"method": "scratch", "labels": "2", "seed": 0, "measure": "Dice", "value": 0, "cases": 0},
        **{"against": None, "baseline": None, "gain": None, "gain_interval": None, "less_is_better": False},
    }
    assert lines[1]["against"] == "scratch"
    assert (lines[1]["baseline"], lines[1]["gain"]) == pytest.approx((0.6, 0.1))
    assert lines[1]["gain_interval"] is None


def test_pseudo_values__of_a_mean_and_of_an_area__are_the_cases_and_the_area() -> None:
    """Of a mean they are the cases themselves; of an area under a curve their mean is about the area."""
    values = np.array([0.2, 0.5, 0.9, 0.4])
    assert pseudo_values(lambda kept: float(values[kept].mean()), list("abcd")) == pytest.approx(values)
    generator = np.random.default_rng(0)
    truth, patients = generator.integers(0, 2, 120), generator.integers(0, 40, 120)
    scores = truth + generator.normal(0, 1, 120)
    found = pseudo_values(lambda kept: float(roc_auc_score(truth[kept], scores[kept])), patients)
    assert len(found) == len(np.unique(patients))
    assert np.mean(found) == pytest.approx(roc_auc_score(truth, scores), abs=0.01)
