"""Whole runs with models whose plans name one of nnU-Net's image readers."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import blobs
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from coarse2fine.config import load_config
from coarse2fine.errors import C2FError, ModelError, UntrustedModelError, VolumeError
from coarse2fine.io import Grid, Volume, read_volume
from coarse2fine.nnunet import load_model
from coarse2fine.pipeline import Pipeline

SHAPE = (12, 26, 24)  # z, y, x of the scan as it would be in RAS
LABELS = {"background": 0, "a": 1, "b": 2}
RAS = np.array([[1.3, 0, 0, -30], [0, 0.8, 0, 20], [0, 0, 2.5, 11], [0, 0, 0, 1]])


def scan(path: Path, code: str, *, seed: int = 0, unit: int | None = None) -> Path:
    """The same scan, stored with its axes to where the code says."""
    image = nibabel.Nifti1Image(blobs(SHAPE, seed=seed).transpose(2, 1, 0), RAS)
    image = image.as_reoriented(ornt_transform(io_orientation(RAS), axcodes2ornt(code)))
    if unit is not None:
        image.header["xyzt_units"] = unit
    nibabel.save(image, path)
    return path


def nnunet_labels(folder: Path, files: list[Path], output: Path) -> np.ndarray:
    """What nnU-Net reads, predicts and writes, all with the reader that the plans name; axes of nibabel."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor.initialize_from_trained_model_folder(str(folder), ("all",), "checkpoint_final.pth")
        reader = predictor.plans_manager.image_reader_writer_class()
        image, properties = reader.read_images([str(file) for file in files])
        labels = predictor.predict_single_npy_array(image, {"spacing": properties["spacing"]})
        reader.write_seg(labels, str(output), properties)
    return np.asarray(nibabel.load(output).dataobj)


def run(models: tuple[Path, ...], files: list[Path], output: Path, *settings: str) -> Any:
    """Our labels, coarse model first; one-stage if there is one model."""
    names = dict(zip(("coarse.model", "fine.model")[-len(models) :], models, strict=True))
    mode = "one-stage" if len(models) == 1 else "accelerated"
    values = [f"{key}={value}" for key, value in names.items()]
    quiet = ["fine.mirroring=false", "coarse.mirroring=false"]
    pipeline = Pipeline.from_config(load_config(None, [f"mode={mode}", *values, *quiet, *settings]))
    return pipeline.run_files(files, output)


@pytest.mark.parametrize("name", ["SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_run_files__reader_of_the_plans__equals_nnunet(
    tmp_path: Path, name: str, model_folder: Callable[..., Path]
) -> None:
    """From file to file, labels and their place are nnU-Net's own, also with axes transposed by the plans."""
    plan = {"transpose": (1, 2, 0), "spacing": (1.0, 1.0, 2.0), "patch": (16, 16, 8)}
    folder = model_folder(reader=name, labels=LABELS, **plan)
    file = scan(tmp_path / "a.nii.gz", "PIL")
    expected = nnunet_labels(folder, [file], tmp_path / "theirs.nii.gz")
    run((folder,), [file], tmp_path / "ours.nii.gz")
    ours = nibabel.load(tmp_path / "ours.nii.gz")
    assert len(np.unique(expected)) > 1
    assert (np.asarray(ours.dataobj) != expected).mean() < 1e-4
    np.testing.assert_array_equal(ours.affine, nibabel.load(file).affine)


@pytest.mark.parametrize(("coarse", "fine"), [("SimpleITKIO", "NibabelIOWithReorient"), ("NibabelIOWithReorient",) * 2])
def test_run_files__any_storage__finds_the_same_where_the_fine_model_turns_volumes(
    tmp_path: Path, coarse: str, fine: str, model_folder: Callable[..., Path]
) -> None:
    """Two models may turn volumes differently: what each sees is put together in space.

    Both see the same in the files stored RAS and LPS if both turn them. If only the fine one does, the coarse one must
    still point it to the same places, which a coarse network that answers voxel by voxel shows.
    """
    models = (model_folder(reader=coarse, seed=4, spacing=(2.5, 0.8, 1.3)), model_folder(reader=fine, seed=4))
    make_pointwise(models[0])
    found = []
    for code in ("RAS", "LPS", "PIL"):
        file = scan(tmp_path / f"{code}.nii.gz", code)
        result = run(models, [file], tmp_path / "out.nii.gz", "rois.threshold=0.5")
        labels = nibabel.as_closest_canonical(nibabel.load(tmp_path / "out.nii.gz"))
        found.append((result.report.boxes["selected"], result.boxes, np.asarray(labels.dataobj)))
    (count, boxes, labels), *others = found
    assert count > 0
    assert labels.any()
    for other_count, other_boxes, other_labels in others:
        assert other_count == count
        assert set(other_boxes) == set(boxes)
        assert (other_labels != labels).mean() < 1e-4


def make_pointwise(folder: Path) -> None:
    """Makes a tiny network ignore where voxels lie: bright ones are foreground, whichever way round."""
    path = folder / "fold_all" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    for tensor in content["network_weights"].values():
        if tensor.ndim == 5:
            centre = tensor[..., 1:2, 1:2, 1:2].clone() if tensor.shape[-1] == 3 else None
            if centre is not None:
                tensor.zero_()
                tensor[..., 1:2, 1:2, 1:2] = centre
    torch.save(content, path)
