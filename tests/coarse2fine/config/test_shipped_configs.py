"""Each shipped configuration from its own format to its own format, with real data and trained models."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from conftest import shared

from coarse2fine.cli.infer import main
from coarse2fine.demo import ASSETS, IMAGE

CREMI = "data/cremi_sample_c/sample_C_8nm.hdf"
EM = "models/Dataset101_VNCMito/nnUNetTrainer__smallPlans__3d_"
# One pass over each input instead of eight; nothing else of the configurations is changed.
ONE_PASS = ("--set", "coarse.mirroring=false", "--set", "fine.mirroring=false", "--device", "cpu")


def run(config: str, source: Path, output: Path, models: tuple[Path, Path], *options: str) -> dict:
    """What the command's report says."""
    report = output.with_name("report.json")
    words = ["-i", source, "-o", output, "-c", config, "--coarse-model", models[0], "--fine-model", models[1]]
    assert main([*map(str, words), "--report", str(report), *ONE_PASS, *options]) == 0
    return json.loads(report.read_text())


def em_models() -> tuple[Path, Path]:
    """Models trained on EM in nm."""
    return shared(f"{EM}lowres"), shared(f"{EM}fullres")


@pytest.mark.long
@pytest.mark.parametrize("config", ["covid", "word"])
def test_infer__ct__nifti_to_nifti_in_the_same_place(config: str, tmp_path: Path) -> None:
    """A chest CT; the nodule is found, and the labels lie where the image lies."""
    output = tmp_path / "labels.nii.gz"
    report = run(config, IMAGE, output, (ASSETS / "coarse", ASSETS / "fine"))
    image, labels = (sitk.ReadImage(str(path)) for path in (IMAGE, output))
    for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(labels, name)() == getattr(image, name)()
    found = sitk.GetArrayFromImage(labels)
    assert report["labels"] == {"1": int(found.sum())}
    reference = sitk.GetArrayFromImage(sitk.ReadImage(str(ASSETS / "lidc0001_reference.nii.gz")))
    assert ((found > 0) & (reference > 0)).sum() > 0.5 * found.sum() > 0


@pytest.mark.shared
def test_infer__cremi__hdf5_to_hdf5_with_ids_and_attributes(tmp_path: Path) -> None:
    """Part of CREMI's sample C; what is found is numbered, all else is CREMI's background."""
    models, source, output = em_models(), shared(CREMI), tmp_path / "clefts.hdf"
    report = run("cremi", source, output, models, "--region", "8:32,128:384,128:384")
    with h5py.File(output) as file, h5py.File(source) as raw:
        labels = file["volumes/labels/clefts"]
        resolution = raw["volumes/raw"].attrs["resolution"]
        assert labels.attrs["resolution"].tolist() == resolution.tolist()
        assert labels.attrs["offset"].tolist() == (resolution * [8, 128, 128]).tolist()
        assert labels.shape == (24, 256, 256)
        ids = np.unique(labels[:])
    assert ids[-1] == np.uint64(0xFFFFFFFFFFFFFFFF)
    assert len(ids) - 1 == report["counts"]["objects"] > 0


@pytest.mark.shared
def test_infer__fafb__chunked_store_to_chunked_store(tmp_path: Path) -> None:
    """The same volume as OME-NGFF with a coarser level, which the coarse network reads."""
    models, source, output = em_models(), tmp_path / "em.zarr", tmp_path / "labels.zarr"
    with h5py.File(shared(CREMI)) as file:
        image = file["volumes/raw"][8:32, 128:384, 128:384]
    group = zarr.open_group(source, mode="w")
    datasets = []
    for level, voxels in enumerate((image, image.reshape(24, 128, 2, 128, 2).mean(axis=(2, 4)).astype(np.uint8))):
        group.create_array(str(level), data=voxels, chunks=(24, 64, 64))
        scale = {"type": "scale", "scale": [40.0, 8.0 * 2**level, 8.0 * 2**level]}
        datasets.append({"path": str(level), "coordinateTransformations": [scale]})
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    report = run("fafb", source, output, models)
    assert report["layout"]["coarse_level"] == 1
    result = zarr.open_group(output, mode="r")
    (pyramid,) = result.attrs["ome"]["multiscales"]
    assert pyramid["datasets"][0]["coordinateTransformations"][0]["scale"] == [40.0, 8.0, 8.0]
    assert result["0"].shape == image.shape
    assert 0 < (result["0"][:] != 0).mean() < 0.5
