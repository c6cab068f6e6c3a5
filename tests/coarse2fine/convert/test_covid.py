"""c2f-convert on CT data sets, which are files already: what is taken over, what is refused, and what is left behind.

Published layouts are built from small files; where developers have real masks, a real one is converted, too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import shared

from coarse2fine.cli import infer as infer_cli
from coarse2fine.cli.convert import main
from coarse2fine.convert import rawdata
from coarse2fine.convert.word import LABELS
from coarse2fine.io import find_cases
from coarse2fine.training.dataset import find_labelled_cases

SHAPE = (4, 6, 8)


def save(
    path: Path,
    voxels: np.ndarray,
    spacing: tuple[float, ...] = (0.7, 0.7, 2.5),
    origin: tuple[float, ...] = (-166.0, 187.6, -340.0),
    direction: tuple[float, ...] = (1, 0, 0, 0, -1, 0, 0, 0, 1),
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


def ct(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 500, shape, dtype=np.int16)


def mask(seed: int = 0, top: int = 1) -> np.ndarray:
    """All labels up to ``top``."""
    voxels = np.random.default_rng(seed).integers(0, top, SHAPE, dtype=np.uint16, endpoint=True)
    voxels.flat[: top + 1] = range(top + 1)
    return voxels


def covid_case(folder: Path, number: str, seed: int) -> None:
    save(folder / f"volume-covid19-A-{number}_ct.nii.gz", ct(seed))
    save(folder / f"volume-covid19-A-{number}_seg.nii.gz", mask(seed))


@pytest.fixture
def covid(tmp_path: Path) -> Path:
    """Two training cases and a validation image, as in COVID-19-20_v2."""
    for number, seed in (("0003", 1), ("0011", 2)):
        covid_case(tmp_path / "covid/Train", number, seed)
    save(tmp_path / "covid/Validation/volume-covid19-A-0698_ct.nii.gz", ct(3))
    (tmp_path / "covid/Train/._volume-covid19-A-0003_ct.nii.gz").write_bytes(b"what macOS leaves behind")
    return tmp_path / "covid"


@pytest.fixture
def word(tmp_path: Path) -> Path:
    """One case in each split of WORD."""
    for seed, (split, number) in enumerate((("Tr", "0002"), ("Val", "0001"), ("Ts", "0014"))):
        save(tmp_path / f"WORD/images{split}/word_{number}.nii.gz", ct(seed))
        save(tmp_path / f"WORD/labels{split}/word_{number}.nii.gz", mask(seed, 16).astype(np.uint8))
    return tmp_path / "WORD"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


def test_covid__published_layout__becomes_a_data_set(
    covid: Path, tmp_path: Path, nnunet_verify: Callable[[Path], None]
) -> None:
    """Bytes are taken over, nnU-Net and we can read it, and dataset.json says where it is from."""
    raw = tmp_path / "new/raw"
    assert run("covid", covid, "-o", raw) == 0
    folder = raw / "Dataset201_COVID1920"
    assert [path.name for path in raw.iterdir()] == [folder.name]
    assert content(folder).keys() == {
        "dataset.json",
        *(f"imagesTr/volume-covid19-A-{number}_0000.nii.gz" for number in ("0003", "0011")),
        *(f"labelsTr/volume-covid19-A-{number}.nii.gz" for number in ("0003", "0011")),
        "imagesTs/volume-covid19-A-0698_0000.nii.gz",
    }
    for ours, theirs in (("imagesTr/{}_0000", "Train/{}_ct"), ("labelsTr/{}", "Train/{}_seg")):
        name = "volume-covid19-A-0011"
        written, source = (base / f"{form.format(name)}.nii.gz" for base, form in ((folder, ours), (covid, theirs)))
        assert written.read_bytes() == source.read_bytes()
    described = json.loads((folder / "dataset.json").read_text())
    assert described | {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lesion": 1}} == described
    assert (described["numTraining"], described["file_ending"]) == (2, ".nii.gz")
    assert "grand-challenge.org" in described["reference"]
    assert described["sources"]["volume-covid19-A-0698"] == {
        "split": "Validation",
        "image": "volume-covid19-A-0698_ct.nii.gz",
    }
    nnunet_verify(folder)
    assert [case.name for case in find_labelled_cases(folder, 1)] == ["volume-covid19-A-0003", "volume-covid19-A-0011"]
    assert [case.name for case in find_cases(folder / "imagesTs", 1)] == ["volume-covid19-A-0698"]


def test_covid__nnunet_verify__would_notice_a_wrong_data_set(
    covid: Path, tmp_path: Path, nnunet_verify: Callable[[Path], None]
) -> None:
    """The check above is one."""
    assert run("covid", covid, "-o", tmp_path / "raw") == 0
    folder = tmp_path / "raw/Dataset201_COVID1920"
    (folder / "labelsTr/volume-covid19-A-0003.nii.gz").unlink()
    save(folder / "labelsTr/volume-covid19-A-0003.nii.gz", mask(0, 2))
    with pytest.raises(RuntimeError, match="unexpected labels"):
        nnunet_verify(folder)


@pytest.mark.shared
def test_covid__real_mask__is_taken_over(tmp_path: Path) -> None:
    """A published mask in full size, with a CT of the same geometry made for it."""
    source = shared("data/covid1920_masks/volume-covid19-A-0003_seg.nii.gz")
    (tmp_path / "Train").mkdir()
    seg = tmp_path / "Train" / source.name
    seg.write_bytes(source.read_bytes())
    truth = sitk.ReadImage(str(source))
    sitk.WriteImage(sitk.Cast(truth, sitk.sitkInt8), str(seg).replace("_seg", "_ct"), True, 1)
    assert run("covid", tmp_path / "Train", "-o", tmp_path / "raw") == 0
    written = tmp_path / "raw/Dataset201_COVID1920/labelsTr/volume-covid19-A-0003.nii.gz"
    assert written.read_bytes() == source.read_bytes()


def test_word__published_layout__keeps_the_splits(word: Path, tmp_path: Path, capsys: Any) -> None:
    """Validation and test cases are test cases, with labels."""
    assert run("word", word, "-o", tmp_path / "raw", "--dataset-id", 7, "--name", "Organs") == 0
    folder = tmp_path / "raw/Dataset007_Organs"
    expected = {"dataset.json", "imagesTr/word_0002_0000.nii.gz", "labelsTr/word_0002.nii.gz"}
    for number in ("0001", "0014"):
        expected |= {f"imagesTs/word_{number}_0000.nii.gz", f"labelsTs/word_{number}.nii.gz"}
    assert files(folder) == expected
    described = json.loads((folder / "dataset.json").read_text())
    assert described["labels"] == LABELS
    assert list(LABELS.values()) == list(range(17))
    assert (LABELS["liver"], LABELS["right_kidney"], LABELS["Head_of_femur_R"]) == (1, 4, 16)
    assert {name: case["split"] for name, case in described["sources"].items()} == {
        "word_0001": "Val",
        "word_0002": "Tr",
        "word_0014": "Ts",
    }
    assert "warning" not in capsys.readouterr().err


def test_word__test_labels_not_there__leaves_these_images_out(word: Path, tmp_path: Path, capsys: Any) -> None:
    (word / "labelsTs/word_0014.nii.gz").unlink()
    assert run("word", word, "-o", tmp_path / "raw") == 0
    assert [path.name for path in (tmp_path / "raw/Dataset202_WORD/imagesTs").iterdir()] == ["word_0001_0000.nii.gz"]
    assert "1 images left out" in capsys.readouterr().err


@pytest.mark.shared
def test_word__real_organs__are_taken_over(tmp_path: Path, capsys: Any, nnunet_verify: Callable[[Path], None]) -> None:
    """Real label maps in WORD's layout; labels above 16 are not WORD's and are refused, the others pass."""
    source = shared("data/lidc0001_organs/organs.nii.gz")
    labels = sitk.ReadImage(str(source))[128:384:2, 128:384:2, ::4]
    for split in ("Tr", "Val"):
        for kind in ("images", "labels"):
            (tmp_path / f"WORD/{kind}{split}").mkdir(parents=True)
    image = sitk.Cast(labels, sitk.sitkInt16) * 40 - 500
    for split, number, shift in (("Tr", "0002", 0), ("Val", "0001", 1)):
        sitk.WriteImage(image + shift, str(tmp_path / f"WORD/images{split}/word_{number}.nii.gz"))
        sitk.WriteImage(labels, str(tmp_path / f"WORD/labels{split}/word_{number}.nii.gz"))
    assert run("word", tmp_path / "WORD", "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert "2 of 2 cases cannot be used" in said
    assert "no label: 17, 18, 19, 20, 23, 29, 30, 31, 32, 33, ...\n" in said
    kept = sitk.Mask(labels, labels <= 16)
    for split, number in (("Tr", "0002"), ("Val", "0001")):
        sitk.WriteImage(kept, str(tmp_path / f"WORD/labels{split}/word_{number}.nii.gz"))
    assert run("word", tmp_path / "WORD", "-o", tmp_path / "raw") == 0
    written = tmp_path / "raw/Dataset202_WORD/labelsTs/word_0001.nii.gz"
    assert np.array_equal(nibabel.load(written).get_fdata().T, sitk.GetArrayFromImage(kept))
    assert "no training case has a voxel of: right_kidney\n" in capsys.readouterr().err
    nnunet_verify(written.parents[1])


def spoil_volume(name: str, voxels: np.ndarray, **geometry: Any) -> Callable[[Path], object]:
    return lambda train: save(train / f"volume-covid19-A-{name}.nii.gz", voxels, **geometry)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda train: (train / "volume-covid19-A-0003_seg.nii.gz").unlink(), "no labels of volume-covid19-A-0003"),
        (lambda train: (train / "volume-covid19-A-0003_ct.nii.gz").unlink(), "no image of volume-covid19-A-0003"),
        (spoil_volume("0003_seg", np.ones((4, 6, 9), np.uint8)), "shapes (z, y, x): 4, 6, 8 and 4, 6, 9"),
        (spoil_volume("0003_seg", mask(), spacing=(0.7, 0.701, 2.5)), "spacings (z, y, x): 2.5, 0.7, 0.7 and 2.5"),
        (spoil_volume("0003_seg", mask(), origin=(-166.0, 187.6, -339.9)), "origins (z, y, x)"),
        (spoil_volume("0003_seg", mask(), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)), "different directions"),
        (spoil_volume("0003_seg", mask(0, 2)), "values that are no label: 2"),
        (spoil_volume("0003_seg", mask().astype(np.int8) * -1), "values that are no label: -1"),
        (spoil_volume("0003_seg", mask().astype(np.float32) / 2), "values that are no label: 0.5"),
        (spoil_volume("0003_ct", np.full(SHAPE, np.inf, np.float32)), "NaN or infinite"),
        (spoil_volume("0003_ct", ct(), spacing=(700.0, 700.0, 2500.0)), "2500, 700, 700 mm (z, y, x) is not plausible"),
        (spoil_volume("0003_ct", ct(), spacing=(0.7, 0.7, 0.0025)), "is not plausible"),
        (lambda train: (train / "volume-covid19-A-0003_ct.nii.gz").write_bytes(b"\x1f\x8b no"), "0003_ct.nii.gz"),
    ],
)
def test_covid__something_wrong__is_said_and_nothing_is_left(
    covid: Path, tmp_path: Path, capsys: Any, spoil: Callable[[Path], object], says: str
) -> None:
    """One message that names the case, no traceback, and no folder, hidden or not."""
    spoil(covid / "Train")
    assert run("covid", covid, "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert "0003" in said
    assert not (tmp_path / "raw").exists() or not list((tmp_path / "raw").iterdir())


def test_covid__several_cases_wrong__are_all_named(covid: Path, tmp_path: Path, capsys: Any) -> None:
    for number in ("0003", "0011"):
        save(covid / f"Train/volume-covid19-A-{number}_seg.nii.gz", mask(0, 3))
    assert run("covid", covid, "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert "2 of 3 cases cannot be used" in said
    assert all(f"{number}_seg.nii.gz holds values" in said for number in ("0003", "0011"))


def test_covid__incomplete_pairs__are_all_named(covid: Path, tmp_path: Path, capsys: Any) -> None:
    (covid / "Train/volume-covid19-A-0003_seg.nii.gz").unlink()
    (covid / "Train/volume-covid19-A-0011_ct.nii.gz").unlink()
    assert run("covid", covid, "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert "no image of volume-covid19-A-0011, no labels of volume-covid19-A-0003" in said


def test_covid__train_folder_without_masks__is_an_error(covid: Path, tmp_path: Path, capsys: Any) -> None:
    """Only a folder that is not called Train may be meant for testing."""
    for path in (covid / "Train").glob("*_seg.nii.gz"):
        path.unlink()
    assert run("covid", covid, "-o", tmp_path / "raw") == 1
    assert "no labels of volume-covid19-A-0003" in capsys.readouterr().err


def test_covid__validation_folder_with_masks__is_for_testing(covid: Path, tmp_path: Path) -> None:
    """What somebody labelled later does not slip into training."""
    covid_case(covid / "Validation", "0698", 3)
    assert run("covid", covid, "-o", tmp_path / "raw") == 0
    folder = tmp_path / "raw/Dataset201_COVID1920"
    assert [path.name for path in (folder / "labelsTs").iterdir()] == ["volume-covid19-A-0698.nii.gz"]
    assert len(list((folder / "labelsTr").iterdir())) == 2


def test_covid__no_foreground_at_all__is_an_error(covid: Path, tmp_path: Path, capsys: Any) -> None:
    """One empty case is a warning, a data set of them an error."""
    save(covid / "Train/volume-covid19-A-0003_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    assert run("covid", covid, "-o", tmp_path / "raw") == 0
    assert "warning: volume-covid19-A-0003: no voxel of any label" in capsys.readouterr().err
    assert run("covid", covid, "-o", tmp_path / "other", "--split", "volume-covid19-A-0011") == 1
    assert "no training case has a voxel of any label" in capsys.readouterr().err
    save(covid / "Train/volume-covid19-A-0011_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    assert run("covid", covid, "-o", tmp_path / "other") == 1
    assert "no training case has a voxel of any label" in capsys.readouterr().err


def test_covid__same_case_twice__is_an_error_and_odd_images_a_warning(covid: Path, tmp_path: Path, capsys: Any) -> None:
    assert run("covid", covid / "Train", covid, "-o", tmp_path / "raw") == 1
    assert "case volume-covid19-A-0003 is there twice" in capsys.readouterr().err
    save(covid / "Validation/volume-covid19-A-0700_ct.nii.gz", ct(1))
    save(covid / "Validation/volume-covid19-A-0701_ct.nii.gz", np.full(SHAPE, -1000, np.int16))
    assert run("covid", covid, "-o", tmp_path / "raw") == 0
    said = capsys.readouterr().err
    assert "volume-covid19-A-0700: the image has the same voxels as volume-covid19-A-0003" in said
    assert "volume-covid19-A-0701: all voxels of the image are -1000" in said


def test_covid__files_of_other_names__are_told(covid: Path, tmp_path: Path, capsys: Any) -> None:
    save(covid / "Train/lungs.nii.gz", mask())
    assert run("covid", covid, "-o", tmp_path / "raw") == 0
    assert "left out, because their names are not those of the data set: lungs.nii.gz" in capsys.readouterr().err


def test_split__named_cases__become_test_cases(covid: Path, tmp_path: Path, capsys: Any) -> None:
    """By their names, or the ends of them that tell them apart."""
    assert run("covid", covid, "-o", tmp_path / "raw", "--split", "volume-covid19-A-0011") == 0
    folder = tmp_path / "raw/Dataset201_COVID1920"
    assert (folder / "labelsTs/volume-covid19-A-0011.nii.gz").is_file()
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 1
    capsys.readouterr()
    assert run("covid", covid, "-o", tmp_path / "b", "--split", "0012") == 1
    assert "--split 0012 fits no case\n  Name one of volume-covid19-A-0003, " in capsys.readouterr().err
    both = [part for number in ("0003", "0011") for part in ("--split", f"volume-covid19-A-{number}")]
    assert run("covid", covid, "-o", tmp_path / "b", *both) == 1
    assert "no case for training" in capsys.readouterr().err


def test_output__exists__is_replaced_only_when_asked(covid: Path, tmp_path: Path, capsys: Any) -> None:
    """And only if it is a data set and nothing else, and not what is read."""
    raw = tmp_path / "raw"
    folder = raw / "Dataset201_COVID1920"
    assert run("covid", covid, "-o", raw) == 0
    before = content(folder)
    (covid / "Train/volume-covid19-A-0003_ct.nii.gz").unlink()
    (covid / "Train/volume-covid19-A-0003_seg.nii.gz").unlink()
    assert run("covid", covid, "-o", raw) == 1
    assert "exists already\n  Use --overwrite" in capsys.readouterr().err
    assert content(folder) == before
    assert run("covid", covid, "-o", raw, "--overwrite") == 0
    assert len(content(folder)) == len(before) - 2
    assert [path.name for path in raw.iterdir()] == [folder.name]
    (folder / "notes.txt").write_text("mine")
    assert run("covid", covid, "-o", raw, "--overwrite") == 1
    assert "holds more than a data set: notes.txt" in capsys.readouterr().err
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert run("covid", covid, "-o", raw, "--overwrite") == 1
    assert "is no folder of its own" in capsys.readouterr().err
    assert (tmp_path / "elsewhere/dataset.json").is_file()


def test_output__fails_while_replacing__keeps_the_old_one(
    covid: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it that a case is wrong, or that the very last step fails."""
    raw, rename = tmp_path / "raw", Path.rename

    def fail_once(path: Path, target: Path) -> Path:
        if target.name == "Dataset201_COVID1920":
            monkeypatch.undo()
            raise OSError(5, "Input/output error")
        return rename(path, target)

    assert run("covid", covid, "-o", raw) == 0
    before = content(raw)
    monkeypatch.setattr(Path, "rename", fail_once)
    assert run("covid", covid, "-o", raw, "--overwrite") == 1
    assert "Input/output error" in capsys.readouterr().err
    assert content(raw) == before
    save(covid / "Train/volume-covid19-A-0011_seg.nii.gz", mask(0, 5))
    assert run("covid", covid, "-o", raw, "--overwrite") == 1
    assert content(raw) == before


