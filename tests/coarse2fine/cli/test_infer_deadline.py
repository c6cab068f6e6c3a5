"""c2f-infer --deadline: the option, what it refuses, and whether it is kept."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs
from infer_runs import Models, run, save, use, voxels
from large_volumes import write_image

from coarse2fine.io import Grid

SETTINGS = ["--set", "rois.threshold=0.4"]


def test_main__deadline_far_away__labels_are_those_of_a_run_without(tmp_path: Path, models: Models) -> None:
    """In the file, too; the report says what was asked for and what was kept free."""
    source, report = save(tmp_path / "a.nii.gz"), tmp_path / "report.json"
    free, timed = tmp_path / "free.nii.gz", tmp_path / "timed.nii.gz"
    assert run("-i", source, "-o", free, *SETTINGS, *use(models)) == 0
    assert run("-i", source, "-o", timed, "--deadline", "1h", "--report", report, *SETTINGS, *use(models)) == 0
    np.testing.assert_array_equal(voxels(timed), voxels(free))
    written = json.loads(report.read_text())
    assert written["config"]["deadline"] == written["deadline"]["asked_s"] == 3600
    assert 0 < written["deadline"]["reserve_s"] < 60
    assert written["deadline"]["left"] == written["warnings"] == []
    assert {path.name for path in tmp_path.iterdir()} == {"a.nii.gz", "report.json", "free.nii.gz", "timed.nii.gz"}


def test_main__deadline_too_short__writes_nothing_and_names_one_that_works(
    tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the message says is typed, and the result is there."""
    source, target = save(tmp_path / "a.nii.gz"), tmp_path / "b.nii.gz"
    assert run("-i", source, "-o", target, "--deadline", "0.000001", *SETTINGS, *use(models)) == 1 or target.exists()
    said = capsys.readouterr().err
    if not target.exists():  # within the tolerance of half a second a fast machine is done
        option = shlex.split(said.rpartition("Allow at least")[2].partition(": ")[2].strip().rstrip("."))
        assert run("-i", source, "-o", target, *option, *SETTINGS, *use(models)) == 0
    assert target.exists()


@pytest.mark.parametrize("setting", [["--deadline", "3s"], ["--set", "deadline=3"]])
def test_main__deadline_for_a_store__is_refused_with_a_remedy(
    tmp_path: Path, models: Models, setting: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is made of it; without the deadline, a region of it is segmented."""
    store, target = write_image(tmp_path / "in.zarr", blobs((8, 24, 24))), tmp_path / "out.zarr"
    assert run("-i", store, "-o", target, *setting, *use(models)) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "is read by region" in said
    assert "--set deadline=null" in said
    assert {path.name for path in tmp_path.iterdir()} == {"in.zarr"}
    again = [*setting, "--set", "deadline=null"] if setting[0] == "--set" else []
    assert run("-i", store, "-o", target, *again, "--region", "0:8,0:16,0:16", *use(models)) == 0


@pytest.mark.parametrize(("text", "code"), [("5 parsecs", 1), ("0", 1), ("-1", 1)])
def test_main__deadline_that_is_no_time__is_refused(
    tmp_path: Path, models: Models, text: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message shows what would be one."""
    source = save(tmp_path / "a.nii.gz")
    assert run("-i", source, "-o", tmp_path / "b.nii.gz", f"--deadline={text}", *use(models)) == code
    assert "as 30 (seconds), 30s, 5m or 1h" in capsys.readouterr().err


@pytest.mark.alone
def test_main__deadline_shorter_than_the_run__is_kept(tmp_path: Path, models: Models) -> None:
    """On a real clock, with a tolerance for busy machines; several boxes are left."""
    image = np.tile(blobs((24, 48, 48)), (1, 2, 2))
    source, report = save_plain(tmp_path / "a.nii.gz", image), tmp_path / "report.json"
    options = ["-i", source, "--report", report, "--overwrite", *SETTINGS, "--set", "fine.grow=0", *use(models)]
    assert run("-o", tmp_path / "b.nii.gz", *options) == 0
    whole = json.loads(report.read_text())["timing_s"]
    asked = whole["total"] - 0.6 * whole["fine"]
    began = time.perf_counter()
    assert run("-o", tmp_path / "b.nii.gz", "--deadline", f"{asked}", *options) == 0
    written = json.loads(report.read_text())
    assert written["timing_s"]["total"] < 1.3 * asked + 2
    assert time.perf_counter() - began < 3 * asked + 10
    assert written["deadline"]["left"]


def save_plain(path: Path, image: np.ndarray) -> Path:
    """A volume on a grid of its own."""
    z, y, x = image.shape
    return save(path, image, Grid((z, y, x), (2.0, 1.0, 1.0), direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)))
