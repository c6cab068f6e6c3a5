"""Masks over volumes: which voxels they set, against positions in space; what does not fit is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from hypothesis import given
from hypothesis import strategies as st
from large_volumes import write_image

from canvas import Box
from coarse2fine.errors import VolumeError
from coarse2fine.io import Grid, read_volume
from coarse2fine.io.region import parse_region
from coarse2fine.preprocessing.mask import Mask, any_along, open_mask, pooled

SHAPE = (4, 6, 10)
HALF = np.zeros(SHAPE, np.uint8)
HALF[1:3, 2:, 3:7] = 7


def grids(spacing: tuple[float, ...], shape: tuple[int, ...], origin: tuple[float, ...] = (0, 0, 0)) -> Grid:
    return Grid(shape, spacing, "mm", origin)


@given(
    steps=st.tuples(*[st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0])] * 3),
    box=st.tuples(*[st.integers(0, 3)] * 3),
    seed=st.integers(0, 99),
)
def test_part__any_resolution__sets_what_the_mask_holds_there(
    steps: tuple[float, ...], box: tuple[int, ...], seed: int
) -> None:
    """A voxel is set if the mask's voxel around its centre is; of a finer mask, if one of those within it is."""
    shape = tuple(round(8 / step) for step in steps)
    voxels = np.random.default_rng(seed).random(shape) < 0.3
    origin = tuple((step - 1) / 2 + 5 for step in steps)  # outer faces are those of the volume
    mask = Mask(voxels, grids(steps, shape, origin), grids((1, 1, 1), (8, 8, 8), (5, 5, 5)), {})
    wanted = Box.of(box, (5, 4, 3))
    found = mask.part(wanted)
    for place in np.ndindex(found.shape):
        windows = [
            slice(int((a + start) / step), max(int((a + start + 1) / step), int((a + start) / step) + 1))
            for a, start, step in zip(place, wanted.start, steps, strict=True)
        ]
        assert found[place] == voxels[tuple(windows)].any()
    assert mask.touches(mask.target, wanted) >= found.any()
    assert mask.hull(wanted).volume == 0 or mask.part(mask.hull(wanted)).sum() == found.sum()


@given(size=st.integers(1, 12), count=st.integers(1, 20), seed=st.integers(0, 99))
def test_pooled__any_grids__nothing_that_is_set_disappears(size: int, count: int, seed: int) -> None:
    """A voxel of the other grid is set if and only if it shares space with a set one."""
    found = np.random.default_rng(seed).random((1, 1, size)) < 0.3
    whole = Box((0, 0, 0), (1, 1, count))
    result = pooled(found, Box.whole(found.shape), (1, 1, size), (1, 1, count), whole)[0, 0]
    for index in range(count):
        shared = [
            found[0, 0, i] for i in range(size) if i * count < (index + 1) * size and (i + 1) * count > index * size
        ]
        assert result[index] == any(shared)


def test_any_along__windows_that_overlap__are_each_looked_at() -> None:
    """By hand."""
    found = np.array([True, False, False, True])
    low, high = np.array([0, 1, 1, 2]), np.array([2, 3, 4, 4])
    assert any_along(found, 0, low, high).tolist() == [True, False, True, True]


@pytest.mark.parametrize("kind", ["zarr", "labels", "bool", "plain", "nifti", "nibabel", "nrrd", "coarse"])
def test_open_mask__any_format__lies_where_its_file_says(kind: str, tmp_path: Path) -> None:
    """Over a volume in a store: the same voxels from each format, also for a region."""
    grid, path = Grid(SHAPE, (2.0, 1.0, 1.0), "nm"), tmp_path / "mask.zarr"
    if kind in ("zarr", "bool", "coarse"):
        voxels = HALF if kind == "zarr" else HALF != 0
        write_image(
            path,
            HALF[:, ::2, ::2] if kind == "coarse" else voxels,
            spacing=(2, 2, 2) if kind == "coarse" else (2, 1, 1),
        )
        unit = zarr.open_group(path)
        scales = unit.attrs["ome"]
        for axis in scales["multiscales"][0]["axes"]:
            axis["unit"] = "nanometer"
        if kind == "coarse":
            first = scales["multiscales"][0]["datasets"][0]["coordinateTransformations"]
            first.append({"type": "translation", "translation": [0, 0.5, 0.5]})
        unit.attrs["ome"] = scales
    elif kind in ("plain", "labels"):  # without spacing
        zarr.create_array(path, data=HALF.astype(np.uint64) if kind == "labels" else HALF)
    elif kind == "nibabel":
        path = tmp_path / "mask.nii.gz"
        nibabel.save(nibabel.Nifti1Image(HALF.T, np.diag([1, 1, 2, 1])), path)
    else:
        path = tmp_path / {"nifti": "mask.nii.gz", "nrrd": "mask.nrrd"}[kind]
        image = sitk.GetImageFromArray(HALF)
        image.SetSpacing((1, 1, 2))
        sitk.WriteImage(image, str(path))
    expected = HALF != 0
    if kind == "coarse":
        expected = np.repeat(np.repeat(expected[:, ::2, ::2], 2, 1), 2, 2)
    for region in (None, Box((1, 2, 2), (4, 6, 9))):
        mask = open_mask(str(path), grid, region)
        inside = Box.whole(mask.target.shape)
        np.testing.assert_array_equal(mask.part(inside), expected[region.slices] if region else expected)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_open_mask__turned_like_no_other__lies_where_the_volume_does(axes: tuple[int, ...], tmp_path: Path) -> None:
    """A mask whose axes are permuted and reversed shows the same places, as SimpleITK says where these are."""
    image = sitk.GetImageFromArray(HALF)
    image.SetSpacing((0.5, 1.0, 2.0))
    image.SetOrigin((10, -20, 30))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    turned = sitk.Flip(sitk.PermuteAxes(image, axes), (True, False, True))
    sitk.WriteImage(turned, str(tmp_path / "mask.nrrd"))
    mask = open_mask(str(tmp_path / "mask.nrrd"), read_volume([tmp_path / "scan.nrrd"]).grid)
    np.testing.assert_array_equal(mask.part(Box.whole(SHAPE)), HALF != 0)


