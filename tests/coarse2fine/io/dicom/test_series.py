"""DICOM series, compared with SimpleITK's reader, which stands on GDCM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import change, write_series
from infer_runs import OBLIQUE
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

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
