"""DICOM series from strangers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_fuzzing import make_dicom
from fuzzing import outcomes

from coarse2fine.errors import C2FError
from coarse2fine.io import read_volume

SEEDS = 25  # `make fuzz` tries more


@pytest.mark.long
def test_read_volume__damaged_series__is_read_or_refused(tmp_path: Path) -> None:
    """Whatever is in their fields or bytes: one clear error, or a volume; no traceback, no crash, nothing endless."""
    paths = [make_dicom(seed, tmp_path) for seed in range(SEEDS)]
    found = outcomes("dicom_fuzzing:ours", paths)
    faults = {path.name: one for path, one in zip(paths, found, strict=True) if one.kind not in ("read", "refused")}
    assert not faults
    assert {one.kind for one in found} == {"read", "refused"}
    assert all(len(one.detail) < 1500 for one in found)


STRANGE = Path(pydicom.__file__).parent / "data" / "test_files"


def kind_of(folder: Path) -> str:
    """What becomes of a series; of what is refused also whether one line says so, and what to do."""
    try:
        read_volume([folder])
    except C2FError as error:
        return "refused" if error.remedy and "\n" not in error.problem else str(error)
    return "read"


def test_read_volume__strange_real_files__are_read_or_refused(tmp_path: Path) -> None:
    """Those that pydicom is tested with: of many scanners and programs, damaged ones too."""
    files = sorted(STRANGE.glob("*.dcm"))
    if not files:
        pytest.skip("pydicom has come without its test files")
    kinds = set[str]()
    for file in files:
        folder = tmp_path / file.stem
        folder.mkdir()
        shutil.copy(file, folder)
        kinds.add(kind_of(folder))
    assert kinds == {"read", "refused"}


def test_read_volume__real_ct__is_as_simpleitk_reads_it() -> None:
    """Five slices of a scanner from 1998."""
    folder = STRANGE / "dicomdirtests" / "98892001" / "CT5N"
    if not folder.is_dir():
        pytest.skip("pydicom has come without its test files")
    volume = read_volume([folder])
    expected = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    np.testing.assert_array_equal(volume.channels[0], sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(volume.grid.spacing[::-1], expected.GetSpacing())
    np.testing.assert_allclose(volume.grid.origin[::-1], expected.GetOrigin())
