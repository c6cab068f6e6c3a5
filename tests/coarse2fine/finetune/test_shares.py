"""Subsets by patient: nested, seeded, with every class as soon as possible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coarse2fine.errors import ConfigError
from coarse2fine.finetune.shares import hold_out, missing_classes, take_share

PATIENTS = [f"p{number // 2}" for number in range(40)]  # 20 patients with two images each


def of(numbers: np.ndarray) -> set[str]:
    return {PATIENTS[number] for number in numbers}


@given(st.floats(0.1, 0.9), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_hold_out__any_share__parts_all_images_by_patient(share: float, seed: int) -> None:
    """Each image is in one part, each patient too, and the share is that of patients."""
    train, test = hold_out(PATIENTS, share, seed)
    assert sorted([*train, *test]) == list(range(40))
    assert not of(train) & of(test)
    assert len(of(test)) == pytest.approx(share * 20, abs=0.5)


@given(st.integers(0, 50), st.lists(st.floats(0.1, 1), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_take_share__several_shares__lie_in_each_other_and_have_whole_patients(seed: int, shares: list[float]) -> None:
    """The number of patients is the share's, rounded; all of them at 1."""
    targets = np.random.default_rng(seed).random((40, 2)) < 0.3
    before: set[int] = set()
    for share in sorted(shares):
        taken = set(take_share(PATIENTS, targets, share, seed).tolist())
        assert before <= taken
        assert len(taken) == 2 * np.floor(share * 20 + 0.5)
        assert len(taken) == 2 * len(of(np.array(sorted(taken))))
        before = taken


def test_take_share__rare_class__is_in_the_smallest_share_that_can_hold_all() -> None:
    """One patient of twenty has the second label; two patients are enough for both labels, whatever the seed."""
    targets = np.zeros((40, 2), int)
    targets[:20, 0], targets[7, 1] = 1, 1
    for seed in range(10):
        taken = take_share(PATIENTS, targets, 0.15, seed)
        assert missing_classes(targets[taken], ("a", "b")) == ()
    assert len({tuple(take_share(PATIENTS, targets, 0.3, seed)) for seed in range(10)}) > 1
    assert missing_classes(targets[20:], ("a", "b")) == ("a", "b")


def test_take_share__nobody_left__says_which_share_is_the_least() -> None:
    """With the share that is named there is a patient; shares out of range are refused."""
    targets = np.ones((40, 1))
    with pytest.raises(ConfigError, match=r"a share of 0\.01 of 20 patients leaves none") as error:
        take_share(PATIENTS, targets, 0.01, 0)
    assert len(take_share(PATIENTS, targets, float(error.value.remedy.split()[2]), 0)) == 2
    for share in (0, -1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="the share of labels is"):
            take_share(PATIENTS, targets, share, 0)
    assert len(take_share(PATIENTS, targets, 0.1, 0)) == 4


@pytest.mark.parametrize(("patients", "share"), [(PATIENTS, 0.0), (PATIENTS, 0.99), (["a", "a"], 0.2)])
def test_hold_out__part_without_patients__is_refused_with_a_share_that_works(patients: list[str], share: float) -> None:
    """The remedy names one, or more patients."""
    with pytest.raises(ConfigError, match=r"leaves nothing to (test on|learn from)") as error:
        hold_out(patients, share, 0)
    assert "--test-share 0.2" in error.value.remedy
    assert all(map(len, hold_out(PATIENTS if "or more" not in error.value.remedy else ["a", "b", "c"], 0.2, 0)))
