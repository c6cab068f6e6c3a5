"""Data sets whose labels are made of another one's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from conftest import import_benchmark
from raw_data import save_case

derived = import_benchmark("training.derived")
merging = import_benchmark("common.merging")
trainer = import_benchmark("training.trainer")


def test_merge_labels__left_and_right__become_one_and_others_background() -> None:
    """Values count from 1 in the order of the names, whatever they were before."""
    found = merging.merge_labels(np.array([[0, 1, 2], [3, 4, 17]]), {"amygdala": (3, 4), "accumbens": (1, 2)})
    assert found.tolist() == [[0, 2, 2], [1, 1, 0]]


def test_derive__a_raw_data_set__has_the_same_images_and_merged_labels(tmp_path: Path) -> None:
    """In nnU-Net's layout, without test cases; what is there is left as it is."""
    source, target = tmp_path / "Dataset001_All", tmp_path / "work" / "Dataset002_Few"
    labels = np.random.default_rng(0).integers(0, 6, (4, 5, 6))
    for split in ("Tr", "Ts"):
        save_case(source, split, "a", labels.astype(np.uint8) * 10, labels)
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (source / "dataset.json").write_text(json.dumps(about))
    derived.derive(source, target, {"few": (2, 5)})
    found = sitk.ReadImage(str(target / "labelsTr" / "a.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(found), np.isin(labels, (2, 5)))
    assert found.GetSpacing() == sitk.ReadImage(str(source / "labelsTr" / "a.nii.gz")).GetSpacing()
    image = target / "imagesTr" / "a_0000.nii.gz"
    assert image.read_bytes() == (source / "imagesTr" / "a_0000.nii.gz").read_bytes()
    assert json.loads((target / "dataset.json").read_text())["labels"] == {"background": 0, "few": 1}
    assert not (target / "labelsTs").exists()
    before = (target / "dataset.json").stat().st_mtime_ns
    derived.derive(source, target, {"few": (2, 5)})
    assert (target / "dataset.json").stat().st_mtime_ns == before


def test_two_folds__any_cases__each_is_left_out_once() -> None:
    """What one half learns from, the other has never seen."""
    cases = [f"case{number}" for number in range(7)]
    first, second = trainer.two_folds(cases)
    assert sorted(first["val"] + second["val"]) == cases
    for fold in (first, second):
        assert sorted(fold["train"] + fold["val"]) == cases
        assert abs(len(fold["train"]) - len(fold["val"])) == 1
