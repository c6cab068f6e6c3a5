"""Which files are a case, and where its result goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coarse2fine.errors import VolumeError
from coarse2fine.io import Case, LabelledCase, find_cases, find_labelled_cases, output_path

TWO_CASES = {"a": "a_0000.nii a_0001.nii", "b": "b_0000.mha b_0001.nii"}


def touch(folder: Path, names: str) -> None:
    for name in names.split():
        (folder / name).touch()


@pytest.mark.parametrize(
    ("files", "source", "channels", "expected"),
    [
        ("a.nii.gz", "a.nii.gz", 1, {"a": "a.nii.gz"}),
        ("a_0000.nii.gz", "a_0000.nii.gz", 1, {"a": "a_0000.nii.gz"}),
        ("scan_2020.nrrd", "scan_2020.nrrd", 1, {"scan_2020": "scan_2020.nrrd"}),
        ("a_0000.nii a_0001.nii b_0000.nii a_0000.mha", "a_0000.nii", 2, {"a": "a_0000.nii a_0001.nii"}),
        ("a_0000.nii a_0001.nii", "a_0001.nii", 2, {"a": "a_0000.nii a_0001.nii"}),
        ("b_1_0000.mha a_0000.nii.gz x.txt .a_0001.mha", "", 1, {"a": "a_0000.nii.gz", "b_1": "b_1_0000.mha"}),
        ("b.mha a.nii.gz scan_2020.nii", "", 1, {"a": "a.nii.gz", "b": "b.mha", "scan_2020": "scan_2020.nii"}),
        ("b_0001.nii b_0000.mha a_0001.nii a_0000.nii", "", 2, TWO_CASES),
    ],
)  # fmt: skip
def test_find_cases__complete_files__groups_channels_by_case(
    tmp_path: Path, files: str, source: str, channels: int, expected: dict[str, str]
) -> None:
    """Single files and folders give sorted cases with their channels in order."""
    touch(tmp_path, files)
    found = find_cases(tmp_path / source, channels)
    assert {case.name: " ".join(file.name for file in case.files) for case in found} == expected
    assert [case.name for case in found] == sorted(expected)
    assert all(case.files[0].name.endswith(case.suffix) for case in found)


@pytest.mark.parametrize(
    ("files", "source", "channels", "message"),
    [
        ("", "a.nii.gz", 1, "does not exist"),
        ("a.txt", "a.txt", 1, "unknown file type"),
        ("a.txt .a_0000.nii", "", 1, "holds no volume"),
        ("a.nii.gz", "a.nii.gz", 2, r"a_0000\.nii\.gz to a_0001\.nii\.gz"),
        ("a_0000.nii", "a_0000.nii", 3, "missing a_0001, a_0002"),
        ("a_0000.nii a_0001.nii b_0001.nii", "", 2, "case b.*missing b_0000"),
        ("a_0000.nii a_0001.nii", "", 1, r"case a.*extra a_0001\.nii"),
        ("a_0000.nii b.nii", "", 1, r"b\.nii has no channel number"),
        ("a_0000.nii a_0000.nrrd", "", 1, r"both .*a_0000\.nii and .*a_0000\.nrrd"),
        ("a.nii a.nrrd", "", 1, r"both .*a\.nii and .*a\.nrrd"),
    ],
)
def test_find_cases__wrong_files__names_them(
    tmp_path: Path, files: str, source: str, channels: int, message: str
) -> None:
    """Nothing is skipped or guessed silently: each problem names the case or the file."""
    touch(tmp_path, files)
    with pytest.raises(VolumeError, match=message):
        find_cases(tmp_path / source, channels)


def test_output_path__file_or_folder__keeps_the_format() -> None:
    """Results are named after the case and have its format where labels can be written in it."""
    case = Case("a", (Path("in/a_0000.nrrd"),), ".nrrd")
    assert output_path(case, Path("out"), is_folder=True) == Path("out/a.nrrd")
    assert output_path(case, Path("out/b.nii.gz"), is_folder=False) == Path("out/b.nii.gz")
    assert output_path(replace(case, suffix=".mhd"), Path("out"), is_folder=True) == Path("out/a.mha")


def lay_out(folder: Path, part: str, images: str, labels: str) -> None:
    for name, files in (("images", images), ("labels", labels)):
        (folder / f"{name}{part}").mkdir(parents=True)
        touch(folder / f"{name}{part}", files)


@pytest.mark.parametrize("part", ["Tr", "Ts"])
def test_find_labelled_cases__raw_layout__pairs_images_and_labels(part: str, tmp_path: Path) -> None:
    """Channels in order, labels in any format that can be read, other files and the other part left alone."""
    lay_out(tmp_path, part, "b_0001.nii.gz b_0000.nii.gz a_0000.mha a_0001.mha", "a.nii.gz b.nrrd unused.nii.gz")
    lay_out(tmp_path, {"Tr": "Ts", "Ts": "Tr"}[part], "c_0000.nii.gz c_0001.nii.gz", "c.nii.gz")
    touch(tmp_path, "dataset.json")
    images, labels = tmp_path / f"images{part}", tmp_path / f"labels{part}"
    assert find_labelled_cases(tmp_path, 2, part=part) == [
        LabelledCase("a", (images / "a_0000.mha", images / "a_0001.mha"), labels / "a.nii.gz"),
        LabelledCase("b", (images / "b_0000.nii.gz", images / "b_0001.nii.gz"), labels / "b.nrrd"),
    ]


@pytest.mark.parametrize("missing", ["imagesTr", "labelsTr", "labelsTr/c1.nii.gz", "imagesTr/c1_0000.nii.gz"])
def test_find_labelled_cases__something_missing__is_told_by_its_name(tmp_path: Path, missing: str) -> None:
    """A folder, the labels of an image, or all images; the message names the path and what to do."""
    folder = tmp_path / "data"
    lay_out(folder, "Tr", "c0_0000.nii.gz c1_0000.nii.gz", "c0.nii.gz c1.nii.gz")
    gone = folder / missing
    if missing == "imagesTr/c1_0000.nii.gz":
        (folder / "imagesTr" / "c0_0000.nii.gz").unlink()
    if gone.is_dir():
        gone.rename(tmp_path / "elsewhere")
    else:
        gone.unlink()
    with pytest.raises(VolumeError) as error:
        find_labelled_cases(folder, 1)
    said = str(error.value)
    assert str(folder / "imagesTr" if missing == "imagesTr/c1_0000.nii.gz" else gone) in said
    if missing.endswith("c1.nii.gz"):
        assert "case c1 has no labels" in said
