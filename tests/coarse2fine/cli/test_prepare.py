"""c2f-prepare with tiny models: a kit that c2f-infer runs with, what it promises, and what it says when it cannot."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from conftest import blobs

from coarse2fine.calibration import measure as measure_module
from coarse2fine.calibration import settle
from coarse2fine.calibration.kit import open_kit
from coarse2fine.cli import infer as infer_cli
from coarse2fine.cli import prepare as prepare_cli
from coarse2fine.cli.prepare_run import wanted_of
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.errors import ConfigError
from coarse2fine.io import read_volume
from coarse2fine.nnunet.loading import load_model

SHAPE, CASES = (12, 32, 32), 4


@dataclass(frozen=True)
class Lab:
    """Models, and cases with labels."""

    coarse: Path
    fine: Path
    data: Path

    def prepare(self, kit: Path, *options: object, cases: Path | None = None) -> int:
        models = ("--coarse-model", self.coarse, "--fine-model", self.fine, "--device", "cpu")
        settings = ("--set", "fine.mirroring=false", "--set", "fine.grow=0", "--set", "canvas.norm=canvas")
        arguments = ["--cases", cases or self.data, "-o", kit, "--no-search", *models, *settings, *options]
        return prepare_cli.main([str(argument) for argument in arguments])


def save(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 2.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def lab(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    data = tmp_path_factory.mktemp("raw")
    for index in range(CASES):
        image = blobs(SHAPE, seed=index)
        save(data / "imagesTr" / f"c{index}_0000.nii.gz", image)
        truth = (np.random.default_rng(index).random(SHAPE) < 0.1) & (image != 0)  # where nnU-Net does not crop
        save(data / "labelsTr" / f"c{index}.nii.gz", truth.astype(np.uint8))
    return Lab(model_folder(seed=5, spacing=(4.0, 2.0, 2.0)), model_folder(seed=10), data)


@pytest.fixture(scope="module")
def made(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit that allows for a tenth."""
    kit = tmp_path_factory.mktemp("made") / "kit"
    assert lab.prepare(kit, "--miss", 0.1) == 0
    return kit


@pytest.fixture
def kit(made: Path, tmp_path: Path) -> Path:
    """A copy of it, elsewhere."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def infer(kit: Path, image: Path, output: Path, *options: object) -> dict[str, Any]:
    report = output.with_suffix(".json")
    arguments = ["-i", image, "-o", output, "-c", kit, "--device", "cpu", "--report", report, "--overwrite", *options]
    assert infer_cli.main([str(argument) for argument in arguments]) == 0
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_prepare__labelled_cases__promises_what_it_measured(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five lines; the command that they end with runs, and its report states the same promise and that it holds."""
    kit = tmp_path / "kit"
    assert lab.prepare(kit, "--miss", 0.1) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert [line.partition(":")[0] for line in lines] == ["cost", "gain", "promise", "sure", "next"]
    assert lines[3].startswith("sure: 4 of the 4 calibration cases keep it at the threshold 0.")
    assert lines[4] == f"next: c2f-infer -i scan.nii.gz -o labels.nii.gz -c {kit}"
    assert not kit.with_name("kit.c2f-work").exists()
    report = infer(kit, lab.data / "imagesTr" / "c0_0000.nii.gz", tmp_path / "labels.nii.gz")
    assert report["promise"]["covers"]
    assert lines[2] == f"promise: {report['promise']['statement']}"
    assert "at most 10 % of its foreground lies outside of all boxes" in lines[2]
    assert "probability of at least 80 % (split conformal, k = 1 of n = 4 calibration cases)" in lines[2]
    assert not any("promise" in warning for warning in report["warnings"])
    calibration = json.loads((kit / "calibration.json").read_text())
    assert report["config"]["rois"]["threshold"] == calibration["result"]["threshold"]
    for case in calibration["cases"]:
        below = [miss["missed"] for miss in case["misses"] if miss["threshold"] <= calibration["result"]["threshold"]]
        assert max(below) <= 0.1
    assert {report["config"]["promise"][key] for key in ("rank", "cases", "miss")} == {1, 4, 0.1}
    assert report["config"]["rois"]["margin"] == [2, 2, 2]  # a voxel of 4 x 2 x 2 mm, in voxels of 2 x 1 x 1 mm


