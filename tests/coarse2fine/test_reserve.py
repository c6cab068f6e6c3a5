"""What comes after the last canvas, rehearsed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import blobs

from coarse2fine import reserve
from coarse2fine.io import Grid, Volume
from coarse2fine.reserve import SURE, closing_seconds
from coarse2fine.system.timing import RunClock


def volume_of(depth: int) -> Volume[Any]:
    image = blobs((depth, 12, 14))
    return Volume((image,), Grid(image.shape, (2.0, 1.0, 1.0)), "blobs")


@pytest.mark.parametrize("depth", [1, 2, 5, 16, 40])
def test_closing_seconds__some_for_a_file_and_some_for_each_slice__are_those_of_the_whole(
    depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts tell which is which; a margin is added."""
    time = 0.0

    def write(labels: np.ndarray, grid: Grid, path: Path) -> None:
        nonlocal time
        assert labels.shape == grid.shape
        time += 3.0 + 0.5 * len(labels)

    monkeypatch.setattr(reserve, "write_labels", write)
    seconds = closing_seconds(volume_of(depth), np.uint8, tmp_path / "a.nii.gz", RunClock(lambda: time))
    assert seconds == pytest.approx(SURE * (3.0 + 0.5 * depth))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha", "missing/a.nii.gz"])
def test_closing_seconds__real_files__leave_nothing_behind(name: str, tmp_path: Path) -> None:
    """The result's own file and folder are not touched."""
    (tmp_path / "a.nrrd").write_text("precious")
    assert 0 < closing_seconds(volume_of(9), np.uint8, tmp_path / name, RunClock()) < 60
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.nrrd": "precious"}
