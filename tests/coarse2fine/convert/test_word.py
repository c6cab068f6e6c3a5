"""c2f-convert on WORD: what is taken over, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import shared
from ct_cases import files, run

from coarse2fine.convert.word import LABELS


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