@pytest.mark.long
def test_prepare__margin_is_given__is_kept(lab: Lab, tmp_path: Path) -> None:
    """Also none at all."""
    assert lab.prepare(tmp_path / "kit", "--miss", 0.3, "--set", "rois.margin=[0, 0, 0]") == 0
    assert load_config(open_kit(tmp_path / "kit")).rois.margin == (0, 0, 0)


def test_coarse_voxel__models_turn_axes_differently__is_on_the_fine_models(model_folder: Callable[..., Path]) -> None:
    """Coarse voxels of 4 x 8 x 2 mm in the file, fine ones of 1.5 x 1 x 1 mm, whose working grid has y, x, z."""
    coarse = load_model(model_folder(transpose=(2, 0, 1), spacing=(2.0, 4.0, 8.0)))
    fine = load_model(model_folder(transpose=(1, 2, 0), spacing=(1.0, 1.0, 1.5)))
    assert settle.coarse_voxel(Config(), coarse, fine) == (8, 2, 3)


@pytest.mark.long
def test_prepare__images_only__foreground_is_what_the_fine_model_finds_everywhere(lab: Lab, tmp_path: Path) -> None:
    """The promise says so; measured is what labels from one-stage mode give."""
    everywhere = tmp_path / "raw"
    shutil.copytree(lab.data / "imagesTr", everywhere / "imagesTr")
    assert lab.prepare(tmp_path / "images", "--miss", 0.3, cases=everywhere / "imagesTr") == 0
    models = ("--coarse-model", lab.coarse, "--fine-model", lab.fine, "--set", "fine.mirroring=false")
    arguments = ["-i", everywhere / "imagesTr", "-o", everywhere / "labelsTr", "--mode", "one-stage", *models]
    assert infer_cli.main([str(argument) for argument in arguments]) == 0
    assert lab.prepare(tmp_path / "labels", "--miss", 0.3, cases=everywhere) == 0
    alone, labelled = (json.loads((tmp_path / name / "calibration.json").read_text()) for name in ("images", "labels"))
    assert alone == labelled
    cards = [json.loads((tmp_path / name / "card.json").read_text())["promise"] for name in ("images", "labels")]
    assert "foreground that the fine model finds everywhere" in cards[0]
    assert "everywhere" not in cards[1]


