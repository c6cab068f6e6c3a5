"""Stores with damage are read as they are or refused with one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from damaged_stores import read_damaged


def faults(count: int, folder: Path, seed: int) -> list[str]:
    results = read_damaged(count, folder, seed)
    assert {outcome.kind for _, outcome in results} >= {"read", "refused"}
    return [f"{path}: {outcome}" for path, outcome in results if outcome.kind not in ("read", "refused")]


@pytest.mark.long
def test_open_store__damaged__is_read_or_refused(tmp_path: Path) -> None:
    """No traceback, no crash, no endless reading, in a few of all kinds of stores and damage."""
    assert not faults(90, tmp_path, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 5))
def test_open_store__damaged_in_many_ways__is_read_or_refused(tmp_path: Path, seed: int) -> None:
    assert not faults(500, tmp_path, seed)