def test_open_mask__other_extent__is_refused_with_both_and_a_region_that_works(tmp_path: Path) -> None:
    """A part of the volume is not taken for all of it; the region in the remedy is one that the mask shows."""
    grid = Grid(SHAPE, (2.0, 1.0, 1.0), "mm")
    write_image(tmp_path / "mask.zarr", HALF[:, :, :6], spacing=(2, 1, 1))
    with pytest.raises(VolumeError) as refused:
        open_mask(str(tmp_path / "mask.zarr"), grid)
    assert "4 x 6 x 6 voxels, z -1 to 7 mm, y -0.5 to 5.5 mm, x -0.5 to 5.5 mm" in refused.value.problem
    assert "4 x 6 x 10, z -1 to 7 mm, y -0.5 to 5.5 mm, x -0.5 to 9.5 mm" in refused.value.problem
    region = parse_region(re.search(r"--region (\S+)", refused.value.remedy)[1], grid)
    mask = open_mask(str(tmp_path / "mask.zarr"), grid, region)
    np.testing.assert_array_equal(mask.part(Box.whole(region.shape)), HALF[:, :, :6] != 0)


def test_open_mask__elsewhere_or_oblique__is_refused(tmp_path: Path) -> None:
    """A mask that shares no space with the volume, and one whose axes are not those of the volume."""
    grid = Grid(SHAPE, (2.0, 1.0, 1.0), "mm", direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    image = sitk.GetImageFromArray(HALF)
    image.SetSpacing((1, 1, 2))
    image.SetOrigin((100, 0, 0))
    sitk.WriteImage(image, str(tmp_path / "mask.nrrd"))
    with pytest.raises(VolumeError, match="Correct spacing and origin of the mask"):
        open_mask(str(tmp_path / "mask.nrrd"), grid)
    image.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "mask.nrrd"))
    with pytest.raises(VolumeError, match="not parallel"):
        open_mask(str(tmp_path / "mask.nrrd"), grid)
    with pytest.raises(VolumeError, match="turned axes"):
        open_mask(str(tmp_path / "mask.nrrd"), replace(grid, direction=None))


def test_open_mask__missing_or_of_floats__says_that_it_is_the_mask(tmp_path: Path) -> None:
    """Not the volume."""
    grid = Grid(SHAPE, (2.0, 1.0, 1.0), "mm")
    for name in ("none.zarr", "none.nii.gz"):
        with pytest.raises(VolumeError, match=r"mask: .*none"):
            open_mask(str(tmp_path / name), grid)
    write_image(tmp_path / "floats.zarr", HALF.astype(np.float32), spacing=(2, 1, 1))
    with pytest.raises(VolumeError, match=r"mask: .*no labels"):
        open_mask(str(tmp_path / "floats.zarr"), grid)
    both = zarr.create_array(tmp_path / "both.zarr", data=np.stack([HALF, HALF]), dimension_names=["c", "z", "y", "x"])
    with pytest.raises(VolumeError, match=r"mask .* has 2 channels"):
        open_mask(str(tmp_path / "both.zarr"), grid)
    zarr.create_array(tmp_path / "one.zarr", data=both[0])
    assert open_mask(str(tmp_path / "one.zarr"), grid).part(Box.whole(SHAPE)).any()


def test_part__cremi_background__is_not_set() -> None:
    """What CREMI writes where nothing is."""
    voxels = np.array([[[0, 5, 2**64 - 1]]], np.uint64)
    mask = Mask(voxels, grids((1, 1, 1), (1, 1, 3)), grids((1, 1, 1), (1, 1, 3)), {})
    assert mask.part(Box.whole((1, 1, 3))).tolist() == [[[False, True, False]]]
