"""DICOM series, compared with SimpleITK's reader, which stands on GDCM."""

from __future__ import annotations

import random
import zipfile
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
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from coarse2fine.errors import VolumeError
from coarse2fine.io import Grid, read_volume
from coarse2fine.io.files.cases import find_cases
from coarse2fine.io.files.readers import READERS, look_with

SHAPE = (7, 9, 11)
TURNED = replace(OBLIQUE, shape=SHAPE, spacing=(2.5, 0.7, 0.9))
SAGITTAL = Grid(SHAPE, (1.5, 0.7, 0.9), origin=(7.0, -3.0, 20.0), direction=(0, 0, -1, 1, 0, 0, 0, -1, 0))
BACKWARDS = Grid(SHAPE, (3.0, 0.7, 0.9), origin=(7.0, -3.0, 20.0), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))


def stored(kind: str = "uint16", low: int = 0, high: int = 4095) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, SHAPE, endpoint=True).astype(kind)


def by_simpleitk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def assert_same(folder: Path, expected: sitk.Image) -> None:
    """Voxels and geometry are those of an image."""
    volume = read_volume([folder])
    np.testing.assert_allclose(volume.channels[0], sitk.GetArrayFromImage(expected), rtol=1e-6)
    np.testing.assert_allclose(volume.grid.spacing[::-1], expected.GetSpacing(), rtol=1e-7)
    np.testing.assert_allclose(volume.grid.origin[::-1], expected.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(volume.grid.cosines, expected.GetDirection(), atol=1e-6)


KINDS: dict[str, tuple[np.ndarray, dict[str, Any], type]] = {
    "unsigned": (stored(), {}, np.float32),
    "12 bits": (stored(), {"BitsStored": 12, "HighBit": 11}, np.int16),
    "12 bits signed": (stored("int16", -2048, 2047), {"BitsStored": 12, "HighBit": 11}, np.int16),
    "signed without rescale": (stored("int16", -9, 9), {"RescaleSlope": None, "RescaleIntercept": None}, np.int16),
    "unsigned without rescale": (stored(high=65535), {"RescaleSlope": None, "RescaleIntercept": None}, np.uint16),
    "8 bits": (stored("uint8", 0, 255), {"RescaleSlope": "3"}, np.int16),
    "32 bits": (stored("int32", -100000, 100000), {"RescaleIntercept": "0"}, np.float32),
    "broken slope": (stored(), {"RescaleSlope": "0.37", "RescaleIntercept": "-5.5"}, np.float32),
    "MR": (stored(), {"SOPClassUID": MRImageStorage, "Modality": "MR", "RescaleSlope": "2"}, np.float32),
}


@pytest.mark.parametrize("kind", KINDS)
def test_read_volume__series__has_simpleitks_voxels_in_the_smallest_exact_type(kind: str, tmp_path: Path) -> None:
    """Rescaled, as 16-bit integers where the header promises that they fit."""
    voxels, changes, dtype = KINDS[kind]
    write_series(tmp_path / "s", voxels, TURNED, **changes)
    assert_same(tmp_path / "s", by_simpleitk(tmp_path / "s"))
    volume = read_volume([tmp_path / "s"])
    assert volume.channels[0].dtype == dtype
    assert (volume.name, volume.grid.unit) == ("s", "mm")


@pytest.mark.parametrize("grid", [TURNED, SAGITTAL, BACKWARDS], ids=["oblique", "sagittal", "backwards"])
def test_read_volume__series__lies_where_simpleitk_says(grid: Grid, tmp_path: Path) -> None:
    """Slices are sorted by where they lie; neither names nor numbers say it."""
    files = write_series(tmp_path / "s", stored(), grid)
    assert [file.name for file in files] != sorted(file.name for file in files)
    assert_same(tmp_path / "s", by_simpleitk(tmp_path / "s"))


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient"])
@pytest.mark.parametrize("grid", [TURNED, SAGITTAL, BACKWARDS], ids=["oblique", "sagittal", "backwards"])
def test_look_with__series__is_as_the_nifti_file_of_it(grid: Grid, reader: str, tmp_path: Path) -> None:
    """Every reader shows the network what it would show of the series' NIfTI file, as SimpleITK writes it."""
    write_series(tmp_path / "s", stored(), grid)
    sitk.WriteImage(by_simpleitk(tmp_path / "s"), str(tmp_path / "s.nii.gz"))
    mine, theirs = (
        look_with(READERS[reader], read_volume([tmp_path / name], [READERS[reader]]))[0] for name in ("s", "s.nii.gz")
    )
    assert mine.turn == theirs.turn
    np.testing.assert_allclose(mine.spacing, theirs.spacing, rtol=1e-6)
    np.testing.assert_allclose(mine.corner, theirs.corner, atol=1e-4)
    np.testing.assert_allclose(mine.steps, theirs.steps, atol=1e-5)


def test_read_volume__slope_of_each_slice__is_applied_to_it(tmp_path: Path) -> None:
    """As of PET, where every slice has its own."""
    voxels = stored()
    for index, file in enumerate(write_series(tmp_path / "s", voxels, TURNED)):
        change(file, RescaleSlope=str(index + 0.5), RescaleIntercept="1")
    expected = voxels * (np.arange(7) + 0.5)[:, None, None] + 1
    np.testing.assert_allclose(read_volume([tmp_path / "s"]).channels[0], expected)


def test_read_volume__bits_above_the_stored_ones__are_no_values(tmp_path: Path) -> None:
    """Old files keep overlays there; GDCM clears them, too."""
    voxels = stored() | 0xA000
    write_series(tmp_path / "s", voxels, TURNED, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read_volume([tmp_path / "s"]).channels[0], (voxels & 0xFFF).astype(int) - 1024)


SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=[syntax.keyword for syntax in SYNTAXES])
def test_read_volume__packed_series__has_the_same_voxels(syntax: Any, tmp_path: Path) -> None:
    """What pydicom unpacks by itself, or with what is installed anyway."""
    voxels = stored("uint16", 0, 4095)
    for file in write_series(tmp_path / "s", voxels, TURNED, BitsStored=12, HighBit=11):
        content = pydicom.dcmread(file)
        if syntax == ExplicitVRBigEndian:
            content.PixelData = content.pixel_array.astype(">u2").tobytes()
            content.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(file, content, implicit_vr=False, little_endian=False)
            continue
        if syntax == JPEG2000Lossless:
            pack_as_jpeg2000(file, content)
            continue
        if syntax.is_compressed:
            content.compress(syntax, generate_instance_uid=False)
        content.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(file, content, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    np.testing.assert_array_equal(read_volume([tmp_path / "s"]).channels[0], voxels.astype(int) - 1024)


def pack_as_jpeg2000(file: Path, content: pydicom.Dataset) -> None:
    """By Pillow, which is there wherever matplotlib is."""
    import io

    from PIL import Image
    from pydicom.encaps import encapsulate

    packed = io.BytesIO()
    Image.fromarray(content.pixel_array).save(packed, format="JPEG2000", irreversible=False, no_jp2=True)
    content.PixelData = encapsulate([packed.getvalue()])
    content["PixelData"].VR = "OB"
    content.file_meta.TransferSyntaxUID = JPEG2000Lossless
    pydicom.dcmwrite(file, content)


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_read_volume__zip_file__is_as_the_folder_in_it(how: int, tmp_path: Path) -> None:
    """Whatever it is called and whatever else is in it; nothing is unpacked to the disk, wherever names point to."""
    files = write_series(tmp_path / "s", stored(), TURNED)
    (tmp_path / "z").mkdir()
    packed = tmp_path / "z" / "scan.zip"
    with zipfile.ZipFile(packed, "w", how) as archive:
        for number, file in enumerate(files):
            archive.write(file, f"../../{'deep/' * (number % 3)}{file.name}")
        archive.writestr("DICOMDIR", bytes(128) + b"DICM")
        archive.writestr("__MACOSX/._IM0001", b"x")
        archive.writestr("notes.txt", b"read me")
    before = sorted(tmp_path.rglob("*"))
    volume, folder = read_volume([packed]), read_volume([tmp_path / "s"])
    assert sorted(tmp_path.rglob("*")) == before
    np.testing.assert_array_equal(volume.channels[0], folder.channels[0])
    assert (volume.grid, volume.name) == (folder.grid, "scan")
    assert [(case.name, case.files, case.suffix) for case in find_cases(packed, 1)] == [("scan", (packed,), ".dcm")]


def test_read_volume__other_files_in_the_folder__are_passed_over(tmp_path: Path) -> None:
    """Notes, hidden files and the index of a disc are no slices; folders below are not looked into."""
    write_series(tmp_path / "s", stored(), TURNED)
    write_series(tmp_path / "s" / "below", stored(), TURNED, SeriesInstanceUID=generate_uid())
    (tmp_path / "s" / "notes.txt").write_text("x")
    (tmp_path / "s" / ".hidden").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "s" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert read_volume([tmp_path / "s"]).grid.shape == SHAPE


def test_read_volume__rounded_positions__are_even(tmp_path: Path) -> None:
    """Scanners write a hundredth of a millimetre, and steps of 0.625 mm."""
    grid = replace(BACKWARDS, spacing=(0.625, 0.5, 0.5))
    for index, file in enumerate(write_series(tmp_path / "s", stored(), grid)):
        change(file, ImagePositionPatient=["20", "-3", f"{7 + 0.625 * index:.2f}"])
    assert read_volume([tmp_path / "s"]).grid.spacing[0] == pytest.approx(0.625, abs=0.002)


def test_read_volume__one_slice__is_as_thick_as_it_says(tmp_path: Path) -> None:
    """There is no second position to take it from."""
    write_series(tmp_path / "s", stored()[:1], TURNED)
    assert read_volume([tmp_path / "s"]).grid.shape == (1, 9, 11)
    assert read_volume([tmp_path / "s"]).grid.spacing[0] == 2.5


def test_find_cases__folder__is_told_by_content(tmp_path: Path) -> None:
    """A series is one case that is named after its folder."""
    write_series(tmp_path / "s", stored(), TURNED)
    assert [(case.name, case.files, case.suffix) for case in find_cases(tmp_path / "s", 1)] == [
        ("s", (tmp_path / "s",), ".dcm")
    ]


# --- what is refused -------------------------------------------------------------------------------------------------


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
    "mixed series": (second_series, r"holds 2 series: CT 2 THORAX 2.0 \(7 files\), CT 901 Scout \(1 files\)"),
    "a report among images": (a_report, r"holds 2 series: .*\(7 files\), SR 2 THORAX 2.0 \(1 files\)"),
    "a slice twice": (copied, "lie in the same place"),
    "a slice missing": (gone, r"are 5 mm, elsewhere 2.5 mm: 1 slice\(s\) seem to be missing \(at most 5% may differ\)"),
    "tilt": (tilted, "the gantry was tilted"),
    "scout in the series": (scout, "differ in ImageOrientationPatient"),
    "other size": (larger, r"differ in rows and columns: \[.*4, 4\]|differ in rows and columns: \[4, 4\]"),
    "other spacing": (one(PixelSpacing=["0.7", "0.8"]), "differ in PixelSpacing"),
    "colour": (coloured, r"is a colour image \(RGB, 3 sample\(s\) per pixel\)"),
    "palette": (each(PhotometricInterpretation="PALETTE COLOR"), "is a colour image"),
    "inverted": (each(PhotometricInterpretation="MONOCHROME1"), "shows high values dark"),
    "several frames": (several_frames, r"holds several frames \(2\)"),
    "no position": (one(ImagePositionPatient=None), "does not say its ImagePositionPatient"),
    "no orientation": (each(ImageOrientationPatient=None), "does not say its ImageOrientationPatient"),
    "no spacing": (each(PixelSpacing=None), "does not say its PixelSpacing"),
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
    with pytest.raises(VolumeError, match="several frames") as caught:
        read_volume([tmp_path / "s"])
    assert "WriteImage(ReadImage(OLD), NEW)" in caught.value.remedy
    sitk.WriteImage(sitk.ReadImage(str(files[0])), str(tmp_path / "new.nii.gz"))
    assert read_volume([tmp_path / "new.nii.gz"]).grid.shape == (2, 9, 11)


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


def test_find_cases__both_kinds_in_a_folder__are_refused(tmp_path: Path) -> None:
    """Nobody knows which of them is meant; once one is moved, the other is found."""
    write_series(tmp_path / "s", stored(), TURNED)
    both_kinds(tmp_path)
    with pytest.raises(VolumeError, match=r"both DICOM files and other volumes, such as scan.nii.gz"):
        find_cases(tmp_path / "s", 1)
    (tmp_path / "s" / "scan.nii.gz").rename(tmp_path / "scan.nii.gz")
    assert len(find_cases(tmp_path / "s", 1)) == 1


# --- zip files of strangers ------------------------------------------------------------------------------------------


def bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.dcm", "w", force_zip64=True) as out,
    ):
        for _ in range(1200):
            out.write(bytes(1 << 20))


def locked(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", bytes(128) + b"DICM")
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"x")


def oddly_packed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM")


def broken(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + random.Random(0).randbytes(99))


ZIPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "bomb": (bomb, "says that it holds 1 files of 1.258 GB in all, more than images can be"),
    "locked": (locked, "is locked by a password"),
    "without DICOM": (empty, "holds no DICOM files"),
    "by lzma": (oddly_packed, "is packed by method 14"),
    "broken": (broken, "is no zip file that can be read"),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_read_volume__zip_file_that_is_no_series__is_refused(kind: str, tmp_path: Path) -> None:
    """Before anything is unpacked."""
    write, message = ZIPS[kind]
    write(tmp_path / "z.zip")
    with pytest.raises(VolumeError, match=message):
        read_volume([tmp_path / "z.zip"])