@pytest.mark.long
def test_prepare__cut_short__goes_on_where_it_was(
    lab: Lab, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured is not measured again, unless it was something else; the kit is the same."""
    kit, measured = tmp_path / "kit", []
    measure = measure_module.measure_scene

    def stops(segmenter: Any, volume: Any, scene: Any, foreground: Any) -> Any:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(volume.name)
        return measure(segmenter, volume, scene, foreground)

    monkeypatch.setattr(measure_module, "measure_scene", stops)
    assert lab.prepare(kit, "--miss", 0.1) == 130
    assert not kit.exists()
    measured.clear()
    monkeypatch.setattr(measure_module, "measure_scene", lambda *a: (measured.append(a[1].name), measure(*a))[1])
    assert lab.prepare(kit, "--miss", 0.1) == 0
    assert measured == ["c2", "c3"]
    assert (kit / "calibration.json").read_text() == (made / "calibration.json").read_text()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--set", "rois.margin=[1, 1, 1]"], "settings were changed after calibration"),
        (["--mode", "two-stage"], "settings were changed after calibration"),
        (["brighter"], "99th percentile of channel 0"),
        (["finer"], "voxel size along z 1, there 2 to 2"),
    ],
)
def test_infer__run_that_the_promise_does_not_cover__says_why(
    lab: Lab, kit: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    """A warning and the report; other cases and settings run all the same."""
    image = lab.data / "imagesTr" / "c0_0000.nii.gz"
    if options[0] in ("brighter", "finer"):
        voxels = read_volume([image]).channels[0]
        image = tmp_path / "other_0000.nii.gz"
        save(image, voxels * (9 if options[0] == "brighter" else 1), (1.0, 1.0, 1.0 if options[0] == "finer" else 2.0))
        options = []
    report = infer(kit, image, tmp_path / "labels.nii.gz", *options)
    assert not report["promise"]["covers"]
    assert any(reason in why for why in report["promise"]["reasons"])
    assert any(text.startswith("the kit's promise does not cover") and reason in text for text in report["warnings"])


def test_infer__one_stage_mode__promises_nothing(lab: Lab, kit: Path, tmp_path: Path) -> None:
    """Everything is looked at; there are no boxes."""
    image = lab.data / "imagesTr" / "c0_0000.nii.gz"
    report = infer(kit, image, tmp_path / "labels.nii.gz", "--mode", "one-stage")
    assert report["promise"] is None
    assert not any("promise" in warning for warning in report["warnings"])


def test_infer__volume_read_by_region__is_not_covered(lab: Lab, kit: Path, tmp_path: Path) -> None:
    """Its heatmap may come from another scale level, and its cells see less at once."""
    volume = read_volume([lab.data / "imagesTr" / "c0_0000.nii.gz"])
    zarr.create_array(tmp_path / "in.zarr", data=volume.channels[0], chunks=(8, 16, 16), zarr_format=3)
    report = infer(kit, tmp_path / "in.zarr", tmp_path / "out.zarr", "--spacing", "2,1,1", "--unit", "mm")
    assert report["promise"]["reasons"] == ["it was calibrated on volumes that are held in memory as a whole"]
    assert any("the kit's promise does not cover this case" in warning for warning in report["warnings"])


def change(kit: Path, name: str) -> None:
    path = kit / name
    path.write_text(path.read_text().replace("threshold", "threshold ", 1))


def later(kit: Path, version: object) -> None:
    card = json.loads((kit / "card.json").read_text())
    (kit / "card.json").write_text(json.dumps(card | {"version": version}))


def outside(kit: Path) -> None:
    card = json.loads((kit / "card.json").read_text())
    (kit / "card.json").write_text(json.dumps(card | {"files": card["files"] | {"../../secret": "0"}}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda kit: change(kit, "config.yaml"), "config.yaml is not what it was"),
        (lambda kit: change(kit, "calibration.json"), "calibration.json is not what it was"),
        (lambda kit: (kit / "coarse" / "plans.json").unlink(), "lacks its file coarse/plans.json"),
        (lambda kit: later(kit, 2), "has version 2"),
        (lambda kit: later(kit, "x" * 1000), "has version 'xxx"),
        (lambda kit: (kit / "card.json").write_text("[" * 100_000), "is no JSON file"),
        (lambda kit: (kit / "card.json").write_text("[]"), "is no card of a kit"),
        (lambda kit: (kit / "card.json").write_text(" " * 1_000_001), "is larger than"),
        (outside, "lacks its file ../../secret"),
    ],
)
def test_infer__damaged_kit__is_refused_in_one_line(
    lab: Lab, made: Path, kit: Path, tmp_path: Path, capsys: Any, spoil: Callable[[Path], object], says: str
) -> None:
    """With a remedy that works: another copy of the whole kit."""
    spoil(kit)
    arguments = ["-i", str(lab.data / "imagesTr" / "c0_0000.nii.gz"), "-o", str(tmp_path / "l.nii.gz"), "-c", str(kit)]
    assert infer_cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert len(said) < 600
    shutil.rmtree(kit)
    shutil.copytree(made, kit)
    assert infer_cli.main(arguments) == 0


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_infer__other_model_than_the_kits__is_refused(
    lab: Lab, kit: Path, tmp_path: Path, model_folder: Callable[..., Path], capsys: Any, stage: str
) -> None:
    """By its weights, wherever it lies: the kit's own model from another folder is taken."""
    other = model_folder(seed=77, spacing=(4.0, 2.0, 2.0) if stage == "coarse" else (2.0, 1.0, 1.0))
    arguments = ["-i", str(lab.data / "imagesTr" / "c0_0000.nii.gz"), "-o", str(tmp_path / "l.nii.gz"), "-c", str(kit)]
    assert infer_cli.main([*arguments, f"--{stage}-model", str(other)]) == 1
    assert f"is not the {stage} model that the kit was made for" in capsys.readouterr().err
    copied = shutil.copytree(getattr(lab, stage), tmp_path / "moved" / getattr(lab, stage).name)
    assert infer_cli.main([*arguments, f"--{stage}-model", str(copied)]) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--probability", 0.9], "4 cases cannot support a probability of 0.9\n  Give 9 cases"),
        (["--miss", 1.5], "--miss is 1.5"),
        (["--set", "mode=one-stage"], "mode one-stage has no boxes"),
        (["--cases", "nowhere"], "nowhere"),
    ],
)
def test_prepare__what_cannot_be__is_said_and_nothing_is_written(
    lab: Lab, tmp_path: Path, capsys: Any, options: list[object], says: str
) -> None:
    """One message, exit code 1, no kit."""
    assert lab.prepare(tmp_path / "kit", *options) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "kit").exists()