def test_output__holds_the_input__is_refused(word: Path, tmp_path: Path, capsys: Any) -> None:
    """A data set cannot be replaced by itself."""
    target = tmp_path / "raw/Dataset202_WORD"
    target.parent.mkdir()
    word.rename(target)
    for split in ("Val", "Ts"):
        for kind in ("images", "labels"):
            for path in (target / f"{kind}{split}").iterdir():
                path.unlink()
    (target / "imagesVal").rmdir()
    (target / "labelsVal").rmdir()
    before = content(target)
    assert run("word", target, "-o", tmp_path / "raw", "--overwrite") == 1
    assert "lies in the output" in capsys.readouterr().err
    assert content(target) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--dataset-id", "0"], "--dataset-id is 0"),
        (["--dataset-id", "1000"], "--dataset-id is 1000"),
        (["--name", "../away"], "--name is '../away'"),
        (["--dataset-id", "5"], "holds Dataset005_Other, and nnU-Net allows a number only once"),
    ],
)
def test_output__number_or_name_that_nnunet_refuses__is_refused(
    covid: Path, tmp_path: Path, capsys: Any, options: list[str], says: str
) -> None:
    (tmp_path / "raw/Dataset005_Other").mkdir(parents=True)
    assert run("covid", covid, "-o", tmp_path / "raw", *options) == 1
    assert says in capsys.readouterr().err


