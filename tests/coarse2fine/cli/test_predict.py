"""c2f-predict: nnU-Net's command line, files and follow-up commands."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import blobs
from raw_data import save_volume
from tiny_models import heed_labels

from coarse2fine.cli import predict as predict_cli
from coarse2fine.cli import prepare as prepare_cli
from coarse2fine.nnunet import trained as trained_module

SHAPE = (12, 32, 32)
DATASET = "Dataset004_Blobs"
CASCADE = "3d_cascade_fullres"
MODEL = "nnUNetTrainer__nnUNetPlans__3d_fullres"
OUTPUT = "output_folder_or_list_of_truncated_output_files"
THERE = f"  There are (trainer -tr, plans -p, configuration -c): {MODEL}."
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}


@dataclass(frozen=True)
class Lab:
    """nnU-Net's results folder, and images."""

    results: Path
    images: Path

    def predict(self, output: Path, *options: object, dataset: object = 4) -> int:
        arguments = ["-i", self.images, "-o", output, "-d", dataset, "-c", "3d_fullres", "-device", "cpu", *options]
        return predict_cli.main([str(argument) for argument in arguments])


@pytest.fixture
def lab(model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return make_lab(model_folder, tmp_path, monkeypatch)


def make_lab(
    model_folder: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch, **options: object
) -> Lab:
    """One model of two folds, and three cases, of which nnU-Net crops the rim."""
    results, images = folder / "results", folder / "images"
    shutil.copytree(model_folder(seed=3, folds=("0", "1"), **options), results / DATASET / MODEL)
    (results / "Dataset104_Other4").mkdir()
    for index in range(3):
        save_volume(images / f"case{index}_0000.nii.gz", np.pad(blobs(SHAPE, seed=index), 2))
    monkeypatch.setenv("nnUNet_results", str(results))
    return Lab(results, images)


def add_lowres(lab: Lab, model_folder: Callable[..., Path]) -> None:
    lowres = MODEL.replace("3d_fullres", "3d_lowres")
    folder = model_folder(seed=5, spacing=(4.0, 2.0, 2.0), folds=("0", "1"))
    shutil.copytree(folder, lab.results / DATASET / lowres)


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    """By case, as nibabel reads them."""
    return {path.name: np.asarray(nibabel.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def nnunet(command: str, *arguments: object) -> None:
    """One of nnU-Net's own commands."""
    program = Path(sys.executable).with_name(command)
    line = [str(program), *map(str, arguments)]
    done = subprocess.run(line, check=False, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.long
def test_predict__cascade__takes_what_nnunet_takes(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of the previous stage from a folder: the same command line, labels and record of arguments."""
    lab = make_cascade(model_folder, tmp_path, monkeypatch)
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))
    first, theirs, ours = (tmp_path / name for name in ("first", "theirs", "ours"))
    for index in range(3):  # stored as float, as some programs do
        image = np.pad(blobs(SHAPE, seed=index), 2)
        labels = (image > image.mean()).astype(np.float32)
        save_volume(first / f"case{index}.nii.gz", labels)
    asked = ["-i", lab.images, "-d", "4", "-c", CASCADE, "-f", "0", "--disable_tta", "-device", "cpu"]
    asked += ["-prev_stage_predictions", first, "-npp", "1", "-nps", "1", "-num_parts", "3"]
    nnunet("nnUNetv2_predict", *asked, "-o", theirs)
    assert predict_cli.main([*map(str, asked), "-o", str(ours), "--mode", "one-stage"]) == 0
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    (expected,), (found,) = labels_in(theirs).values(), labels_in(ours).values()
    assert (found != expected).mean() < 1e-4
    told, known = (json.loads((one / "predict_from_raw_data_args.json").read_text()) for one in (ours, theirs))
    assert told | {OUTPUT: None} == known | {OUTPUT: None}
    save_volume(first / "case0.nii.gz", np.zeros_like(labels))
    assert predict_cli.main([*map(str, asked), "-o", str(tmp_path / "other"), "--mode", "one-stage"]) == 0
    assert (labels_in(tmp_path / "other")["case0.nii.gz"] != expected).mean() > 0.01


def make_cascade(model_folder: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A laboratory whose data set has a cascade, too, but no model of its first stage."""
    lab = make_lab(model_folder, folder, monkeypatch)
    target = lab.results / DATASET / MODEL.replace("3d_fullres", CASCADE)
    shutil.copytree(model_folder(seed=7, cascade=True, folds=("0", "1")), target)
    for fold in ("0", "1"):
        heed_labels(target / f"fold_{fold}" / "checkpoint_final.pth")
    return lab


def test_predict__previous_labels_missing__says_how_to_get_them(
    model_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is written; with 3d_lowres into that folder it works, and so it does without the option."""
    lab, first = make_cascade(model_folder, tmp_path, monkeypatch), tmp_path / "first"
    asked = ["-c", CASCADE, "-f", 0, "--disable_tta", "-num_parts", 3, "--mode", "one-stage"]
    assert lab.predict(tmp_path / "out", *asked, "-prev_stage_predictions", first) == 1
    said = capsys.readouterr().err
    assert f"case case0 has no labels of the previous stage: there is no {first / 'case0.nii.gz'}" in said
    assert "Predict it with -c 3d_lowres into that folder, or leave out -prev_stage_predictions" in said
    assert not (tmp_path / "out").exists()
    assert lab.predict(tmp_path / "out", "-prev_stage_predictions", first) == 1
    assert "-prev_stage_predictions is for cascades, and -c is 3d_fullres" in capsys.readouterr().err
    add_lowres(lab, model_folder)
    assert lab.predict(first, "-c", "3d_lowres", "--disable_tta", "-num_parts", 3) == 0
    assert lab.predict(tmp_path / "given", *asked, "-prev_stage_predictions", first) == 0
    as_there = ["--set", "coarse.tile_step=0.5", "--set", "coarse.mirroring=false"]
    assert lab.predict(tmp_path / "here", *asked, *as_there) == 0
    given, here = (labels_in(tmp_path / name)["case0.nii.gz"] for name in ("given", "here"))
    assert given.any()
    assert (given != here).mean() < 1e-3


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, REGIONS | {"transpose": (1, 2, 0), "reader": "NibabelIOWithReorient"}])
def test_predict__one_stage__writes_what_nnunet_writes_and_its_commands_go_on(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    """The same command line: the same files and contents; then it ensembles, postprocesses and evaluates them."""
    lab, theirs, ours = make_lab(model_folder, tmp_path, monkeypatch, **options), tmp_path / "theirs", tmp_path / "ours"
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path))
    image = nibabel.load(lab.images / "case1_0000.nii.gz")  # stored from left to right and from the feet
    flipped = nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([-1.0, 1.0, -2.0, 1.0]) @ np.eye(4))
    nibabel.save(flipped, lab.images / "case1_0000.nii.gz")
    asked = ["-d", "4", "-c", "3d_fullres", "-f", "0", "1", "-step_size", "0.6", "--disable_tta", "-device", "cpu"]
    asked += ["--save_probabilities", "-npp", "1", "-nps", "1", "-num_parts", "2", "-part_id", "0", "-i", lab.images]
    nnunet("nnUNetv2_predict", *asked, "-o", theirs)
    assert predict_cli.main([*map(str, asked), "-o", str(ours), "--mode", "one-stage"]) == 0

    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    expected = labels_in(theirs)
    assert sorted(expected) == ["case0.nii.gz", "case2.nii.gz"]
    for name, labels in labels_in(ours).items():
        assert (labels != expected[name]).mean() < 1e-4
        stem = name.removesuffix(".nii.gz")
        probabilities = [np.load(folder / f"{stem}.npz")["probabilities"] for folder in (ours, theirs)]
        np.testing.assert_allclose(*probabilities, atol=2e-3)
        found, known = (pickle.loads((folder / f"{stem}.pkl").read_bytes()) for folder in (ours, theirs))
        assert repr(found) == repr(known)
    for name in ("dataset.json", "plans.json", "predict_from_raw_data_args.json"):
        found, known = (json.loads((folder / name).read_text()) for folder in (ours, theirs))
        assert found | {OUTPUT: None} == known | {OUTPUT: None}
    if options:
        return

    both = tmp_path / "both"
    nnunet("nnUNetv2_ensemble", "-i", ours, theirs, "-o", both, "-np", "1")
    assert labels_in(both).keys() == expected.keys()
    rules = tmp_path / "postprocessing.pkl"
    rules.write_bytes(pickle.dumps(([], [])))
    made = ["-i", ours, "-o", tmp_path / "post", "-pp_pkl_file", rules, "-np", "1"]
    nnunet("nnUNetv2_apply_postprocessing", *made, "-plans_json", ours / "plans.json")
    assert labels_in(tmp_path / "post").keys() == expected.keys()
    told = ["-djfile", ours / "dataset.json", "-pfile", ours / "plans.json", "-o", tmp_path / "summary.json"]
    nnunet("nnUNetv2_evaluate_folder", theirs, ours, *told, "-np", "1")
    assert json.loads((tmp_path / "summary.json").read_text())["foreground_mean"]["Dice"] > 0.999


def test_predict__lowres_beside_it__is_the_coarse_model(
    lab: Lab, model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it every voxel is looked at, and that is said; mirroring, step and folds are as asked for."""
    report = tmp_path / "report.json"
    plain = ("--disable_tta", "--report", report, "-num_parts", 3)
    assert lab.predict(tmp_path / "one", *plain) == 0
    assert "every voxel is looked at: Dataset004_Blobs has no 3d_lowres model" in capsys.readouterr().err
    assert json.loads(report.read_text())["mode"] == "one-stage"
    add_lowres(lab, model_folder)
    assert lab.predict(tmp_path / "two", *plain, "-step_size", 0.8, "-f", 1, dataset=DATASET) == 0
    said = capsys.readouterr().err
    assert "every voxel" not in said
    assert "nnUNetTrainer__nnUNetPlans__3d_lowres looks coarsely first: nothing is promised of what that leaves" in said
    found = json.loads(report.read_text())
    assert found["mode"] == "accelerated"
    assert found["config"]["coarse"]["model"].endswith("nnUNetTrainer__nnUNetPlans__3d_lowres")
    fine = found["config"]["fine"]
    assert (fine["tile_step"], fine["mirroring"], fine["folds"]) == (0.8, False, [1])
    assert lab.predict(tmp_path / "three", "--report", report, "-num_parts", 3, "--set", "rois.threshold=0.9") == 0
    found = json.loads(report.read_text())["config"]
    assert (found["fine"]["tile_step"], found["fine"]["mirroring"], found["fine"]["folds"]) == (0.5, True, None)
    assert found["rois"]["threshold"] == 0.9


@pytest.mark.long
def test_predict__kit__is_used_for_its_own_model_only(
    lab: Lab, model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its promise; the folds that it was made for, whatever the model folder's place."""
    kit, report, fine = tmp_path / "kit", tmp_path / "report.json", lab.results / DATASET / MODEL
    for index in range(3):
        save_volume(tmp_path / "labelsTr" / f"case{index}.nii.gz", np.pad(np.ones(SHAPE, np.uint8), 2))
    shutil.copytree(lab.images, tmp_path / "imagesTr")
    models = ["--fine-model", fine, "--coarse-model", model_folder(seed=5, spacing=(4.0, 2.0, 2.0))]
    settings = ["--no-search", "--miss", 0.5, "--set", "fine.grow=0", "--device", "cpu"]
    assert prepare_cli.main([str(word) for word in ["--cases", tmp_path, "-o", kit, *models, *settings]]) == 0
    options = ("--kit", kit, "--disable_tta", "-num_parts", 3, "--report", report)
    assert lab.predict(tmp_path / "out", *options) == 0
    found = json.loads(report.read_text())
    assert found["mode"] == "accelerated"
    assert found["promise"]["covers"]
    assert found["config"]["fine"]["grow"] == 0
    capsys.readouterr()
    assert lab.predict(tmp_path / "other", *options, "-f", 0) == 1
    said = capsys.readouterr().err
    assert "is not the fine model that the kit was made for" in said
    assert "Use the kit's own fine model with the folds that it was made for, or make a kit for this one" in said
    assert lab.predict(tmp_path / "other", *options, "-f", 0, 1) == 0


def test_predict__with_boxes__probabilities_agree_with_labels(
    lab: Lab, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """What the fine network has not seen is certainly background."""
    add_lowres(lab, model_folder)
    options = ("--save_probabilities", "--disable_tta", "-num_parts", 3, "--set", "rois.threshold=0.58")
    assert lab.predict(tmp_path / "out", *options) == 0
    values = np.load(tmp_path / "out" / "case0.npz")["probabilities"]
    labels = labels_in(tmp_path / "out")["case0.nii.gz"].T
    assert values.dtype == np.float32
    assert values.shape == (2, *labels.shape)
    assert (values.argmax(0) == labels).all()
    assert 0.05 < (values[0] == 1).mean() < 0.95
    np.testing.assert_allclose(values.sum(0), 1, atol=1e-5)


def test_predict__continue__does_what_is_missing(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As nnU-Net, also where only probabilities are missing; without it, what is there is written anew."""
    output, parts = tmp_path / "out", ("--disable_tta", "-f", "0")
    assert lab.predict(output, *parts, "-num_parts", 3, "-part_id", 1) == 0
    assert sorted(labels_in(output)) == ["case1.nii.gz"]
    before = (output / "case1.nii.gz").stat().st_mtime_ns
    assert lab.predict(output, *parts, "--continue_prediction") == 0
    assert len(labels_in(output)) == 3
    assert (output / "case1.nii.gz").stat().st_mtime_ns == before
    assert lab.predict(output, *parts, "--continue_prediction") == 0
    assert "nothing to do: this is part 0 of 1, and it has no case left" in capsys.readouterr().err
    assert lab.predict(output, *parts, "-num_parts", 5, "-part_id", 4) == 0
    assert "part 4 of 5, and it has no case left" in capsys.readouterr().err
    assert lab.predict(output, *parts, "--continue_prediction", "--save_probabilities", "-num_parts", 3) == 0
    assert sorted(path.name for path in output.glob("*.npz")) == ["case0.npz"]
    assert lab.predict(output, *parts, "-num_parts", 3, "-part_id", 1) == 0
    assert (output / "case1.nii.gz").stat().st_mtime_ns > before


def test_predict__a_case_fails__others_are_done_and_the_remedy_does_the_rest(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names what to add to the command."""
    broken, output = lab.images / "case0_0000.nii.gz", tmp_path / "out"
    good = broken.read_bytes()
    broken.write_bytes(good[:500])
    assert lab.predict(output, "--disable_tta", "-f", "0") == 1
    assert "run the same command again with --continue_prediction" in capsys.readouterr().err
    assert sorted(labels_in(output)) == ["case1.nii.gz", "case2.nii.gz"]
    broken.write_bytes(good)
    assert lab.predict(output, "--disable_tta", "-f", "0", "--continue_prediction") == 0
    assert len(labels_in(output)) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-d", 5], "no data set 5 in {results} (nnUNet_results)\n  There are: Dataset004_Blobs."),
        (["-d", "Dataset004"], "no data set Dataset004 in"),
        (["-d", 7], "-d 7 may be Dataset007_A or Dataset007_B\n  Give its whole name with -d."),
        (["-c", "2d"], f"has no model nnUNetTrainer__nnUNetPlans__2d\n{THERE}"),
        (["-tr", "Other"], f"has no model Other__nnUNetPlans__3d_fullres\n{THERE}"),
        (["-part_id", 2, "-num_parts", 2], "-part_id is 2, of 2 parts\n  Parts are counted from 0: give 0 to 1"),
        (["-num_parts", 0], "-num_parts is 0"),
        (["-chk", "other.pth"], "has no fold with a other.pth"),
        (["-f", 3], "fold_3"),
        (["-o", "IN"], "lies in the input"),
        (["--report", "IMAGE"], "is an input or another result\n  Choose another name with --report."),
        (["--report", "LABELS"], "is an input or another result\n  Choose another name with --report."),
        (["-i", "nowhere"], "nowhere does not exist"),
        (["--mode", "accelerated"], "coarse.model is not set"),
        (["--kit", "k", "--coarse-model", "c"], "--kit and --coarse-model"),
    ],
)  # fmt: skip
def test_predict__what_cannot_be__is_said_in_one_message(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[object], says: str
) -> None:
    """Nothing is written; data sets and models that exist are named."""
    for name in "AB":
        (lab.results / f"Dataset007_{name}").mkdir()
    (lab.results / "Dataset004_Blobs_copy").touch()
    image, labels = lab.images / "case0_0000.nii.gz", tmp_path / "out" / "case0.nii.gz"
    places = {"IN": lab.images / "out", "IMAGE": image, "LABELS": labels}
    given, before = [places.get(str(option), option) for option in options], image.read_bytes()
    assert lab.predict(tmp_path / "out", *given) == 1
    said = capsys.readouterr().err
    known = "Dataset004_Blobs, Dataset007_A, Dataset007_B, Dataset104_Other4."
    assert says.format(results=lab.results).replace("Dataset004_Blobs.", known) in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    assert not (lab.images / "out").exists()
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("ending", "says"),
    [(None, "does not say how files end (file_ending)"), (".gipl", "cannot write {out}/case0.gipl: unknown file type")],
)
def test_predict__data_set_whose_files_end_unusually__is_refused_before_anything_runs(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str | None, says: str
) -> None:
    """Where nothing is said, and where labels are not written in that format; what the remedy adds works."""
    path = lab.results / DATASET / MODEL / "dataset.json"
    dataset = json.loads(path.read_text())
    changed = {key: value for key, value in dataset.items() if key != "file_ending"}
    path.write_text(json.dumps(changed | ({"file_ending": ending} if ending else {})))
    (lab.images / "case0_0000.gipl").touch()
    assert lab.predict(tmp_path / "out", "--disable_tta", "-f", 0, "-num_parts", 3) == 1
    assert says.format(out=tmp_path / "out") in capsys.readouterr().err
    path.write_text(json.dumps(changed | {"file_ending": ".nii.gz"}))
    assert lab.predict(tmp_path / "out", "--disable_tta", "-f", 0, "-num_parts", 3, "--device", "cpu") == 0


@pytest.mark.parametrize(
    ("option", "says"),
    [(("-step_size", "2"), "'2' is no number above 0, at most 1"), (("-f", "x"), "'x' is neither a number nor all")],
)
def test_predict__value_that_cannot_be__names_its_own_option(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str], says: str
) -> None:
    """Not a setting that nnU-Net's users do not know."""
    with pytest.raises(SystemExit) as ended:
        lab.predict(tmp_path / "out", *option)
    assert ended.value.code == 2
    assert f"argument {option[0]}: {says}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "says"), [(None, "nnUNet_results is not set"), ("nowhere", "nowhere (nnUNet_results) is")]
)
def test_predict__environment_does_not_say_where_models_are__is_told(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str | None,
    says: str,
) -> None:
    """With the variable to set, which works."""
    if value is None:
        monkeypatch.delenv(trained_module.VARIABLE)
    else:
        monkeypatch.setenv(trained_module.VARIABLE, value)
    assert lab.predict(tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert says in said
    assert "Set it to nnU-Net's results folder" in said or "Set nnUNet_results to nnU-Net's results folder" in said
