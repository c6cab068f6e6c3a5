"""DICOM segmentations, read back by pydicom and arithmetic of our own, and by SimpleITK."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import change, write_series
from infer_runs import OBLIQUE, snapshot

from coarse2fine.errors import ConfigError, OutputError
from coarse2fine.io import Grid, check_segmentation, read_volume, write_segmentation

SHAPE = (7, 8, 11)  # a frame is whole bytes: GDCM does not read the last bits of a byte that is not full
TURNED = replace(OBLIQUE, shape=SHAPE, spacing=(2.5, 0.7, 0.9))
SAGITTAL = Grid((7, 9, 11), (1.5, 0.7, 0.9), origin=(7.0, -3.0, 20.0), direction=(0, 0, -1, 1, 0, 0, 0, -1, 0))
NAMES = {"liver": [1], "tumour": [2], "cyst": [7]}
REGIONS = {"whole": [1, 2], "core": [2]}


def labels(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    found = np.zeros(shape, np.uint8)
    found[1:5, 2:7, 3:9], found[3, 4, 4:6] = 1, 2
    return found


def series(folder: Path, grid: Grid = TURNED, **changes: object) -> Path:
    write_series(folder, np.random.default_rng(0).integers(0, 4000, grid.shape).astype(np.uint16), grid, **changes)
    return folder


def masks(path: Path, grid: Grid) -> dict[str, np.ndarray]:
    """What a segmentation says, put onto a grid by where its frames lie."""
    content = pydicom.dcmread(path)
    names = {one.SegmentNumber: one.SegmentLabel for one in content.SegmentSequence}
    found = {name: np.zeros(grid.shape, bool) for name in names.values()}
    shared = content.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    np.testing.assert_allclose([measures.SpacingBetweenSlices, *measures.PixelSpacing], grid.spacing, rtol=1e-6)
    directions = np.reshape(grid.cosines, (3, 3))
    axes = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(np.reshape(axes, (2, 3)), directions.T[:2], atol=1e-6)
    frames = content.pixel_array.reshape(-1, content.Rows, content.Columns)
    for frame, group in zip(frames, content.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        x, y, z = np.linalg.solve(directions * grid.spacing[::-1], position - np.array(grid.origin[::-1]))
        np.testing.assert_allclose([x, y, z], [0, 0, round(z)], atol=1e-4)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[names[number]][round(z)] |= frame.astype(bool)
    return found


@pytest.mark.parametrize("names", [NAMES, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("grid", [TURNED, SAGITTAL], ids=["oblique", "sagittal"])
def test_write_segmentation__labels__lie_where_they_were(
    names: Mapping[str, Collection[int]], grid: Grid, tmp_path: Path
) -> None:
    """A segment for each name, overlapping ones too, in the place of its voxels."""
    source = series(tmp_path / "s", grid)
    write_segmentation(labels(grid.shape), names, source, tmp_path / "seg.dcm")
    found = masks(tmp_path / "seg.dcm", read_volume([source]).grid)
    assert list(found) == list(names)
    for name, values in names.items():
        np.testing.assert_array_equal(found[name], np.isin(labels(grid.shape), list(values)))


def test_write_segmentation__simpleitk__reads_the_same_frames(tmp_path: Path) -> None:
    """GDCM puts frames together as they come in the file, which is from the last slice to the first one here."""
    source = series(tmp_path / "s")
    write_segmentation(labels(), {"liver": [1, 2]}, source, tmp_path / "seg.dcm")
    image, grid = sitk.ReadImage(str(tmp_path / "seg.dcm")), read_volume([source]).grid
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[::-1] > 0, labels()[1:5] > 0)
    last = np.array(grid.origin[::-1]) + 4 * grid.spacing[0] * np.reshape(grid.cosines, (3, 3))[:, 2]
    np.testing.assert_allclose(image.GetOrigin(), last, atol=1e-5)
    np.testing.assert_allclose(
        np.reshape(image.GetDirection(), (3, 3)), np.reshape(grid.cosines, (3, 3)) * [1, 1, -1], atol=1e-6
    )


def test_write_segmentation__series__is_what_it_refers_to(tmp_path: Path) -> None:
    """Patient, study and frame of reference are the series'; every slice is referred to; series and file are new."""
    source = series(tmp_path / "s")
    write_segmentation(labels(), NAMES, source, tmp_path / "seg.dcm")
    content = pydicom.dcmread(tmp_path / "seg.dcm")
    images = [pydicom.dcmread(file) for file in source.iterdir()]
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
        assert content[name].value == images[0][name].value
    assert content.SeriesInstanceUID != images[0].SeriesInstanceUID
    (reference,) = content.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == images[0].SeriesInstanceUID
    assert {one.ReferencedSOPInstanceUID for one in reference.ReferencedInstanceSequence} == {
        image.SOPInstanceUID for image in images
    }
    assert (content.Modality, content.SegmentationType, content.Manufacturer) == ("SEG", "BINARY", "coarse2fine")
    algorithm = content.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "coarse2fine"
    assert algorithm.AlgorithmVersion


