"""Volumes reduced for a page; nibabel, SimpleITK and scikit-image are the references."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from skimage.measure import block_reduce

from coarse2fine.io import Grid, read_volume
from coarse2fine.page.reduction import affine_of, in_blocks, largest, mean, reduce_volume

MUCH = 10_000_000


def opened(text: str) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


@pytest.fixture
def oblique(tmp_path: Path) -> Path:
    """A NIfTI file of 12 x 10 x 8 voxels (z, y, x) that lies askew."""
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-2000, 4000, (12, 10, 8)).astype(np.int16))
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((-10.0, 25.0, 7.0))
    image.SetDirection(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.4).GetMatrix())
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    return tmp_path / "a.nii.gz"


def test_affine_of__oblique_file__is_nibabels(oblique: Path) -> None:
    """Of blocks, their centres are the means of their voxels' places."""
    grid, expected = read_volume([oblique]).grid, nibabel.load(oblique).affine
    np.testing.assert_allclose(affine_of(grid, (1, 1, 1)), expected, atol=1e-5)
    factors = (2, 5, 4)
    block = np.argwhere(np.ones(factors)) + np.array([4, 5, 0])
    centre = apply_affine(expected, block[:, ::-1]).mean(axis=0)
    np.testing.assert_allclose(apply_affine(affine_of(grid, factors), [0, 1, 2]), centre, atol=1e-5)


def test_in_blocks__mean_and_largest__are_those_of_scikit_image() -> None:
    """Where blocks do not fit, the last voxels are repeated, so that constants stay what they are."""
    voxels = np.random.default_rng(0).integers(0, 99, (6, 8, 10))
    for ours, theirs in ((mean, np.mean), (largest, np.max)):
        expected = block_reduce(voxels, (3, 2, 5), theirs)
        np.testing.assert_allclose(in_blocks(voxels, (3, 2, 5), ours, np.asarray), expected, rtol=1e-6)
    odd = in_blocks(np.full((5, 7, 9), 4), (2, 3, 4), mean, np.asarray)
    assert odd.shape == (3, 3, 3)
    assert (odd == 4).all()


def test_reduce_volume__small_ct__is_what_it_was(oblique: Path) -> None:
    """Hounsfield units of -1024 to 3071, the file's affine, and labels as they are."""
    volume = read_volume([oblique])
    image, labels = volume.channels[0], (volume.channels[0] > 0).astype(np.uint8) * 3
    reduced = reduce_volume(image, labels, volume.grid, (-160.0, 240.0), ct=True, most=MUCH)
    assert (reduced.factors, reduced.low, reduced.high) == ((1, 1, 1), -160, 240)
    shown = opened(reduced.image)
    assert np.array_equal(np.asarray(shown.dataobj).T, np.clip(image, -1024, 3071))
    np.testing.assert_allclose(shown.affine, nibabel.load(oblique).affine, atol=1e-5)
    assert np.array_equal(np.asarray(opened(reduced.labels).dataobj).T, labels)


def test_reduce_volume__too_large__becomes_isotropic_and_loses_no_object() -> None:
    """Noise of 40 x 80 x 80 voxels in 20 kB; the axis with long voxels is reduced least, every label stays."""
    image = np.random.default_rng(0).normal(50, 9, (40, 80, 80)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    for value in range(1, 9):
        labels[value * 4, value * 9, value * 7] = value
    grid = Grid(image.shape, (2.0, 1.0, 1.0))
    reduced = reduce_volume(image, labels, grid, (30.0, 70.0), ct=False, most=20_000)
    assert len(reduced.image) + len(reduced.labels) <= 20_000
    z, y, x = reduced.factors
    assert y == x
    assert 1 <= y / z <= 3
    assert set(np.unique(np.asarray(opened(reduced.labels).dataobj))) == set(range(9))
    assert opened(reduced.image).get_data_dtype() == np.uint8
    assert 0 <= reduced.low < reduced.high <= 255
    less = reduce_volume(image, labels, grid, (30.0, 70.0), ct=False, most=120_000)
    assert np.prod(less.factors) < np.prod(reduced.factors)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_reduce_volume__nothing_to_see__is_reduced_all_the_same(value: float) -> None:
    """A constant image, and one without a number."""
    image = np.full((4, 4, 4), value, np.float32)
    reduced = reduce_volume(
        image, np.zeros((4, 4, 4), np.uint8), Grid((4, 4, 4), (1, 1, 1)), (0.0, 1.0), ct=False, most=MUCH
    )
    assert np.asarray(opened(reduced.image).dataobj).shape == (4, 4, 4)


def test_reduce_volume__long_edge__fits_graphics_chips() -> None:
    """A texture may have so many voxels along an edge, however few bytes they are."""
    image = np.zeros((2, 2, 3000), np.float32)
    reduced = reduce_volume(
        image, image.astype(np.uint8), Grid(image.shape, (9.0, 9.0, 1.0)), (0.0, 1.0), ct=False, most=MUCH
    )
    assert reduced.factors == (1, 1, 3)


def test_reduce_volume__no_room_at_all__ends_with_one_voxel() -> None:
    """Rather than never."""
    image = np.ones((3, 4, 5), np.int16)
    reduced = reduce_volume(image, image.astype(np.uint8), Grid((3, 4, 5), (1, 1, 1)), (0.0, 1.0), ct=True, most=9)
    assert reduced.factors == (3, 4, 5)
