"""Measures of labels and objects, compared with other libraries'."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from infer_runs import OBLIQUE
from scipy import ndimage
from skimage.measure import regionprops

from canvas import Box
from coarse2fine.io import Grid, Volume, read_volume
from coarse2fine.measures import Measure, columns_of, measure, place_of, row_of, write_table

SHAPE = (9, 14, 11)
TURNED = Grid(SHAPE, (2.5, 0.7, 0.9), origin=(-40.5, 18.25, 166.0), direction=OBLIQUE.direction)
FLIPPED = Grid(SHAPE, (2.5, 0.7, 0.9), origin=(4.0, 5.0, 6.0), direction=(0, 0, 1, -1, 0, 0, 0, -1, 0))
EVERYWHERE = np.ones((3, 3, 3))


def example(grid: Grid = TURNED, seed: int = 0) -> tuple[np.ndarray, Volume]:
    """Labels 1, 2 and 200 in patches, and two channels of different types."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 0, 0, 1, 2, 200], np.uint8), (5, 7, 6))
    labels = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(map(slice, SHAPE))]
    channels = rng.integers(-1000, 1000, SHAPE).astype(np.int16), rng.normal(0, 50, SHAPE).astype(np.float32)
    return labels, Volume(channels, grid, "case")


def as_image(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing[::-1])
    image.SetOrigin(grid.origin[::-1])
    image.SetDirection(grid.cosines)
    return image


@pytest.mark.parametrize("grid", [TURNED, FLIPPED], ids=["oblique", "flipped"])
def test_measure__labels__equal_those_of_simpleitk_and_scipy(grid: Grid) -> None:
    """Voxels, volume and place are those of LabelShapeStatistics, brightness is that of NumPy, parts are SciPy's."""
    labels, volume = example(grid)
    image, shapes = as_image(labels, grid), sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(image)

    found = measure(labels, volume)

    assert [one.values for one in found] == [(1,), (2,), (200,)]
    for one in found:
        (label,) = one.values
        assert one.voxels == shapes.GetNumberOfPixels(label)
        assert one.volume == pytest.approx(shapes.GetPhysicalSize(label))
        assert one.diameter == pytest.approx(2 * shapes.GetEquivalentSphericalRadius(label))
        assert one.components == ndimage.label(labels == label, EVERYWHERE)[1]
        assert one.place is not None
        assert one.place.frame == "LPS"
        np.testing.assert_allclose(one.place.centroid, shapes.GetCentroid(label), atol=1e-9)
        start, size = np.reshape(shapes.GetBoundingBox(label), (2, 3))
        corners = [start + size * np.array(bits) - 0.5 for bits in np.ndindex(2, 2, 2)]
        world = np.array([image.TransformContinuousIndexToPhysicalPoint(corner.tolist()) for corner in corners])
        np.testing.assert_allclose([one.place.box_min, one.place.box_max], [world.min(0), world.max(0)], atol=1e-9)
        for values, channel in zip(one.intensity, volume.channels, strict=True):
            inside = channel[labels == label].astype(float)
            expected = [inside.mean(), inside.std(), *np.percentile(inside, [5, 50, 95])]
            np.testing.assert_allclose(
                [values.mean, values.sd, values.p5, values.p50, values.p95], expected, rtol=1e-9, atol=1e-9
            )


def test_measure__objects__equal_those_of_regionprops() -> None:
    """Each object is one of scikit-image's; the largest of each label comes first, and numbers go through all."""
    labels, volume = example()

    found = measure(labels, volume, {"two": (2,), "one": (1,)}, objects=True)

    assert [one.number for one in found] == list(range(1, len(found) + 1))
    assert [one.name for one in found] == sorted((one.name for one in found), reverse=True)
    for name, label in (("two", 2), ("one", 1)):
        mine = [one for one in found if one.name == name]
        assert [one.voxels for one in mine] == sorted((one.voxels for one in mine), reverse=True)
        numbered = ndimage.label(labels == label, EVERYWHERE)[0]
        theirs = {
            (
                int(one.area),
                place_of(TURNED, one.centroid, Box(one.bbox[:3], one.bbox[3:])),
                round(float(one.mean_intensity), 6),
            )
            for one in regionprops(numbered, volume.channels[0])
        }
        assert len(mine) == len(theirs)
        for one in mine:
            near = [
                other
                for other in theirs
                if other[0] == one.voxels
                and other[2] == round(one.intensity[0].mean, 6)
                and one.place is not None
                and np.allclose(other[1].centroid, one.place.centroid)
                and np.allclose(other[1].box_min, one.place.box_min)
                and np.allclose(other[1].box_max, one.place.box_max)
            ]
            assert len(near) == 1


