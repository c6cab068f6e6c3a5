"""Whole runs with models whose plans name one of nnU-Net's image readers."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import blobs
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from coarse2fine.coarse.heatmap import CoarseStage, predict_heatmap
from coarse2fine.config.reader import load_config
from coarse2fine.errors import ModelError, UntrustedModelError, VolumeError
from coarse2fine.io import Grid, Volume, read_volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.working_grid import view_volume, volume_doubts

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
        found.append((result.report.boxes.selected, result.boxes, np.asarray(labels.dataobj)))
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


@pytest.mark.parametrize("name", ["SimpleITKIOWithReorient", "NibabelIOWithReorient"])
def test_call__volume_read_by_hand__equals_the_run_on_its_file(
    tmp_path: Path, name: str, model_folder: Callable[..., Path]
) -> None:
    """Who reads a volume and calls the pipeline gets what a run on the file writes, without naming a reader."""
    folder, file = model_folder(reader=name), scan(tmp_path / "a.nii.gz", "LPS")
    written = run((folder,), [file], tmp_path / "out.nii.gz").labels
    config = load_config(None, ["mode=one-stage", f"fine.model={folder}", "fine.mirroring=false"])
    result = Pipeline.from_config(config)(read_volume([file]))
    np.testing.assert_array_equal(result.labels, written)
    np.testing.assert_array_equal(read_volume([tmp_path / "out.nii.gz"]).channels[0], written)


def test_call__array_without_direction__warns_and_runs(model_folder: Callable[..., Path]) -> None:
    """A model that turns volumes takes an array as it is, and the report says so."""
    image = blobs(SHAPE)
    volume = Volume((image,), Grid(SHAPE, (2.5, 0.8, 1.3)), "array")
    reports = []
    for name in ("SimpleITKIO", "NibabelIOWithReorient"):
        config = load_config(
            None, ["mode=one-stage", f"fine.model={model_folder(reader=name)}", "fine.mirroring=false"]
        )
        reports.append(Pipeline.from_config(config)(volume))
    np.testing.assert_array_equal(reports[0].labels, reports[1].labels)
    assert not any("turns volumes" in warning for warning in reports[0].report.warnings)
    assert any("NibabelIOWithReorient" in warning for warning in reports[1].report.warnings)


def test_run_files__second_channel_elsewhere__is_in_the_report(
    tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    """nnU-Net warns of channels that do not lie on each other; the report does, too."""
    files = [scan(tmp_path / f"a_000{index}.nii.gz", "RAS", seed=index) for index in (0, 1)]
    result = run((model_folder(channels=2),), files, tmp_path / "out.nii.gz")
    assert not any("channel 1" in warning for warning in result.report.warnings)
    moved = nibabel.load(files[1])
    moved.affine[1, 3] += 25
    nibabel.save(nibabel.Nifti1Image(np.asarray(moved.dataobj), moved.affine), files[1])
    result = run((model_folder(channels=2),), files, tmp_path / "out.nii.gz")
    assert any("channel 1 lies up to 25 mm away" in warning for warning in result.report.warnings)


def test_run_files__micrometres__are_those_of_the_reader(tmp_path: Path, model_folder: Callable[..., Path]) -> None:
    """Nibabel's reader takes numbers as they are, SimpleITK's converts them to mm, which is far from the model."""
    file = scan(tmp_path / "a.nii.gz", "RAS", unit=3)
    run((model_folder(reader="NibabelIO"),), [file], tmp_path / "out.nii.gz")
    assert nibabel.load(tmp_path / "out.nii.gz").header.get_xyzt_units()[0] == "micron"
    (doubt,) = volume_doubts(read_volume([file]), [load_model(model_folder(reader="NibabelIO", spacing=(2, 9, 9)))])
    x, y, z = (float(zoom) for zoom in nibabel.load(file).header.get_zooms())
    assert f"are {z:g} x {y:g} x {x:g} \u00b5m" in doubt
    with pytest.raises(VolumeError, match="are far from the"):
        run((model_folder(reader="SimpleITKIO"),), [file], tmp_path / "out.nii.gz")


def test_load_model__unknown_reader__remedy_works(model_folder: Callable[..., Path]) -> None:
    """A reader that nnU-Net does not have is refused by name; with one that the message lists the model loads."""
    folder = model_folder()
    path = folder / "plans.json"
    plans = json.loads(path.read_text())
    for value in ("MyReaderIO", "os.system", 5, ["SimpleITKIO"], {"a": [[]] * 1000}):
        path.write_text(json.dumps(plans | {"image_reader_writer": value}))
        with pytest.raises(UntrustedModelError, match="none of nnU-Net's readers of volumes") as refused:
            load_model(folder)
        assert str(value)[:8] in refused.value.problem
        assert len(refused.value.problem) < 500
    listed = refused.value.remedy.partition("If one of ")[2].partition(" gives")[0].split(", ")
    for name in listed:
        path.write_text(json.dumps(plans | {"image_reader_writer": name}))
        assert load_model(folder).reader.name == name


def test_load_model__reader_of_pictures__is_refused_by_name(model_folder: Callable[..., Path]) -> None:
    """nnU-Net's reader of 2D images cannot belong to a 3D model."""
    with pytest.raises(ModelError, match="NaturalImage2DIO', which reads 2D images"):
        load_model(model_folder(reader="NaturalImage2DIO"))


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ({}, "SimpleITKIO"),
        ({"overwrite_image_reader_writer": "None"}, "SimpleITKIO"),
        ({"overwrite_image_reader_writer": "NibabelIO"}, "NibabelIO"),
        ({"file_ending": ".tif"}, "Tiff3DIO"),
    ],
)
def test_load_model__plans_without_reader__takes_what_nnunet_would_plan_with(
    model_folder: Callable[..., Path], dataset: dict[str, str], name: str
) -> None:
    """dataset.json decides where the plans do not; where they do, they do alone, as in nnU-Net's inference."""
    folder = model_folder()
    values = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(values | dataset))
    assert load_model(folder).reader.name == "SimpleITKIO"
    plans = json.loads((folder / "plans.json").read_text())
    del plans["image_reader_writer"]
    (folder / "plans.json").write_text(json.dumps(plans))
    assert load_model(folder).reader.name == name


def test_predict_heatmap__models_turn_volumes_differently__result_lies_as_the_fine_one_sees_it(
    tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    """What a coarse model says of the file's own voxel order is turned as nibabel turns a scan to RAS."""
    file = scan(tmp_path / "a.nii.gz", "LPS")
    volume = read_volume([file])
    coarse, fine = (load_model(model_folder(reader=name)) for name in ("SimpleITKIO", "NibabelIOWithReorient"))
    view = view_volume(volume, coarse)
    config = load_config(None, ["coarse.mirroring=false"]).coarse
    own, other = (predict_heatmap(CoarseStage(coarse, model, config), view) for model in (coarse, fine))
    np.testing.assert_array_equal(other.heatmap, own.heatmap[:, ::-1, ::-1])
    np.testing.assert_array_equal(other.logits, own.outputs.flip(2, 3))
    assert not np.allclose(other.heatmap, own.heatmap)
