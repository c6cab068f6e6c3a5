"""A study whose seeds are trained in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import import_benchmark

from coarse2fine.errors import C2FError

results, radiographs = (import_benchmark(f"pretraining.{name}") for name in ("results", "radiographs"))
Setup = import_benchmark("pretraining.studies").Setup
MissingDataError = import_benchmark("common.registry").MissingDataError

pytestmark = pytest.mark.long  # processes that import PyTorch
OF_ONE = len(radiographs.ARMS) * len(radiographs.SHARES)  # rows of one seed


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Three seeds of the study of radiographs, made up, a step for each training."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process, so that sums are rounded alike
    (tmp_path / "radiographs").mkdir()
    generator, abnormal = np.random.default_rng(0), np.arange(240, dtype=np.uint8) % 2
    images = generator.integers(0, 200, (240, 64, 64)) + 50 * abnormal[:, None, None]
    patients = np.array([f"{number // 2}" for number in range(240)])
    path = tmp_path / "radiographs" / "nih1000_64.npz"
    np.savez(path, images=images.astype(np.uint8), abnormal=abnormal, patient=patients)
    return Setup(range(3), tmp_path / "work", 1, tmp_path)


def values(rows: Any) -> dict[tuple[str, str, int], float]:
    """What was measured, by method, labels and seed."""
    return {(row.method, row.labels, row.seed): row.value for row in rows}


def test_run__two_jobs_that_are_cut_off__give_the_rows_of_one(setup: Any, tmp_path: Path) -> None:
    """Two seeds at once and then the third; no process goes on after an interrupt, and what is missing is added."""
    seeds = []

    def told(row: Any) -> None:
        seeds.append(row.seed)
        if len(seeds) == 2 * OF_ONE + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.run("radiographs", tmp_path / "a.json", setup, "command", jobs=2, told=told)
    assert set(seeds[:OF_ONE]) == {0, 1}
    assert set(seeds) == {0, 1, 2}
    assert multiprocessing.active_children() == []
    assert len(results.load(tmp_path / "a.json").rows) == len(seeds)
    spread = results.run("radiographs", tmp_path / "a.json", setup, "command")
    alone = results.run("radiographs", tmp_path / "b.json", setup, "command")
    assert len(spread.rows) == len(alone.rows) == 3 * OF_ONE
    assert values(spread.rows) == pytest.approx(values(alone.rows), abs=1e-6)


def test_run__a_process_that_fails_or_is_killed__is_one_line(setup: Any, tmp_path: Path) -> None:
    """An error is the command's, and nothing waits for a process that is gone; rows so far are kept."""

    def kill(row: Any) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(C2FError, match=r"a process of radiographs ended by signal 9\n.*fewer --jobs"):
        results.run("radiographs", tmp_path / "a.json", setup, "command", jobs=2, told=kill)
    assert results.load(tmp_path / "a.json").rows
    (tmp_path / "radiographs" / "nih1000_64.npz").unlink()
    with pytest.raises(C2FError, match="nih1000_64"):
        results.run("radiographs", tmp_path / "b.json", setup, "command", jobs=2)
