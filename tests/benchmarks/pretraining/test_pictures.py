"""Studies of radiographs run end to end, on pictures that are made up, in a few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import import_benchmark
from picture_tables import save_set

pytestmark = pytest.mark.usefixtures("no_board")

radiographs, lungs = (import_benchmark(f"pretraining.{name}") for name in ("radiographs", "lungs"))
Setup, gains = import_benchmark("pretraining.studies").Setup, import_benchmark("pretraining.rows").gains


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Both sets of radiographs, made up."""
    folder = tmp_path / "data" / "radiographs"
    save_set(folder, patients=8)
    (folder / "masks").rename(folder / "lung_masks")
    (folder / "lung_masks" / "p00.png").unlink()
    generator, abnormal = np.random.default_rng(0), np.arange(24, dtype=np.uint8) % 2
    images = generator.integers(0, 200, (24, 64, 64)) + 50 * abnormal[:, None, None]
    patients = np.array([f"{number // 2}" for number in range(24)])
    np.savez(folder / "nih1000_64.npz", images=images.astype(np.uint8), abnormal=abnormal, patient=patients)
    return tmp_path / "data"


@pytest.mark.long
@pytest.mark.parametrize(("study", "cases"), [(radiographs, 4), (lungs, 4)], ids=["radiographs", "lungs"])
def test_study__a_few_steps__gives_a_row_of_each_arm_and_a_gain_of_all_but_scratch(
    study: object, cases: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out cases are the same with each seed, and what was measured is not measured again."""
    monkeypatch.setattr(study, "SHARES", {"half": 0.5})
    arms = dict(list(study.ARMS.items())[:2])  # type: ignore[attr-defined]
    monkeypatch.setattr(study, "ARMS", arms)
    setup = Setup((0, 1), tmp_path / "work", 1, data)
    found = [row for rows in study.study(setup) for row in rows]  # type: ignore[attr-defined]
    assert [(row.method, row.seed) for row in found] == [(arm, seed) for seed in (0, 1) for arm in arms]
    assert {len(row.cases) for row in found} == {cases}
    assert all(0 <= row.value <= 1 for row in found)
    (gain,) = gains(found, study.BASELINES).values()  # type: ignore[attr-defined]
    assert gain.interval is not None
    again = Setup((0, 1), tmp_path / "work", 1, data, tuple(found[:-1]))
    ((last,),) = study.study(again)  # type: ignore[attr-defined]
    assert (last.method, last.seed) == (found[-1].method, 1)
    assert last.value == pytest.approx(found[-1].value, abs=1e-4)