def test_measure__region_of_several_labels__is_measured_as_one_thing() -> None:
    """The values of a region count together: touching ones are one object."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:4, 3:6, 3], labels[4, 3:6, 3], labels[8, 0, 0] = 1, 3, 3
    volume = Volume((np.arange(labels.size).reshape(SHAPE),), TURNED, "case")

    whole, core, absent = measure(labels, volume, {"whole": [1, 2, 3], "core": [3], "absent": [7]})

    assert (whole.values, whole.voxels, whole.components) == ((1, 2, 3), 10, 2)
    assert (core.values, core.voxels, core.components) == ((3,), 4, 2)
    assert (absent.voxels, absent.volume, absent.components, absent.place) == (0, 0.0, 0, None)
    assert [one.voxels for one in measure(labels, volume, {"whole": [1, 2, 3], "absent": [7]}, objects=True)] == [9, 1]


@pytest.mark.parametrize("flip", [1, -1])
def test_measure__nifti__lies_where_nibabel_says_with_x_and_y_reversed(flip: int, tmp_path: Path) -> None:
    """LPS is nibabel's RAS with the signs of x and y changed; values are those that slope and intercept make."""
    rng = np.random.default_rng(1)
    rotation = np.reshape(OBLIQUE.direction, (3, 3)) @ np.diag([flip, 1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * [0.7, 0.8, 2.0], [5, -7, 11]
    image = nibabel.Nifti1Image(rng.integers(0, 99, (6, 7, 8)).astype(np.int16), affine)
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    mask = np.zeros((6, 7, 8), np.uint8)
    mask[1:3, 2:6, 5:7] = 1

    (found,) = measure(mask.transpose(2, 1, 0), read_volume([tmp_path / "scan.nii.gz"]))

    assert found.place is not None
    ras = nibabel.affines.apply_affine(affine, np.argwhere(mask).mean(0))
    np.testing.assert_allclose(found.place.centroid, ras * [-1, -1, 1], atol=1e-4)
    loaded = nibabel.load(tmp_path / "scan.nii.gz").get_fdata()
    assert found.intensity[0].mean == pytest.approx(loaded[mask == 1].mean())


def test_measure__grid_that_nobody_knows_the_direction_of__says_so() -> None:
    """Volumes of stores and TIFF files lie along their own axes."""
    labels, volume = example(Grid(SHAPE, (40.0, 4.0, 4.0), "nm"))

    row = row_of(measure(labels, volume, {"cell": [1]})[0])

    assert row["frame"] == "axes"
    assert row["volume_um3"] == pytest.approx(int((labels == 1).sum()) * 640e-9)
    assert row["centroid_x_nm"] == pytest.approx(np.argwhere(labels == 1)[:, 2].mean() * 4)
    assert row["box_min_z_nm"] == np.argwhere(labels == 1)[:, 0].min() * 40 - 20


def test_measure__labels_of_another_shape__are_refused() -> None:
    """Nothing is measured in the wrong place."""
    labels, volume = example()
    with pytest.raises(ValueError, match="do not fit a volume"):
        measure(labels[1:], volume)


@pytest.mark.parametrize(
    "odd", [np.full(SHAPE, 0.5), np.full(SHAPE, -1), np.full(SHAPE, 1 << 40)], ids=["half", "negative", "huge"]
)
def test_measure__values_that_are_no_labels__are_refused(odd: np.ndarray) -> None:
    """Instead of taking all memory, or leaving them out."""
    with pytest.raises(ValueError, match="must be whole numbers from 0 to 65535"):
        measure(odd, example()[1])


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.int16, np.int32, np.int64, np.uint64])
def test_measure__labels_of_any_type__are_measured(dtype: type) -> None:
    """A mask is the label 1."""
    labels, volume = example()
    assert measure((labels == 1).astype(dtype), volume) == measure((labels == 1).astype(np.uint8), volume)


@pytest.mark.parametrize("objects", [False, True])
@pytest.mark.parametrize(("ending", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_write_table__rows__come_back_as_they_were(ending: str, delimiter: str, objects: bool, tmp_path: Path) -> None:
    """Every row has all columns of its kind, names with commas, quotes and line breaks included."""
    labels, volume = example()
    odd = 'a, "b"\n\tc'
    rows = [row_of(one) for one in measure(labels, volume, {odd: [1], "absent": [5]}, objects=objects)]
    path = tmp_path / f"table{ending}"

    write_table(rows, columns_of("mm", 2, objects=objects), path)

    with path.open(encoding="utf-8", newline="") as stream:
        back = list(csv.DictReader(stream, delimiter=delimiter))
    assert [row["name"] for row in back] == [row["name"] for row in rows]
    assert list(back[0]) == list(rows[0]) == list(columns_of("mm", 2, objects=objects))
    for read, row in zip(back, rows, strict=True):
        assert all(read[name] == ("" if value is None else str(value)) for name, value in row.items())
    if not objects:
        assert (back[1]["voxels"], back[1]["centroid_x_mm"], back[1]["channel1_sd"]) == ("0", "", "")


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "\r=1"])
def test_write_table__name_that_is_a_formula__is_text_for_spreadsheets(name: str, tmp_path: Path) -> None:
    """A stranger's label or case must not execute; numbers below zero stay numbers."""
    row = {"case": name, "name": "lesion=2", "centroid_x_mm": -1.5}
    write_table([row], list(row), tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as stream:
        (back,) = csv.DictReader(stream)
    assert back == {"case": "'" + name.replace("\r", " "), "name": "lesion=2", "centroid_x_mm": "-1.5"}


def test_row_of__any_measure__has_units_in_its_names() -> None:
    """Volumes are in ml of millimetres, in cubic micrometres of nanometres."""
    assert row_of(Measure("", (1,), 1, 2500.0, "mm"))["volume_ml"] == 2.5
    assert row_of(Measure("", (1,), 1, 2.5e9, "nm"))["volume_um3"] == 2.5
    assert row_of(Measure("", (1,), 1, 4.18879020478639e9, "nm", number=3))["diameter_nm"] == 2000.0


def test_docs__columns__are_those_of_tables() -> None:
    """docs/measures.md names every column of one channel."""
    page = (Path(__file__).parents[3] / "docs" / "measures.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_]+)`", page))
    for name in {*columns_of("mm", 1), *columns_of("mm", 1, objects=True)}:
        stem = re.sub(r"^(centroid|box_min)_[xyz]", r"\1_x", re.sub(r"^box_max_[xyz]", "box_max_z", name))
        short = "_" + name.rpartition("_")[2]
        assert stem in named or (name.startswith("channel0") and short in named), name