@pytest.mark.parametrize("name", ["miss", "probability", "confidence", "loss", "minutes"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_wanted_of__number_that_is_none__one_as_the_message_says_is_taken(name: str, value: str) -> None:
    """Shares lie between 0 and 1, and a time is an example in the message."""
    options = ["--cases", "a", "-o", "b", f"--{name}"]
    with pytest.raises(ConfigError, match=f"--{name} is {value}") as caught:
        wanted_of(prepare_cli.build_parser().parse_args([*options, value]))
    example = re.search(r"Give a number (?:between 0 and (1)|of minutes, such as (20))\.", caught.value.remedy)
    assert example
    mended = example[2] or str(float(example[1]) / 2)
    wanted_of(prepare_cli.build_parser().parse_args([*options, mended]))


@pytest.mark.long
def test_prepare__coarse_model_is_the_limit__makes_a_one_stage_kit_and_says_what_helps(
    lab: Lab, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With case and object; what is known already is not measured again when more may be missed."""
    data, kit = tmp_path / "raw", tmp_path / "kit"
    for index in range(3):  # even the lowest threshold looks away from the rim that nnU-Net crops
        save(data / "imagesTr" / f"c{index}_0000.nii.gz", np.pad(blobs(SHAPE, seed=index), 2))
        save(data / "labelsTr" / f"c{index}.nii.gz", np.ones(tuple(edge + 4 for edge in SHAPE), np.uint8))
    assert lab.prepare(kit, "--miss", 0.01, cases=data) == 0
    said = capsys.readouterr().err
    assert "gain: none, as one-stage mode is all that is left: the coarse model is the limit: even the" in said
    assert "promise: one-stage mode looks everywhere" in said
    assert "sure: 0 of the 3 calibration cases keep it at the lowest threshold that was tried, 0.001" in said
    page, calibration = (kit / "page.html").read_text(), json.loads((kit / "calibration.json").read_text())
    assert calibration["result"]["limit"] in said
    assert calibration["result"]["limit"] in page
    assert calibration["cases"][0]["hardest"]["voxels"] == 16 * 36 * 36
    report = infer(kit, data / "imagesTr" / "c0_0000.nii.gz", tmp_path / "labels.nii.gz")
    assert (report["mode"], report["promise"]) == ("one-stage", None)
    margin = re.search(r"--set '(rois.margin=[^']*)'", said)
    assert margin
    assert load_config(None, [margin[1]]).rois.margin == (4, 4, 4)
    monkeypatch.setattr(measure_module, "measure_scene", None)
    assert lab.prepare(kit, "--miss", 0.9, "--overwrite", cases=data) == 0
    assert "gain: the fine network looks at boxes" in capsys.readouterr().err
    assert not kit.with_name("kit.c2f-work").exists()


@pytest.mark.long
def test_prepare__kit_or_another_folder_is_there__is_replaced_only_when_asked(lab: Lab, kit: Path, capsys: Any) -> None:
    """A folder that is no kit never is."""
    before = (kit / "card.json").read_text()
    assert lab.prepare(kit) == 1
    assert "holds a kit\n  Choose another folder with -o, or add --overwrite." in capsys.readouterr().err
    assert (kit / "card.json").read_text() == before
    assert lab.prepare(kit, "--miss", 0.2, "--overwrite") == 0
    assert "at most 20 %" in json.loads((kit / "card.json").read_text())["promise"]
    (kit / "card.json").unlink()
    assert lab.prepare(kit, "--overwrite") == 1
    assert "exists and is no kit" in capsys.readouterr().err


@pytest.mark.long
def test_prepare__case_without_foreground__is_left_out_and_named(lab: Lab, tmp_path: Path, capsys: Any) -> None:
    """It does not count: nothing of it can be missed. Where all are like that, there is nothing to promise."""
    data = Path(shutil.copytree(lab.data, tmp_path / "raw"))
    save(data / "labelsTr" / "c1.nii.gz", np.zeros(SHAPE, np.uint8))
    assert lab.prepare(tmp_path / "kit", "--miss", 0.2, cases=data) == 0
    said = capsys.readouterr().err
    assert "c1 is left out: it has no foreground" in said
    assert "n = 3 calibration cases" in said
    for index in range(CASES):
        save(data / "labelsTr" / f"c{index}.nii.gz", np.zeros(SHAPE, np.uint8))
    assert lab.prepare(tmp_path / "other", cases=data) == 1
    assert "no case has any foreground" in capsys.readouterr().err
