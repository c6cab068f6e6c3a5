"""Measures against scikit-learn, and intervals against what repeated sampling shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from coarse2fine.finetune.measures import auroc, dice, mean_auroc, with_interval


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_auroc__scores_with_ties__is_that_of_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    """And not a number where only one kind of example is there."""
    scores, labels = map(np.array, zip(*pairs, strict=True))
    if labels.all() or not labels.any():
        assert np.isnan(auroc(scores, labels))
    else:
        assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_mean_auroc__several_labels__is_the_macro_average_of_those_that_vary() -> None:
    """A label that all images have is left out."""
    generator = np.random.default_rng(0)
    scores, labels = generator.random((40, 3)), generator.random((40, 3)) < 0.4
    assert mean_auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores, average="macro"))
    labels[:, 1] = True
    assert mean_auroc(scores, labels) == pytest.approx(roc_auc_score(labels[:, ::2], scores[:, ::2], average="macro"))


def test_dice__random_labels__is_the_f1_score_of_each_class() -> None:
    """Not a number for a class that is in neither."""
    generator = np.random.default_rng(1)
    found, reference = generator.integers(0, 4, (2, 5, 6, 7))
    expected = f1_score(reference.ravel(), found.ravel(), labels=[1, 2, 3], average=None)
    assert dice(found, reference, 5) == pytest.approx([*expected, np.nan], nan_ok=True)


def test_with_interval__examples_of_the_same_patients__is_wider_than_if_they_were_independent() -> None:
    """The mean of n independent numbers has an interval of 1.96 standard errors; doubled images add nothing."""
    values = np.random.default_rng(2).normal(size=200)
    alone = with_interval(lambda rows: float(values[rows].mean()), [str(number) for number in range(200)])
    assert np.diff(alone.interval)[0] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.15)
    assert alone.interval[0] < alone.value < alone.interval[1]
    twice = np.repeat(values, 2)
    together = with_interval(lambda rows: float(twice[rows].mean()), [str(number // 2) for number in range(400)])
    assert np.diff(together.interval)[0] == pytest.approx(np.diff(alone.interval)[0], rel=0.15)
