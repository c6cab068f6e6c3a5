"""Pictures of volumes in every orientation; SimpleITK's and nibabel's reorientation are the reference."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from coarse2fine.demo.picture import draw_overlay
from coarse2fine.io import Grid, Volume, read_volume
from coarse2fine.page.orientation import as_displayed, display_axes

CODES = ["".join(code) for axes in permutations(("LR", "AP", "IS")) for code in product(*axes)]


def patient(turn: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> sitk.Image:
    """A volume in LPS order without any symmetry, perhaps a little oblique (radians about x, y, z)."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, (12, 20, 28)).astype(np.int16)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.5, 2.0, 3.0))
    image.SetOrigin((-10.0, 25.0, 7.0))
    image.SetDirection(sitk.Euler3DTransform((0, 0, 0), *turn).GetMatrix())
    return image


def volume_of(image: sitk.Image) -> Volume:
    voxels = sitk.GetArrayFromImage(image)
    z, y, x = image.GetSpacing()[::-1]
    return Volume((voxels,), Grid(voxels.shape, (z, y, x), direction=image.GetDirection()), "case")


@pytest.mark.parametrize("turn", [(0, 0, 0), (0.3, -0.2, 0.4)], ids=["straight", "oblique"])
@pytest.mark.parametrize("code", CODES)
def test_as_displayed__any_storage__is_simpleitks_lps(code: str, turn: tuple[float, float, float]) -> None:
    """Front on top and right on the left, which is how SimpleITK's LPS lies in memory; spacings go along."""
    expected = patient(turn)
    volume = volume_of(sitk.DICOMOrient(expected, code))
    assert np.array_equal(as_displayed(volume.channels[0], volume.grid), sitk.GetArrayFromImage(expected))
    order, _ = display_axes(volume.grid)
    assert [volume.grid.spacing[axis] for axis in order] == pytest.approx(expected.GetSpacing()[::-1])


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIL", "SLA", "AIR"])
def test_as_displayed__nifti_file__is_nibabels_canonical_order(code: str, tmp_path: Path) -> None:
    """Read from a file; nibabel's canonical axes run to the right and to the front, so two of them are turned."""
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(patient((0.1, 0.2, 0.3)), code), str(path))
    volume = read_volume([path])
    canonical = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
    assert np.array_equal(as_displayed(volume.channels[0], volume.grid), canonical.T[:, ::-1, ::-1])


def test_as_displayed__a_known_place__is_where_readers_look_for_it() -> None:
    """A mark at the patient's left, front and head is on the right, in the first row and in the last slice."""
    image = patient() * 0
    image[image.GetSize()[0] - 1, 0, image.GetSize()[2] - 1] = 1
    for code in ("RAS", "IPL"):
        volume = volume_of(sitk.DICOMOrient(image, code))
        assert np.argwhere(as_displayed(volume.channels[0], volume.grid)).tolist() == [[11, 0, 27]]


def test_as_displayed__volume_in_nm__stays_as_stored() -> None:
    """Nothing in a block of tissue is front or left."""
    volume = volume_of(sitk.DICOMOrient(patient(), "SLA"))
    grid = replace(volume.grid, unit="nm")
    assert display_axes(grid) == ((0, 1, 2), (1, 1, 1))
    assert np.array_equal(as_displayed(volume.channels[0], grid), volume.channels[0])


def test_draw_overlay__other_storage__is_the_same_picture(tmp_path: Path) -> None:
    """File by file; a volume that lies otherwise in space is another picture, and so is one in nm."""
    image = patient()
    labels = sitk.Cast(image > 600, sitk.sitkUInt8)

    def picture(code: str, unit: str = "mm", turned: bool = False) -> bytes:
        stored, mask = (sitk.DICOMOrient(one, code) for one in (image, labels))
        if turned:  # the same voxels, said to lie otherwise
            stored.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        volume = volume_of(stored)
        volume = replace(volume, grid=replace(volume.grid, unit=unit))
        found = sitk.GetArrayFromImage(mask)
        path = tmp_path / "picture.png"
        draw_overlay(volume, found, np.roll(found, 1, axis=0) > 1, path)
        return path.read_bytes()

    expected = picture("LPS")
    assert expected.startswith(b"\x89PNG")
    assert picture("SLA") == expected
    assert picture("LPS", turned=True) != expected
    assert picture("RAS", unit="nm") != expected


def test_draw_overlay__nothing_found__is_drawn(tmp_path: Path) -> None:
    """Neither a result nor a reference."""
    volume = volume_of(patient())
    draw_overlay(volume, np.zeros((12, 20, 28)), np.zeros((12, 20, 28), bool), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
