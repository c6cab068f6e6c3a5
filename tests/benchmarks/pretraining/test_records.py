"""The study of records, end to end on generated radiographs."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import import_benchmark
from picture_tables import save_picture, write_table

records, studies = import_benchmark("pretraining.records"), import_benchmark("pretraining.studies")

PATIENTS = 36


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Radiographs of a few patients, some with two, some without notes, and an archive of reports."""
    generator = np.random.default_rng(0)
    folder, rows = tmp_path / "data/radiographs", []
    for patient in range(PATIENTS):
        ill = bool(generator.random() < 0.5)
        for picture in range(1 + patient % 2):
            name = f"{patient}_{picture}.png"
            save_picture(folder / "images" / name, generator.integers(0, 200, (64, 64)) + 50 * ill)
            note = f"patient {patient}, lungs {'with opacities' if ill else 'clear'}" if patient % 6 else ""
            rows.append((name, f"p{patient}", "COVID-19" if ill else "No Finding", note))
    write_table(folder / "table.csv", ("file", "patient", "finding", "notes"), rows)
    with tarfile.open(folder / "nlmcxr_reports.tgz", "w:gz") as file:
        about = tarfile.TarInfo("1.txt")
        about.size = len(content := b"clear lungs without opacities")
        file.addfile(about, io.BytesIO(content))
    return tmp_path / "data"


@pytest.mark.long
def test_study__a_step_of_each__measures_all_on_the_same_patients_and_goes_on(data: Path, tmp_path: Path) -> None:
    """Every row has a value for each patient who is held out, and nothing is trained twice."""
    held = records.load(data / "radiographs")
    told = len(held.cases())
    patients = len(set(np.array(held.table.patients)[held.held]))
    assert 0 < told < patients == PATIENTS // 3
    assert not set(np.array(held.table.patients)[held.train]) & set(np.array(held.table.patients)[held.held])
    (tmp_path / "work").mkdir()
    setup = studies.Setup([0], tmp_path / "work", 1, data)
    rows = [row for found in records.study(setup) for row in found]
    found = {(row.measure, row.method): row for row in rows}
    assert set(found) == {
        (records.WORDS, records.RIGHT),
        (records.WORDS, records.SHUFFLED),
        (records.FOUND, "ConVIRT"),
        (records.FOUND, "REFERS"),
        (records.FOUND, records.CHANCE),
        (records.PROBE, records.UNTRAINED),
        (records.PROBE, records.PLAIN),
        (records.PROBE, records.DEEP),
    }
    assert {len(row.cases) for row in rows if row.measure != records.PROBE} == {told}
    assert {len(row.cases) for row in rows if row.measure == records.PROBE} == {patients}
    assert found[records.FOUND, records.CHANCE].value == min(1, 10 / told)
    for row in rows:
        assert row.value == pytest.approx(np.mean(row.cases), abs=0.15 if row.measure == records.PROBE else 1e-6)
    half = [row for row in rows if row.method != "REFERS"]
    again = [row for found in records.study(studies.Setup([0], tmp_path / "work", 1, data, half)) for row in found]
    assert [row.method for row in again] == ["REFERS"]


def test_others__any_number__are_all_others_once() -> None:
    """Nobody keeps the own image."""
    for count in (2, 3, 50):
        others = records._others(count, np.random.default_rng(count))
        assert sorted(others) == list(range(count))
        assert (others != np.arange(count)).all()
