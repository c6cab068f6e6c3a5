"""Test cases with finer voxels."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import benchmark_module, import_benchmark
from raw_data import save_case
from scipy import ndimage

script = benchmark_module("finer")


def tilted(shape: tuple[int, int, int]) -> sitk.Image:
    """Random voxels in a scanner's geometry: no axis is that of the world."""
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    image.SetSpacing((0.8, 1.0, 2.5))
    image.SetOrigin((-10.0, 20.0, 5.0))
    image.SetDirection((0.0, -1.0, 0.0, 0.6, 0.0, -0.8, 0.8, 0.0, 0.6))
    return image


def test_resample__half_the_edges__is_scipys_zoom_in_the_same_field_of_view(script: ModuleType) -> None:
    """Linear interpolation of voxels as cells of a grid; both corners of the volume stay where they were."""
    image = tilted((5, 6, 7))
    finer = script.resample(image, 0.5, sitk.sitkLinear)
    zoomed = ndimage.zoom(sitk.GetArrayFromImage(image), 2, order=1, mode="nearest", grid_mode=True)
    assert sitk.GetArrayFromImage(finer)[1:-1, 1:-1, 1:-1] == pytest.approx(zoomed[1:-1, 1:-1, 1:-1], abs=1e-5)
    corners = [
        [one.TransformContinuousIndexToPhysicalPoint(index) for index in ([-0.5] * 3, [n - 0.5 for n in one.GetSize()])]
        for one in (image, finer)
    ]
    assert np.array(corners[1]) == pytest.approx(np.array(corners[0]), abs=1e-5)
    nearest = sitk.GetArrayFromImage(script.resample(image, 0.4, sitk.sitkNearestNeighbor))
    assert np.isin(nearest, sitk.GetArrayFromImage(image)).all()


def test_main__a_data_set__has_test_cases_with_eight_times_the_voxels(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image and labels alike, no training cases; what is there stays, and a missing folder is one line."""
    labels = np.zeros((4, 6, 8), np.uint8)
    labels[1:3, 2:4, 3:5] = 7
    for split in ("Ts", "Tr"):
        save_case(tmp_path / "raw", split, "a", labels * 10, labels)
    dataset = import_benchmark("common.registry").load_dataset("em").model_copy(update={"data": str(tmp_path / "raw")})
    monkeypatch.setattr(script, "load_dataset", lambda name: dataset)
    out = tmp_path / "finer"
    assert script.main(["--dataset", "em", "-o", str(out)]) == 0
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz")) == [
        "imagesTs/a_0000.nii.gz",
        "labelsTs/a.nii.gz",
    ]
    image, found = (sitk.ReadImage(str(out / name)) for name in ("imagesTs/a_0000.nii.gz", "labelsTs/a.nii.gz"))
    assert image.GetSize() == found.GetSize() == (16, 12, 8)
    assert np.array_equal(sitk.GetArrayFromImage(found), np.kron(labels, np.ones((2, 2, 2), np.uint8)))
    (out / "labelsTs" / "a.nii.gz").write_bytes(b"mine")
    assert script.main(["--dataset", "em", "-o", str(out)]) == 0
    assert (out / "labelsTs" / "a.nii.gz").read_bytes() == b"mine"
    assert script.main(["--dataset", "em", "--data", str(tmp_path / "none"), "-o", str(out)]) == 2