def test_write_segmentation__nothing_found__is_empty(tmp_path: Path) -> None:
    """Segments are named, and no voxel is theirs."""
    source = series(tmp_path / "s")
    write_segmentation(labels() * 0, NAMES, source, tmp_path / "seg.dcm")
    found = masks(tmp_path / "seg.dcm", read_volume([source]).grid)
    assert list(found) == list(NAMES)
    assert not any(mask.any() for mask in found.values())


def test_write_segmentation__odd_names__are_kept_as_far_as_dicom_can(tmp_path: Path) -> None:
    """Letters of any script stay; what separates values or controls terminals goes, and so does what is too long."""
    names = {"Läsion 肝": [1], "a\\b\n\x1b[2J": [2], "": [3], "x" * 99: [4]}
    write_segmentation(labels(), names, series(tmp_path / "s"), tmp_path / "seg.dcm")
    content = pydicom.dcmread(tmp_path / "seg.dcm")
    found = [one.SegmentLabel for one in content.SegmentSequence]
    assert found == ["Läsion 肝", "a_b__[2J", "segment 3", "x" * 64]


@pytest.mark.parametrize(
    ("field", "called"),
    [
        ("StudyInstanceUID", "StudyInstanceUID"),
        ("FrameOfReferenceUID", "Frame Of Reference UID"),
        ("PatientID", "PatientID"),
    ],
)
def test_check_segmentation__series_that_lacks_a_field__is_told_before_the_run(
    field: str, called: str, tmp_path: Path
) -> None:
    """In one line; what the message proposes, to complete the series, helps."""
    source = series(tmp_path / "s")
    check_segmentation(source, NAMES)
    known = pydicom.dcmread(next(source.iterdir()))[field].value
    for file in source.iterdir():
        change(file, **{field: None})
    with pytest.raises(OutputError, match=f"no DICOM segmentation can be made of .*{called}") as caught:
        check_segmentation(source, NAMES)
    assert "complete the series" in caught.value.remedy
    for file in source.iterdir():
        change(file, **{field: known})
    check_segmentation(source, NAMES)


def test_write_segmentation__series_has_changed__is_refused(tmp_path: Path) -> None:
    """Slices that went away since they were read cannot be referred to; nothing is written."""
    source = series(tmp_path / "s")
    max(source.iterdir(), key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2]).unlink()
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="no longer has the 7 slices"):
        write_segmentation(labels(), NAMES, source, tmp_path / "seg.dcm")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["pydicom", "highdicom"])
def test_dicom__without_the_extra__says_how_to_install_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else works without it."""
    source = series(tmp_path / "s")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"{name}, which is not installed") as caught:
        check_segmentation(source, NAMES)
    assert caught.value.remedy == "Install it: pip install pydicom highdicom"
    if name == "pydicom":
        with pytest.raises(ConfigError, match="reading DICOM needs pydicom"):
            read_volume([source])
