"""c2f-infer with a mask: files, folders and stores; what does not fit is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import blobs
from infer_runs import OBLIQUE, SHAPE, Models, run, save, snapshot, use, voxels
from large_volumes import write_image

ANYTHING = ["--set", "rois.threshold=0.5", "--set", "rois.min_voxels=0"]


def half() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, :, :14] = 3
    return mask


@pytest.mark.long
@pytest.mark.parametrize("mode", ["accelerated", "one-stage"])
def test_main__mask_of_a_file__is_all_that_is_looked_at(mode: str, tmp_path: Path, models: Models) -> None:
    """Of everything it changes nothing; of one half, the other is background. An oblique volume, a turned mask."""
    scan = save(tmp_path / "scan.nii.gz")
    everything, left = save(tmp_path / "all.nrrd", np.ones(SHAPE, np.uint8)), save(tmp_path / "left.nrrd", half())
    turned = tmp_path / "turned.nrrd"
    sitk.WriteImage(sitk.Flip(sitk.PermuteAxes(sitk.ReadImage(str(left)), (1, 2, 0)), (True, True, False)), str(turned))
    arguments = ["-i", scan, *use(models), *ANYTHING, "--mode", mode]
    assert run(*arguments, "-o", tmp_path / "a.nii.gz") == 0
    assert run(*arguments, "-o", tmp_path / "b.nii.gz", "--mask", everything) == 0
    report = tmp_path / "c.json"
    assert run(*arguments, "-o", tmp_path / "c.nii.gz", "--mask", turned, "--report", report) == 0
    plain, same, masked = (voxels(tmp_path / f"{name}.nii.gz") for name in "abc")
    np.testing.assert_array_equal(plain, same)
    assert (plain[half() == 0] != 0).any()
    assert not masked[half() == 0].any()
    assert masked.any()
    told = json.loads(report.read_text())
    assert told["in_mask"] == (half() != 0).sum()
    assert told["labels"] == {str(label): int((masked == label).sum()) for label in np.unique(masked)[1:]}
    if mode == "one-stage":
        np.testing.assert_array_equal(masked, np.where(half() != 0, plain, 0))


@pytest.mark.long
def test_main__masks_of_a_folder__are_named_after_the_cases(
    tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    """A case without one fails before anything runs."""
    for case in ("one", "two"):
        save(tmp_path / "in" / f"{case}_0000.nii.gz")
        save(tmp_path / "masks" / f"{case}.nrrd", half())
    arguments = ["-i", tmp_path / "in", "-o", tmp_path / "out", *use(models), *ANYTHING, "--mask", tmp_path / "masks"]
    (tmp_path / "masks" / "two.nrrd").rename(tmp_path / "two.nrrd")
    assert run(*arguments) == 1
    assert "masks has no mask for two" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
    (tmp_path / "two.nrrd").rename(tmp_path / "masks" / "two.nrrd")
    assert run(*arguments) == 0
    for case in ("one", "two"):
        assert not voxels(tmp_path / "out" / f"{case}.nii.gz")[half() == 0].any()


@pytest.mark.parametrize("kind", ["shape", "nothing", "missing", "output"])
def test_main__mask_that_does_not_fit__one_line_and_nothing_written(
    kind: str, tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another extent, set nowhere, not there, or what the result would replace."""
    scan, mask = save(tmp_path / "scan.nii.gz"), tmp_path / "mask.nii.gz"
    if kind in ("shape", "nothing"):
        save(mask, half()[..., :20] if kind == "shape" else half() * 0)
    if kind == "output":
        save(mask, half())
    output = mask if kind == "output" else tmp_path / "out.nii.gz"
    before = snapshot(tmp_path)
    assert run("-i", scan, "-o", output, *use(models), "--mask", mask, "--overwrite") == 1
    told = " ".join(capsys.readouterr().err.split())
    words = {
        "shape": "does not show all of the volume",
        "nothing": "is set nowhere",
        "missing": "mask: ",
        "output": "is an input or another result",
    }
    assert words[kind] in told
    assert snapshot(tmp_path) == before


@pytest.mark.long
def test_main__mask_over_a_store__in_a_file(tmp_path: Path, models: Models) -> None:
    """The same option; the result and the mask may not lie in each other."""
    image = write_image(tmp_path / "in.zarr", blobs(SHAPE), spacing=(2, 0.8, 0.9))
    grid = type(OBLIQUE)(SHAPE, (2.0, 0.8, 0.9), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    mask = save(tmp_path / "mask.nrrd", half(), grid)
    arguments = ["-i", image, *use(models), *ANYTHING, "--report", tmp_path / "r.json"]
    assert run(*arguments, "-o", tmp_path / "out.zarr", "--mask", mask) == 0
    assert json.loads((tmp_path / "r.json").read_text())["in_mask"] == (half() != 0).sum()
    other = write_image(tmp_path / "mask.zarr", half(), spacing=(2, 0.8, 0.9))
    assert run(*arguments, "-o", other, "--mask", other, "--overwrite") == 1
    assert other.exists()
