"""DICOM files that are no volume: each is refused in one line, and what that proposes helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import change, make_slice, write_series
from infer_runs import OBLIQUE
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
)

from coarse2fine.errors import VolumeError
from coarse2fine.io import Grid, read_volume
from coarse2fine.io.dicom import members, series
from coarse2fine.io.files.cases import find_cases
from coarse2fine.io.files.readers import READERS
from coarse2fine.measures import measure

SHAPE = (7, 9, 11)
TURNED = replace(OBLIQUE, shape=SHAPE, spacing=(2.5, 0.7, 0.9))


def stored() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4095, SHAPE, endpoint=True).astype(np.uint16)


def move_others(folder: Path, keep: Callable[[pydicom.Dataset], bool]) -> None:
    """Does what messages say: files that do not belong here go to a folder of their own."""
    other = folder.parent / "elsewhere"
    other.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        if not keep(pydicom.dcmread(file, force=True)):
            file.rename(other / file.name)


def second_series(folder: Path, files: list[Path]) -> None:
    other = {"SeriesInstanceUID": "1.2.3", "SeriesNumber": 901, "SeriesDescription": "Scout", "Modality": "CT"}
    make_slice(stored()[0], TURNED, 0, **other).save_as(folder / "scout", enforce_file_format=True)


def a_report(folder: Path, files: list[Path]) -> None:
    change(files[3], SeriesInstanceUID="1.2.4", Modality="SR", PixelData=None, Rows=None, Columns=None)
    files[3].rename(folder / "report")
    write_series(folder, stored(), TURNED)


def copied(folder: Path, files: list[Path]) -> None:
    (folder / "copy").write_bytes(files[2].read_bytes())


def gone(folder: Path, files: list[Path]) -> None:
    files[3].unlink()


def tilted(folder: Path, files: list[Path]) -> None:
    for index, file in enumerate(files):
        position = [float(part) for part in pydicom.dcmread(file).ImagePositionPatient]
        position[1] += index * 0.3
        change(file, ImagePositionPatient=[f"{part:.6f}" for part in position])


def uneven(folder: Path, files: list[Path]) -> None:
    position = [float(part) for part in pydicom.dcmread(files[3]).ImagePositionPatient]
    normal = np.reshape(TURNED.cosines, (3, 3))[:, 2]
    change(files[3], ImagePositionPatient=[f"{part:.6f}" for part in position + 0.2 * normal])


def scout(folder: Path, files: list[Path]) -> None:
    change(files[2], ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"])


def larger(folder: Path, files: list[Path]) -> None:
    make_slice(np.zeros((4, 4), np.uint16), TURNED, 9, SeriesInstanceUID=series_of(files)).save_as(
        folder / "large", enforce_file_format=True
    )


def series_of(files: list[Path]) -> str:
    return str(pydicom.dcmread(files[0]).SeriesInstanceUID)


def each(**changes: Any) -> Callable[[Path, list[Path]], None]:
    def alter(folder: Path, files: list[Path]) -> None:
        for file in files:
            change(file, **changes)

    return alter


def one(**changes: Any) -> Callable[[Path, list[Path]], None]:
    return lambda folder, files: change(files[2], **changes)


def cut(folder: Path, files: list[Path]) -> None:
    files[2].write_bytes(files[2].read_bytes()[:-40])


def no_dicom(folder: Path, files: list[Path]) -> None:
    (folder / "IM9.dcm").write_bytes(b"nothing")


def coloured(folder: Path, files: list[Path]) -> None:
    for file in files:
        colours = np.zeros((9, 11, 3), np.uint8).tobytes()
        values = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PlanarConfiguration": 0, "PixelData": colours}
        change(file, SamplesPerPixel=3, PhotometricInterpretation="RGB", **values)


def several_frames(folder: Path, files: list[Path]) -> None:
    change(files[0], NumberOfFrames=2, PixelData=bytes(2 * 2 * 9 * 11))
    for file in files[1:]:
        file.unlink()


REFUSED: dict[str, tuple[Callable[[Path, list[Path]], None], str]] = {
    "mixed series": (second_series, r"holds 2 series: CT 2 THORAX 2.0 \(7 files\), CT 901 Scout \(1 file\)"),
    "a report among images": (a_report, r"holds 2 series: .*\(7 files\), SR 2 THORAX 2.0 \(1 file\)"),
    "a slice twice": (copied, "lie in the same place"),
    "a slice missing": (gone, r"are 5 mm, elsewhere 2.5 mm: 1 slice\(s\) seem to be missing \(at most 5% may differ\)"),
    "tilt": (tilted, "the gantry was tilted"),
    "uneven": (uneven, "slices lie unevenly"),
    "scout in the series": (scout, "differ in ImageOrientationPatient"),
    "other size": (larger, r"differ in rows and columns: \[.*4, 4\]|differ in rows and columns: \[4, 4\]"),
    "other spacing": (one(PixelSpacing=["0.7", "0.8"]), "differ in PixelSpacing"),
    "colour": (coloured, r"is a colour image \(RGB, 3 sample\(s\) per pixel\)"),
    "palette": (each(PhotometricInterpretation="PALETTE COLOR"), "is a colour image"),
    "inverted": (each(PhotometricInterpretation="MONOCHROME1"), "shows high values dark"),
    "several frames": (several_frames, "holds 2 frames: multi-frame objects are not read"),
    "frames in one file": (each(PerFrameFunctionalGroupsSequence=[pydicom.Dataset()]), "holds several frames"),
    "mosaic": (each(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "side by side in one image"),
    "dose": (each(DoseGridScaling="0.001"), "holds a dose"),
    "table of values": (each(ModalityLUTSequence=[pydicom.Dataset()]), "true values in a table"),
    "odd bits": (each(HighBit=14), "HighBit is '14', but 15 should be there"),
    "values beyond single precision": (each(RescaleSlope="1e36"), "finite in single precision"),
    "no position": (one(ImagePositionPatient=None), "does not say its ImagePositionPatient"),
    "no orientation": (each(ImageOrientationPatient=None), "does not say its ImageOrientationPatient"),
    "no spacing": (each(PixelSpacing=None), "does not say its PixelSpacing"),
    "spacing nan": (each(PixelSpacing=["nan", "1"]), "finite numbers|cannot be read"),
    "spacing 0": (each(PixelSpacing=["0", "1"]), "two positive numbers"),
    "orientation of no directions": (each(ImageOrientationPatient=["1", "0", "0", "1", "0", "0"]), "right angles"),
    "slope 0": (each(RescaleSlope="0"), "RescaleSlope is '0', but a number other than 0"),
    "truncated": (cut, "truncated or damaged|cannot be read"),
    "no voxels": (one(PixelData=None), "cannot be read|more than its"),
    "misnamed": (no_dicom, "is no DICOM file, although its name says so"),
    "huge": (each(Rows=60000, Columns=60000), "more than its"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_read_volume__series_that_is_no_volume__is_refused(kind: str, tmp_path: Path) -> None:
    """One clear error with a remedy, whatever is wrong."""
    break_it, message = REFUSED[kind]
    break_it(tmp_path / "s", write_series(tmp_path / "s", stored(), TURNED))
    with pytest.raises(VolumeError, match=message) as caught:
        read_volume([tmp_path / "s"])
    assert caught.value.remedy
    assert "\n" not in caught.value.problem


def test_remedy__several_series__each_is_read_from_a_folder_of_its_own(tmp_path: Path) -> None:
    """Files of equal SeriesInstanceUID are moved together."""
    files = write_series(tmp_path / "s", stored(), TURNED)
    second_series(tmp_path / "s", files)
    move_others(tmp_path / "s", lambda content: content.SeriesInstanceUID == series_of(files))
    assert read_volume([tmp_path / "s"]).grid.shape == SHAPE
    assert read_volume([tmp_path / "elsewhere"]).grid.shape == (1, 9, 11)


def test_remedy__two_phases__each_is_read_from_a_folder_of_its_own(tmp_path: Path) -> None:
    """Two volumes of one series lie in the same place."""
    write_series(tmp_path / "s", stored(), TURNED, AcquisitionNumber=1)
    for file in write_series(tmp_path / "t", stored(), TURNED, AcquisitionNumber=2):
        file.rename(tmp_path / "s" / f"second_{file.name}")
    with pytest.raises(VolumeError, match="so do 7 pairs of slices") as caught:
        read_volume([tmp_path / "s"])
    assert caught.value.remedy == "Move those of one volume into a folder of their own."
    move_others(tmp_path / "s", lambda content: content.AcquisitionNumber == 1)
    assert read_volume([tmp_path / "s"]).grid == read_volume([tmp_path / "elsewhere"]).grid


@pytest.mark.parametrize("how", ["deflated", "JPEG lossless", "MONOCHROME1"])
def test_remedy__packed_in_another_way__simpleitk_converts_it(how: str, tmp_path: Path) -> None:
    """The conversion that the message tells is done to the letter."""
    for file in write_series(tmp_path / "s", stored(), TURNED, BitsStored=12, HighBit=11):
        if how == "MONOCHROME1":
            change(file, PhotometricInterpretation="MONOCHROME1")
        elif how == "deflated":
            content = pydicom.dcmread(file)
            content.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
            content.save_as(file)
        else:
            packed_by_gdcm(file)
    with pytest.raises(
        VolumeError, match=r"packed in a way that is not unpacked here: (Defl|JPEG Loss)|dark"
    ) as caught:
        read_volume([tmp_path / "s"])
    assert "WriteImage(ReadImage(ImageSeriesReader.GetGDCMSeriesFileNames(FOLDER)), NEW)" in caught.value.remedy
    new = tmp_path / "new.nii.gz"
    sitk.WriteImage(sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "s"))), str(new))
    assert read_volume([new]).grid.shape == SHAPE


def packed_by_gdcm(file: Path) -> None:
    """As JPEG lossless, which is what archives use most; positions are kept."""
    content = pydicom.dcmread(file)
    image = sitk.ReadImage(str(file))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    target = file.with_suffix(".dcm")
    writer.SetFileName(str(target))
    writer.Execute(sitk.Cast(image, sitk.sitkInt16))
    packed = pydicom.dcmread(target)
    target.unlink()
    content.PixelData = packed.PixelData
    content["PixelData"].VR = "OB"
    content.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    content.save_as(file)


def test_remedy__several_frames__simpleitk_converts_them(tmp_path: Path) -> None:
    """The conversion that the message tells is done to the letter."""
    several_frames(tmp_path / "s", files := write_series(tmp_path / "s", stored(), TURNED))
    with pytest.raises(VolumeError, match="holds 2 frames") as caught:
        read_volume([tmp_path / "s"])
    assert "WriteImage(ReadImage(OLD), NEW)" in caught.value.remedy
    sitk.WriteImage(sitk.ReadImage(str(files[0])), str(tmp_path / "new.nii.gz"))
    assert read_volume([tmp_path / "new.nii.gz"]).grid.shape == (2, 9, 11)


def test_remedy__tilt__simpleitk_puts_it_at_right_angles(tmp_path: Path) -> None:
    """What is resampled as the message says is read, and a ball is where it was."""
    grid = Grid((20, 32, 32), (2.5, 0.7, 0.7), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    z, y, x = np.indices(grid.shape)
    place = np.stack([0.7 * x, 0.7 * y + 0.3 * z, 2.5 * z])  # of each voxel, (x, y, z)
    centre = np.array([11.0, 14.0, 25.0])
    ball = np.linalg.norm(place - centre.reshape(3, 1, 1, 1), axis=0) < 6
    tilted(tmp_path / "s", write_series(tmp_path / "s", (ball * 1000).astype(np.uint16), grid, RescaleIntercept="0"))
    with pytest.raises(VolumeError, match="the gantry was tilted") as caught:
        read_volume([tmp_path / "s"])
    assert "ImageSeriesReader with ForceOrthogonalDirectionOff, then Resample" in caught.value.remedy
    reader = sitk.ImageSeriesReader()
    reader.ForceOrthogonalDirectionOff()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "s")))
    size, spacing, direction = (32, 40, 20), (0.7, 0.7, 2.5), np.eye(3).ravel().tolist()
    straight = sitk.Resample(
        reader.Execute(), size, sitk.Transform(), sitk.sitkLinear, (0.0, 0.0, 0.0), spacing, direction
    )
    sitk.WriteImage(straight, str(tmp_path / "new.nii.gz"))
    (found,) = measure(sitk.GetArrayFromImage(straight) > 500, read_volume([tmp_path / "new.nii.gz"]))
    assert found.place is not None
    np.testing.assert_allclose(found.place.centroid, centre, atol=0.2)


def test_remedy__steps_that_change_slowly__a_part_is_read(tmp_path: Path) -> None:
    """Each step is close to the usual one, but together they lead off the grid."""
    grid = Grid((60, 4, 4), (3.0, 1.0, 1.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    files = [tmp_path / "s" / f"{index}" for index in range(60)]
    (tmp_path / "s").mkdir()
    for index, file in enumerate(files):
        position = ["0", "0", f"{3 * index - 0.12 * max(0, index - 30):.6f}"]
        content = make_slice(
            np.zeros((4, 4), np.uint16), grid, index, SeriesInstanceUID="1.2.3", ImagePositionPatient=position
        )
        content.save_as(file, enforce_file_format=True)
    with pytest.raises(VolumeError, match=r"change from 2.88 to 3 mm, so that .* lies 1.77 mm from an even") as caught:
        read_volume([tmp_path / "s"])
    assert "give the part of the series that has one" in caught.value.remedy
    for file in files[:30]:
        file.unlink()
    assert read_volume([tmp_path / "s"]).grid.spacing[0] == pytest.approx(2.88)


def both_kinds(folder: Path) -> Path:
    (folder / "s" / "scan.nii.gz").write_bytes(b"")
    return folder / "s"


@pytest.mark.parametrize(
    ("name", "channels", "message", "remedy"),
    [
        ("s/IM0000", 1, "is one file of a DICOM series", "Name the folder"),
        (".", 1, "its folder s holds DICOM files", "Name the folder of a series"),
        ("s", 2, "is one channel; the model has 2", "named CASE_0000.nii.gz, CASE_0001.nii.gz"),
    ],
)
def test_find_cases__dicom_that_is_no_case__is_refused(
    name: str, channels: int, message: str, remedy: str, tmp_path: Path
) -> None:
    """The message says what would be one."""
    write_series(tmp_path / "s", stored(), TURNED)
    with pytest.raises(VolumeError, match=message) as caught:
        find_cases(tmp_path / name, channels)
    assert remedy in caught.value.remedy


def test_find_cases__series_where_none_will_do__is_refused(tmp_path: Path) -> None:
    """nnU-Net's own commands read none; converted as the message says, it is a case."""
    write_series(tmp_path / "s", stored(), TURNED)
    with pytest.raises(VolumeError, match="which only c2f-infer reads") as caught:
        find_cases(tmp_path / "s", 1, (".nii.gz",), series=False)
    assert "convert the series to a file" in caught.value.remedy
    (tmp_path / "n").mkdir()
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "s"))
    sitk.WriteImage(sitk.ReadImage(names), str(tmp_path / "n" / "s_0000.nii.gz"))
    assert [case.name for case in find_cases(tmp_path / "n", 1, (".nii.gz",), series=False)] == ["s"]


