"""Differences over cases: their intervals, and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from benchmark_rows import record, write
from conftest import benchmark_module

paired = benchmark_module("page.paired")
page = benchmark_module("results_page")

REFERENCE = [0.80, 0.82, 0.78, 0.81, 0.79, 0.83, 0.80, 0.77, 0.84]


def test_mean_interval__many_cases__is_that_of_the_normal_distribution(paired: ModuleType) -> None:
    """The mean of 400 draws, give and take 1.96 standard errors; the same at each call."""
    values = np.random.default_rng(3).normal(0.01, 0.05, 400)
    low, high = paired.mean_interval(values)
    error = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=4e-4)
    assert paired.mean_interval(values) == (low, high)


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ([0.001] * 9, True),  # hardly any, surely
        ([-0.02] * 9, True),  # better
        ([0.006] * 9, False),  # too much, surely
        ([0.03, -0.03] * 4 + [0.0], False),  # none in the mean, but nobody knows
    ],
)
def test_compare_cases__a_loss__counts_with_its_interval(paired: ModuleType, losses: list[float], wanted: bool) -> None:
    """Cases are compared one by one: how much they differ among each other does not matter."""
    scores = np.subtract(REFERENCE, losses)
    found = paired.compare_cases(list(scores), REFERENCE)
    assert found.difference == pytest.approx(-np.mean(losses))
    assert found.deviation == pytest.approx(np.std(scores, ddof=1))
    assert found.non_inferior is wanted


def test_compare_cases__one_case_or_no_reference__says_nothing_of_others(paired: ModuleType) -> None:
    """A difference, but no interval; without a reference neither."""
    found = paired.compare_cases([0.7], [0.8])
    assert (found.difference, found.interval, found.non_inferior) == (pytest.approx(-0.1), None, None)
    assert paired.compare_cases([0.7, 0.9], None).difference is None


def rows_of(row: str, scores: list[float]) -> list[dict[str, object]]:
    """One row on many cases, with two labels."""
    return [
        record(row, 2.0, score, case=f"case{at}", dice_by_label={"left": score + 0.1, "right": score - 0.1})
        for at, score in enumerate(scores)
    ]


def test_main__several_cases__page_and_summary_tell_what_is_no_worse(page: ModuleType, tmp_path: Path) -> None:
    """Case by case beside one-stage mode, and each label; of a single case there is no such table."""
    sure, unsure = ([score - 0.001 for score in REFERENCE], [*REFERENCE[:-1], REFERENCE[-1] - 0.3])
    rows = [*rows_of("one_stage", REFERENCE), *rows_of("accelerated", sure), *rows_of("two_stage", unsure)]
    write(tmp_path, "ms", *rows_of("nnunet", REFERENCE), *rows)
    write(
        tmp_path, "lung", record("nnunet", 80.0, 0.6), record("one_stage", 80.0, 0.6), record("accelerated", 1.0, 0.6)
    )
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results: begin -->\n<!-- results: end -->")
    options = ["--results", str(tmp_path), "--page", str(tmp_path / "PAGE.md"), "--readme", str(readme)]
    assert page.main(options) == 0
    text = (tmp_path / "PAGE.md").read_text()
    assert "| accelerated | 0.803 | 0.023 | -0.0010 | -0.0010 to -0.0010 | yes |" in text
    assert "| two_stage | 0.771 |" in text
    assert text.count("less one-stage |") == 1  # ms has several cases, lung has one
    assert "| left | 0.904 | 0.904 | 0.903 |" in text
    summary = {row["row"]: row for row in json.loads((tmp_path / "ms" / "summary.json").read_text())}
    assert summary["accelerated"]["cases"] == 9
    assert summary["accelerated"]["non_inferior"] is True
    assert summary["two_stage"]["non_inferior"] is False
    assert summary["two_stage"]["difference_interval"][0] < -0.05
    assert summary["one_stage"]["dice_by_label"]["right"] == pytest.approx(np.mean(REFERENCE) - 0.1)
    assert json.loads((tmp_path / "lung" / "summary.json").read_text())[0]["difference_interval"] is None
    (tmp_path / "ms" / "summary.json").write_text("[]")
    assert page.main([*options, "--check"]) == 1
