"""c2f-convert on COVID-19-20, which is files already: what is taken over, what is refused, and what is left behind.

The published layout is built from small files; where developers have a real mask, it is converted, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import shared
from ct_cases import SHAPE, content, covid_case, ct, mask, run, save

from coarse2fine.io import find_cases, find_labelled_cases


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


def spoil_volume(name: str, voxels: np.ndarray, **geometry: Any) -> Callable[[Path], object]:
    return lambda train: save(train / f"volume-covid19-A-{name}.nii.gz", voxels, **geometry)


AGAIN = "Copy or unpack the data set again"
GRID = "Give the labels that were drawn on this image, or resample them to its grid"
LABEL = "Labels are whole numbers from 0 to 1: background, lesion"
SPACING = "It should lie between 0.05 and 20 mm: correct the header or the unit"


@pytest.mark.parametrize(
    ("spoil", "says", "remedy"),
    [
        (lambda train: (train / "volume-covid19-A-0003_seg.nii.gz").unlink(), "no labels of volume-covid19-A", AGAIN),
        (lambda train: (train / "volume-covid19-A-0003_ct.nii.gz").unlink(), "no image of volume-covid19-A", AGAIN),
        (spoil_volume("0003_seg", np.ones((4, 6, 9), np.uint8)), "shapes (z, y, x): 4, 6, 8 and 4, 6, 9", GRID),
        (spoil_volume("0003_seg", mask(), spacing=(0.7, 0.701, 2.5)), "spacings (z, y, x): 2.5, 0.7, 0.7 and", GRID),
        (spoil_volume("0003_seg", mask(), origin=(-166.0, 187.6, -339.9)), "origins (z, y, x)", GRID),
        (spoil_volume("0003_seg", mask(), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)), "different directions", GRID),
        (spoil_volume("0003_seg", mask(0, 2)), "values that are no label: 2", LABEL),
        (spoil_volume("0003_seg", mask().astype(np.int8) * -1), "values that are no label: -1", LABEL),
        (spoil_volume("0003_seg", mask().astype(np.float32) / 2), "values that are no label: 0.5", LABEL),
        (spoil_volume("0003_ct", np.full(SHAPE, np.inf, np.float32)), "NaN or infinite", ""),
        (spoil_volume("0003_ct", ct(), spacing=(700.0, 700.0, 2500.0)), "2500, 700, 700 mm (z, y, x)", SPACING),
        (spoil_volume("0003_ct", ct(), spacing=(0.7, 0.7, 0.0025)), "is not plausible", SPACING),
        (lambda train: (train / "volume-covid19-A-0003_ct.nii.gz").write_bytes(b"\x1f\x8b no"), "0003_ct.nii.gz", ""),
    ],
)
def test_covid__something_wrong__is_said_and_nothing_is_left(
    covid: Path, tmp_path: Path, capsys: Any, spoil: Callable[[Path], object], says: str, remedy: str
) -> None:
    """One message that names the case, no traceback, and no folder, hidden or not; mended as it says, all is well."""
    whole = content(covid)
    spoil(covid / "Train")
    assert run("covid", covid, "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert "0003" in said
    assert f"\n  {remedy}" in said
    assert not (tmp_path / "raw").exists() or not list((tmp_path / "raw").iterdir())
    for name, data in whole.items():
        (covid / name).write_bytes(data)
    assert run("covid", covid, "-o", tmp_path / "raw") == 0


def test_covid__several_cases_wrong__are_all_named(covid: Path, tmp_path: Path, capsys: Any) -> None:
    """Each with its problem; every remedy is said once, and followed all cases are converted."""
    whole = content(covid)
    for number in ("0003", "0011"):
        save(covid / f"Train/volume-covid19-A-{number}_seg.nii.gz", mask(0, 3))
    save(covid / "Validation/volume-covid19-A-0698_ct.nii.gz", ct(), spacing=(700.0, 700.0, 2500.0))
    assert run("covid", covid, "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert "3 of 3 cases cannot be used" in said
    assert all(f"{number}_seg.nii.gz holds values" in said for number in ("0003", "0011"))
    assert [said.count(remedy) for remedy in (LABEL, SPACING, "Nothing was written.")] == [1, 1, 1]
    for name, data in whole.items():
        (covid / name).write_bytes(data)
    assert run("covid", covid, "-o", tmp_path / "raw") == 0


def test_covid__incomplete_pairs__are_all_named(covid: Path, tmp_path: Path, capsys: Any) -> None:
    (covid / "Train/volume-covid19-A-0003_seg.nii.gz").unlink()
    (covid / "Train/volume-covid19-A-0011_ct.nii.gz").unlink()
    assert run("covid", covid, "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert "no image of volume-covid19-A-0011, no labels of volume-covid19-A-0003" in said
    assert "or move what has no partner to another folder" in said
    covid_case(covid / "Train", "0012", 4)
    for name in ("0003_ct", "0011_seg"):
        (covid / f"Train/volume-covid19-A-{name}.nii.gz").rename(tmp_path / f"{name}.nii.gz")
    assert run("covid", covid, "-o", tmp_path / "raw") == 0


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
    said = capsys.readouterr().err
    assert "no training case has a voxel of any label" in said
    assert "cases that have some, and do not hold all of these out" in said  # the run before did not
    save(covid / "Train/volume-covid19-A-0011_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    assert run("covid", covid, "-o", tmp_path / "other") == 1
    assert "no training case has a voxel of any label" in capsys.readouterr().err
    covid_case(covid / "Train", "0003", 1)
    assert run("covid", covid, "-o", tmp_path / "other") == 0


def test_covid__same_case_twice__is_an_error_and_odd_images_a_warning(covid: Path, tmp_path: Path, capsys: Any) -> None:
    assert run("covid", covid / "Train", covid, "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert "case volume-covid19-A-0003 is there twice" in said
    assert "Give only one." in said
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
