"""The table at the top of the page of results."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from benchmark_rows import record, write
from conftest import benchmark_module

headline = benchmark_module("page.headline")
loading = benchmark_module("page.loading")


def test_headline__many_cases_first__and_poor_models_only_for_speed(
    headline: ModuleType, loading: ModuleType, tmp_path: Path
) -> None:
    """Where nnU-Net itself finds next to nothing, a quality beside it would look like a gain."""
    write(tmp_path, "em", record("nnunet", 8.0, 0.7), record("accelerated", 2.0, 0.7))
    write(tmp_path, "lung", record("nnunet", 80.0, 0.02), record("accelerated", 1.0, 0.87))
    cases = [record(row, 4.0, 0.6, case=case) for row in ("nnunet", "one_stage", "accelerated") for case in "abc"]
    write(tmp_path, "ms", *cases)
    table, speed = headline.headline(loading.load_results(tmp_path))
    lines = table.splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["3", "1"]
    assert "+0.000 (+0.000 to +0.000)" in lines[0]
    assert "0.87" not in table
    assert speed.startswith("For speed only, as nnU-Net's own quality with these fine models is below 0.5")
    assert "80.0x" in speed


def test_headline__nothing_to_compare__says_so(headline: ModuleType, loading: ModuleType, tmp_path: Path) -> None:
    """Experiments alone make no table."""
    write(tmp_path, "em", record("nnunet", 8.0, 0.7))
    assert list(headline.headline(loading.load_results(tmp_path))) == [
        "No data set has both rows, nnU-Net and accelerated, yet."
    ]