def test_read_volume__model_whose_reader_takes_tiff_only__is_refused(tmp_path: Path) -> None:
    """As any other file that its reader does not read."""
    write_series(tmp_path / "s", stored(), TURNED)
    with pytest.raises(VolumeError, match="the model's reader Tiff3DIO does not read DICOM files"):
        read_volume([tmp_path / "s"], [READERS["Tiff3DIO"]])


def test_docs__limits__are_those_of_the_code() -> None:
    """docs/dicom.md names the tolerances."""
    page = (Path(__file__).parents[4] / "docs" / "dicom.md").read_text(encoding="utf-8")
    limits = (
        f"differs from the median by more than {100 * series._UNEVEN:.0f} %",
        f"more than {series._TILT:g} of the way along",
        f"to over {members._MOST_SHRUNK} times their size (and {members._PLAIN >> 30} GiB)",
    )
    assert [limit for limit in limits if limit not in page] == []
    assert (series._DRIFT, series._ASIDE) == (0.5, 0.1)


def test_find_cases__both_kinds_in_a_folder__are_refused(tmp_path: Path) -> None:
    """Nobody knows which of them is meant; once one is moved, the other is found."""
    write_series(tmp_path / "s", stored(), TURNED)
    both_kinds(tmp_path)
    with pytest.raises(VolumeError, match=r"both DICOM files and other volumes, such as scan.nii.gz"):
        find_cases(tmp_path / "s", 1)
    (tmp_path / "s" / "scan.nii.gz").rename(tmp_path / "scan.nii.gz")
    assert len(find_cases(tmp_path / "s", 1)) == 1
