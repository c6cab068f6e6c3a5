"""c2f-infer with a DICOM series."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import blobs
from dicom_series import change, write_series
from infer_runs import OBLIQUE, SHAPE, Models, run, save, snapshot, use, voxels

from coarse2fine.pipeline import Pipeline


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_series(tmp_path / "s", blobs(SHAPE), OBLIQUE, RescaleIntercept="0")
    return tmp_path / "s"


def as_nifti(source: Path, path: Path) -> Path:
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(source))
    sitk.WriteImage(sitk.ReadImage(names), str(path))
    return path


def test_main__series__gives_the_labels_of_its_nifti_file(
    tmp_path: Path, source: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """As an image file, from the folder or a zip file; nothing is said, and the table has its place."""
    nifti = as_nifti(source, tmp_path / "n.nii.gz")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for file in source.iterdir():
            archive.write(file, file.name)
    capfd.readouterr()
    for name in (source, nifti, tmp_path / "z.zip"):
        target, table = tmp_path / f"{name.name}_labels.nii.gz", tmp_path / f"{name.name}.csv"
        assert run("-i", name, "-o", target, "--table", table, *use(models)) == 0
    assert capfd.readouterr() == ("", "")
    expected = sitk.ReadImage(str(tmp_path / "n.nii.gz_labels.nii.gz"))
    assert np.count_nonzero(sitk.GetArrayFromImage(expected))
    for name in ("s", "z.zip"):
        found = sitk.ReadImage(str(tmp_path / f"{name}_labels.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
        np.testing.assert_allclose(found.GetOrigin(), expected.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(found.GetDirection(), expected.GetDirection(), atol=1e-6)
        np.testing.assert_allclose(found.GetSpacing(), expected.GetSpacing(), rtol=1e-6)
    (row,) = csv.DictReader((tmp_path / "s.csv").open(encoding="utf-8", newline=""))
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(expected)
    np.testing.assert_allclose([float(row[f"centroid_{axis}_mm"]) for axis in "xyz"], shapes.GetCentroid(1), atol=1e-3)


def test_main__segmentation__has_the_labels(
    tmp_path: Path, source: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """Frames are those slices of the label file that have voxels, whatever their order."""
    capfd.readouterr()
    assert run("-i", source, "-o", tmp_path / "seg.dcm", *use(models)) == 0
    assert capfd.readouterr() == ("", "")
    assert run("-i", source, "-o", tmp_path / "out", *use(models)) == 0
    labels = voxels(tmp_path / "out" / "s.nii.gz")
    content = pydicom.dcmread(tmp_path / "seg.dcm")
    assert [one.SegmentLabel for one in content.SegmentSequence] == ["lesion"]
    frames = sorted(frame.tobytes() for frame in content.pixel_array)
    assert frames == sorted(slice_.tobytes() for slice_ in labels if slice_.any())


BAD: dict[str, tuple[list[str], str, list[str]]] = {
    "segmentation of a file": (
        ["-i", "a.nii.gz", "-o", "seg.dcm"],
        "refers to the images of a DICOM series, and a.nii.gz is none",
        ["-i", "s", "-o", "seg.dcm"],
    ),
    "among the images": (
        ["-i", "s", "-o", "s/o.nii.gz"],
        "among the images of the series",
        ["-i", "s", "-o", "o.nii.gz"],
    ),
    "segmentation among the images": (["-i", "s", "-o", "s/x.dcm"], "among the images", ["-i", "s", "-o", "x.dcm"]),
    "into the series' folder": (["-i", "s", "-o", "s"], "among the images of the series", ["-i", "s", "-o", "out"]),
    "report among the images": (
        ["-i", "s", "-o", "o.nii.gz", "--report", "s/r.json"],
        "Name another folder with --report",
        ["-i", "s", "-o", "o.nii.gz", "--report", "r.json"],
    ),
    "deadline": (
        ["-i", "s", "-o", "seg.dcm", "--deadline", "1h"],
        "by a deadline",
        ["-i", "s", "-o", "seg.nii.gz", "--deadline", "1h"],
    ),
    "one file of it": (
        ["-i", "s/IM0003", "-o", "o.nii.gz"],
        "is one file of a DICOM series",
        ["-i", "s", "-o", "o.nii.gz"],
    ),
    "unknown ending": (["-i", "s", "-o", "o.png"], "unknown file type", ["-i", "s", "-o", "o.nii.gz"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_main__dicom_that_cannot_be__is_refused(
    kind: str,
    tmp_path: Path,
    source: Path,
    models: Models,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One clear error before anything runs, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.nii.gz")
    given, message, _ = BAD[kind]
    before = snapshot(tmp_path)
    assert run(*given, *use(models)) == 1
    error = capfd.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 2
    assert snapshot(tmp_path) == before


@pytest.mark.long
@pytest.mark.parametrize("kind", BAD)
def test_remedy__dicom_that_cannot_be__runs(
    kind: str, tmp_path: Path, source: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What messages propose is done."""
    monkeypatch.chdir(tmp_path)
    assert run(*BAD[kind][2], *use(models)) == 0


def test_main__damaged_series__leaves_nothing_behind(
    tmp_path: Path, source: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """One clear error for a file that is cut short."""
    file = source / "IM0003"
    file.write_bytes(file.read_bytes()[:-100])
    before = snapshot(tmp_path)
    assert run("-i", source, "-o", tmp_path / "seg.dcm", *use(models)) == 1
    assert "IM0003" in capfd.readouterr().err
    assert snapshot(tmp_path) == before


def test_main__series_that_no_segmentation_can_refer_to__is_refused_before_the_run(
    tmp_path: Path,
    source: Path,
    models: Models,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Nobody waits for a result that cannot be written; written as the message says, it is."""
    for file in source.iterdir():
        change(file, StudyInstanceUID=None)
    before = snapshot(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "run_files", lambda *_, **__: pytest.fail("it runs"))
        assert run("-i", source, "-o", tmp_path / "seg.dcm", *use(models)) == 1
    error = capfd.readouterr().err
    assert "no DICOM segmentation can be made" in error
    assert "StudyInstanceUID" in error
    assert "Write .nii.gz instead" in error
    assert snapshot(tmp_path) == before
    assert run("-i", source, "-o", tmp_path / "labels.nii.gz", *use(models)) == 0


def test_main__page__shows_a_series_like_a_file(tmp_path: Path, source: Path, models: Models) -> None:
    """One page, no index, although the input is a folder."""
    assert run("-i", source, "-o", tmp_path / "seg.dcm", "--page", tmp_path / "p.html", *use(models)) == 0
    assert not (tmp_path / "p_files").exists()
    assert "<html" in (tmp_path / "p.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"PK\x03\x04 and nothing that follows", b""], ids=["broken", "empty"])
def test_main__zip_file_without_a_series__is_refused(
    content: bytes, tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one line with a remedy, whatever else a zip file could be."""
    (tmp_path / "z.zip").write_bytes(content)
    if not content:
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
            archive.writestr("notes.txt", b"x")
    before = snapshot(tmp_path)
    assert run("-i", tmp_path / "z.zip", "-o", tmp_path / "seg.dcm", *use(models)) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 2
    assert snapshot(tmp_path) == before
