"""Who is trained on which cases."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coarse2fine.calibration.calibrate import Asked, check_asked
from coarse2fine.calibration.division import KIT, divide


@given(st.integers(3, 60), st.sampled_from([None, 0.75, 0.9]), st.integers(0, 3))
def test_divide__any_number__no_model_looks_at_what_it_was_trained_on(
    count: int, probability: float | None, seed: int
) -> None:
    """Each is trained on at least two cases, what is asked for stays possible, and one model is the kit's."""
    cases, asked = [f"case{index}" for index in range(count)], Asked(probability=probability)
    if probability is not None and count < 9:
        return

    division = divide(cases, asked, seed)

    for case, model in division.looks.items():
        assert case not in division.training[model]
    assert min(map(len, division.training.values())) >= 2
    assert set(division.looks) | {case for group in division.training.values() for case in group} == set(cases)
    assert division.crossed == (len(division.training) > 1)
    assert check_asked(asked, len(division.looks)) >= 1
    assert KIT in division.training


def test_divide__many_and_few_cases__are_held_out_or_crossed() -> None:
    """With enough cases the promise is exact: half of them, or what is asked for, is not trained on."""
    cases = [f"case{index}" for index in range(40)]
    assert len(divide(cases, Asked()).looks) == 20
    assert len(divide(cases, Asked(probability=0.9, confidence=0.9)).looks) == 22
    assert len(divide(cases[:14], Asked()).looks) == 9
    assert set(divide(cases[:11], Asked()).looks) == set(cases[:11])
    assert divide(cases, Asked(), 1).looks.keys() != divide(cases, Asked(), 2).looks.keys()
