"""The study of proxy tasks: what it measures, and that it runs from pictures to rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import import_benchmark

pytestmark = pytest.mark.usefixtures("no_board")

proxy, studies = import_benchmark("pretraining.proxy"), import_benchmark("pretraining.studies")
MissingDataError = import_benchmark("common.registry").MissingDataError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve pictures of six patients."""
    (tmp_path / "radiographs").mkdir()
    images = np.random.default_rng(0).integers(0, 255, (12, 40, 40), np.uint8)
    patients = np.repeat([f"P{number}" for number in range(6)], 2)
    np.savez(tmp_path / "radiographs" / "nih1000_64.npz", images=images, patient=patients)
    return tmp_path


@pytest.mark.long
def test_study__two_steps__gives_rows_of_all_tasks_and_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task with its border covered and seen, chance at the same patients, and DiRA's discriminator."""
    monkeypatch.setattr(proxy, "BATCH", 2)
    monkeypatch.setattr(proxy, "DIRA_BATCH", 2)
    setup = studies.Setup([0], tmp_path / "work", 2, data)
    rows = [row for part in proxy.study(setup) for row in part]
    for task, measure in proxy.MEASURES.items():
        found = {row.method: row for row in rows if row.measure == measure}
        assert set(found) == {"chance", f"border covered, {task}", f"border seen, {task}"}
        assert {len(row.cases) for row in found.values()} == {2}  # patients
        assert all(row.value == pytest.approx(np.mean(row.cases)) for row in found.values())
    judged = {row.method: row.value for row in rows if row.measure == proxy.DISCRIMINATOR}
    assert set(judged) == set(proxy.DIRA)
    assert all(0 <= value <= 1 for value in judged.values())
    done = studies.Setup([0], tmp_path / "work", 2, data, tuple(rows))
    assert list(proxy.study(done)) == []
    assert not any((tmp_path / "work").iterdir())


def test_split__patients__are_on_one_side_and_answers_are_averaged_by_them(data: Path) -> None:
    """Held-out images are normalised like those that are learned from."""
    pictures = proxy.read_arrays(data / "radiographs" / "nih1000_64.npz")
    split = proxy.Split.of(pictures)
    assert len(split.patients) == 4
    assert len(split.source.pixels) == 8
    kept = {pixels.tobytes() for pixels in split.source.pixels}
    left = [
        row.patient
        for pixels, row in zip(pictures.pixels, pictures.table.rows, strict=True)
        if pixels.tobytes() not in kept
    ]
    assert sorted(left) == sorted(split.patients)
    right = np.array([[True, False, False, False], [True, True, False, True]])
    assert split.by_patient(right) == (0.75, 0.25)


@pytest.mark.parametrize("gallery", [1, 5, 40])
def test_found_again__features_without_meaning__are_found_by_chance(
    gallery: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of as many as the gallery holds; features that are alike are always found."""
    monkeypatch.setattr(proxy, "GALLERY", gallery)
    generator, torch_generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    first, second = (torch.randn(2000, 8, generator=torch_generator) for _ in range(2))
    share = 1 / gallery
    error = 4 * np.sqrt(share * (1 - share) / 2000) + 1e-9
    assert proxy.found_again(first, second, generator).mean() == pytest.approx(share, abs=error)
    assert proxy.found_again(first, 3 * first, generator).all()


def test_study__no_data__is_said(tmp_path: Path) -> None:
    """With the option that names its folder."""
    with pytest.raises(MissingDataError, match=r"nih1000_64\.npz does not exist") as raised:
        next(proxy.study(studies.Setup([0], tmp_path, 2, tmp_path)))
    assert "--data" in raised.value.remedy