def test_link__file_system_has_them__are_hard_links(
    covid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies otherwise, as on another disk; and a source that is a symbolic link becomes a file."""

    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    source = covid / "Train/volume-covid19-A-0003_ct.nii.gz"
    source.rename(tmp_path / "elsewhere.nii.gz")
    source.symlink_to(tmp_path / "elsewhere.nii.gz")
    for name, options in (("copied", []), ("linked", ["--link"]), ("refused", ["--link"])):
        if name == "refused":
            monkeypatch.setattr(os, "link", refuse)
        assert run("covid", covid, "-o", tmp_path / name, *options) == 0
        written = tmp_path / name / "Dataset201_COVID1920/imagesTr/volume-covid19-A-0003_0000.nii.gz"
        assert not written.is_symlink()
        assert written.read_bytes() == source.read_bytes()
        assert written.samefile(source) == (name == "linked")


def test_output__folder_cannot_be_made__is_said(covid: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "raw").write_text("a file")
    assert run("covid", covid, "-o", tmp_path / "raw") == 1
    assert capsys.readouterr().err.startswith("error: cannot write ")


def test_output__disk_full__is_said_and_nothing_is_left(
    covid: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rawdata.shutil, "copyfile", full)
    assert run("covid", covid, "-o", tmp_path / "raw") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.long
def test_output__killed__leaves_a_hidden_folder_at_most(covid: Path, tmp_path: Path) -> None:
    """The data set is not there until it is complete: killed before the last file, nothing carries its name."""
    code = (
        "import os, signal, sys\nfrom coarse2fine.convert import rawdata\nfrom coarse2fine.cli.convert import main\n"
        "rawdata._write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "covid", str(covid), "-o", str(tmp_path / "raw")]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    left = list((tmp_path / "raw").iterdir())
    assert len(left) == 1
    assert left[0].name.startswith(".c2f-")
    assert left[0].stat().st_mode & 0o777 == 0o700
    assert len(files(left[0])) == 5
    assert run("covid", covid, "-o", tmp_path / "raw") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt__while_reading__leaves_nothing(
    covid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The exit code names the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(rawdata, "judge", interrupt)
    try:
        assert run("covid", covid, "-o", tmp_path / "raw") == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
    assert list((tmp_path / "raw").iterdir()) == []


def test_next_commands__as_printed__are_understood(
    covid: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell splits them into what the commands take, also if the folder has a space."""
    raw = tmp_path / "my raw"
    assert run("covid", covid, "-o", raw, "--dataset-id", 9) == 0
    printed = capsys.readouterr().out.partition("next:\n")[2]
    split = subprocess.run(
        ["sh", "-c", f"set -f; for a in {printed.splitlines()[-1]}; do printf '%s\\0' \"$a\"; done"],
        env={"nnUNet_results": str(tmp_path / "my results")},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    options = infer_cli.build_parser().parse_args(split[1:-1])
    assert Path(options.input) == raw / "Dataset009_COVID1920/imagesTs"
    assert Path(options.coarse_model).parts[-2:] == ("Dataset009_COVID1920", "nnUNetTrainer__nnUNetPlans__3d_lowres")
    assert Path(options.fine_model).parts[-3:-1] == ("my results", "Dataset009_COVID1920")
    assert options.config == "covid"
    assert f"export nnUNet_raw='{raw}'\n" in printed
    assert "nnUNetv2_plan_and_preprocess -d 9 --verify_dataset_integrity" in printed
    assert "nnUNetv2_train 9 3d_lowres all\nnnUNetv2_train 9 3d_fullres all\n" in printed
    monkeypatch.setenv("nnUNet_raw", str(raw))
    assert run("covid", covid, "-o", raw, "--dataset-id", 9, "--overwrite") == 0
    assert "export" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["covid", "nowhere"], "cannot list nowhere"),
        (["covid", "."], "holds no file that ends in _ct.nii.gz"),
        (["word", "nowhere"], "holds no .nii.gz file"),
    ],
)
def test_source__not_the_data_set__is_said(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "-o", "raw") == 1
    assert says in capsys.readouterr().err
