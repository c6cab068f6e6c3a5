"""c2f-convert on EM volumes, which are cut and rewritten: CREMI's HDF5 files, and regions of chunked stores.

Results are read with nibabel and SimpleITK and compared with what NumPy cuts out of the arrays that were stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from conftest import shared

from coarse2fine.cli.convert import main
from coarse2fine.io import find_cases, find_labelled_cases, read_volume

BACKGROUND = np.uint64(0xFFFFFFFFFFFFFFFF)
RESOLUTION = (40.0, 4.0, 4.0)


def noise(shape: tuple[int, ...], seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def clefts_like(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """CREMI's values: two ids, 0 among them, on its background."""
    clefts = np.full(shape, BACKGROUND)
    clefts[1:3, 2:5, 1:4] = 0
    clefts[-2:, -3 - seed :, -2:] = 17
    return clefts


def write_cremi(
    path: Path,
    raw: np.ndarray,
    clefts: np.ndarray | None,
    offset: tuple[float, ...] | None = None,
    resolution: tuple[float, ...] = RESOLUTION,
) -> Path:
    """A file as cremi.org specifies it; only label volumes of padded files have an offset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["file_format"] = "0.2"
        file.create_dataset("volumes/raw", data=raw, compression="gzip").attrs["resolution"] = RESOLUTION
        if clefts is not None:
            dataset = file.create_dataset("volumes/labels/clefts", data=clefts, compression="gzip")
            dataset.attrs["resolution"] = resolution
            if offset is not None:
                dataset.attrs["offset"] = offset
    return path


@pytest.fixture
def cremi(tmp_path: Path) -> Path:
    """Samples A (padded), B, C, and the test volume A+."""
    folder = tmp_path / "cremi"
    write_cremi(
        folder / "sample_A_padded_20160501.hdf",
        noise((12, 20, 22), 1),
        clefts_like((5, 8, 9)),
        offset=(3 * 40, 6 * 4, 7 * 4),
    )
    for seed, letter in enumerate("BC", 2):
        write_cremi(folder / f"sample_{letter}_20160501.hdf", noise((5, 8, 9), seed), clefts_like((5, 8, 9), 1))
    write_cremi(folder / "sample_A+_20160601.hdf", noise((4, 7, 6), 9), None)
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def voxels(path: Path) -> np.ndarray:
    """Axes (z, y, x)."""
    return np.asarray(nibabel.load(path).dataobj).T


def test_cremi__published_files__become_a_data_set(cremi: Path, tmp_path: Path, capsys: Any) -> None:
    """Padded raw is cut to its labels, ids become 1, C is held out, and A+ has no labels."""
    assert run("cremi", cremi, "-o", tmp_path / "raw", "--split", "C") == 0
    folder = tmp_path / "raw/Dataset203_CREMI"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.gz")} == {
        *(f"imagesTr/sample_{letter}_0000.nii.gz" for letter in "AB"),
        *(f"labelsTr/sample_{letter}.nii.gz" for letter in "AB"),
        *(f"imagesTs/sample_{letter}_0000.nii.gz" for letter in ("C", "Aplus")),
        "labelsTs/sample_C.nii.gz",
    }
    cut = noise((12, 20, 22), 1)[3:8, 6:14, 7:16]
    assert np.array_equal(voxels(folder / "imagesTr/sample_A_0000.nii.gz"), cut)
    assert np.array_equal(voxels(folder / "imagesTs/sample_Aplus_0000.nii.gz"), noise((4, 7, 6), 9))
    for path, seed in (("labelsTr/sample_A", 0), ("labelsTr/sample_B", 1), ("labelsTs/sample_C", 1)):
        mask = voxels(folder / f"{path}.nii.gz")
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, clefts_like((5, 8, 9), seed) != BACKGROUND)
    described = json.loads((folder / "dataset.json").read_text())
    assert (described["channel_names"], described["numTraining"]) == ({"0": "EM"}, 2)
    assert described["labels"] == {"background": 0, "cleft": 1}
    assert described["sources"]["sample_A"] == {
        "file": "sample_A_padded_20160501.hdf",
        "start": [3, 6, 7],
        "shape": [5, 8, 9],
    }
    assert [case.name for case in find_labelled_cases(folder, 1)] == ["sample_A", "sample_B"]
    assert [case.name for case in find_cases(folder / "imagesTs", 1)] == ["sample_Aplus", "sample_C"]
    assert "sample_A+_20160601.hdf has no volumes/labels/clefts: it becomes a test case" in capsys.readouterr().err


def test_cremi__geometry__is_in_nm(cremi: Path, tmp_path: Path) -> None:
    """40 nm are written as 40, in the field that is called mm, and the origin is the place in the sample."""
    assert run("cremi", cremi, "-o", tmp_path / "raw") == 0
    for kind in ("imagesTr/sample_A_0000", "labelsTr/sample_A"):
        image = sitk.ReadImage(str(tmp_path / f"raw/Dataset203_CREMI/{kind}.nii.gz"))
        assert image.GetSpacing() == (4, 4, 40)
        assert image.GetOrigin() == (28, 24, 120)
        assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)


def test_cremi__raw_with_an_offset__counts_from_it(tmp_path: Path) -> None:
    """Offsets are places in the whole volume, of raw as of labels."""
    path = write_cremi(tmp_path / "x.hdf", noise((12, 20, 22)), clefts_like((5, 8, 9)), offset=(200, 100, 100))
    with h5py.File(path, "a") as file:
        file["volumes/raw"].attrs["offset"] = (120.0, 80.0, 60.0)
    assert run("cremi", path, "-o", tmp_path / "raw") == 0
    image = read_volume([tmp_path / "raw/Dataset203_CREMI/imagesTr/x_0000.nii.gz"])
    assert np.array_equal(image.channels[0], noise((12, 20, 22))[2:7, 5:13, 10:19])
    assert image.grid.origin == (200, 100, 100)


@pytest.mark.shared
def test_cremi__real_sample__passes_nnunets_own_check(tmp_path: Path, nnunet_verify: Callable[[Path], None]) -> None:
    """A part of the published sample C, with labels in the published layout made for it."""
    source = shared("data/cremi_sample_c/sample_C_8nm.hdf")
    with h5py.File(source) as file:
        raw, resolution = file["volumes/raw"][10:30, 100:228, 200:328], file["volumes/raw"].attrs["resolution"]
    clefts = np.where(raw[2:18, 4:124, 4:124] < 60, np.uint64(5), BACKGROUND)
    path = write_cremi(tmp_path / "sample_C_padded_20160501.hdf", raw, clefts, (80, 32, 32), tuple(resolution))
    with h5py.File(path, "a") as file:
        file["volumes/raw"].attrs["resolution"] = resolution
    assert run("cremi", path, "-o", tmp_path / "raw") == 0
    folder = tmp_path / "raw/Dataset203_CREMI"
    image, mask = (voxels(folder / f"{kind}.nii.gz") for kind in ("imagesTr/sample_C_0000", "labelsTr/sample_C"))
    assert np.array_equal(mask == 1, image < 60)
    assert 0 < mask.mean() < 0.5
    nnunet_verify(folder)


@pytest.mark.parametrize(
    ("offset", "resolution", "clefts", "says", "remedy"),
    [
        ((60, 24, 28), RESOLUTION, clefts_like((5, 8, 9)), "begins 1.5, 6, 7 voxels", "Correct the offset in its"),
        ((400, 24, 28), RESOLUTION, clefts_like((5, 8, 9)), "covers voxels (10, 6, 7) to", "Correct the attribute of"),
        ((-40, 24, 28), RESOLUTION, clefts_like((5, 8, 9)), "covers voxels (-1, 6, 7)", "Correct the attribute offset"),
        ((120, 24, 28), (40.0, 8.0, 8.0), clefts_like((5, 8, 9)), "voxel size of (40.0, 4.0, 4.0)", "Name an array of"),
        ((120, 24, 28), RESOLUTION, clefts_like((5, 8, 9)).astype(np.uint32), "is not uint64", "Store them as such"),
        ((120, 24, 28), RESOLUTION, np.zeros((5, 8, 9), np.uint64), "value of CREMI's background", "Set voxels outsi"),
        ((120, 24, 28), RESOLUTION, np.full((5, 8, 9), BACKGROUND), "no training case has", "Give the labels that"),
    ],
)
def test_cremi__something_wrong__is_said_and_nothing_is_left(
    tmp_path: Path,
    capsys: Any,
    offset: tuple[float, ...],
    resolution: tuple[float, ...],
    clefts: Any,
    says: str,
    remedy: str,
) -> None:
    """What the message names is what is wrong, and nothing else: with that mended, all is well."""
    path = write_cremi(tmp_path / "sample_A_20160501.hdf", noise((12, 20, 22)), clefts, offset, resolution)
    assert run("cremi", path, "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert f"\n  {remedy}" in said
    assert not (tmp_path / "raw").exists() or list((tmp_path / "raw").iterdir()) == []
    path.unlink()  # HDF5 may still have it open
    write_cremi(path, noise((12, 20, 22)), clefts_like((5, 8, 9)), (120, 24, 28))
    assert run("cremi", path, "-o", tmp_path / "raw") == 0


def test_cremi__wrong_files__are_told(cremi: Path, tmp_path: Path, capsys: Any) -> None:
    """One sample twice, spacings in micrometres, voxels that are no grey values, and what is no HDF5 file."""
    write_cremi(cremi / "sample_A_20160501.hdf", noise((5, 8, 9)), clefts_like((5, 8, 9)))
    assert run("cremi", cremi, "-o", tmp_path / "raw") == 1
    assert "case sample_A is there twice: " in capsys.readouterr().err
    (cremi / "sample_A_20160501.hdf").unlink()  # Give only one.
    assert run("cremi", cremi, "-o", tmp_path / "once") == 0
    path = write_cremi(tmp_path / "um.hdf", noise((5, 8, 9)), clefts_like((5, 8, 9)), None, (0.04, 0.004, 0.004))
    with h5py.File(path, "a") as file:
        file["volumes/raw"].attrs["resolution"] = (0.04, 0.004, 0.004)
    assert run("cremi", path, "-o", tmp_path / "raw") == 1
    assert "0.04, 0.004, 0.004 nm (z, y, x) is not plausible" in (said := capsys.readouterr().err)
    assert "between 0.5 and 1000 nm: correct the header or the unit" in said
    path.unlink()  # HDF5 may still have it open
    write_cremi(path, noise((5, 8, 9)), clefts_like((5, 8, 9)))
    assert run("cremi", path, "-o", tmp_path / "mended") == 0
    for kind, code in ((np.float32, 1), (np.uint16, 0), (np.uint8, 0)):
        path = write_cremi(tmp_path / f"{kind.__name__}.hdf", noise((5, 8, 9)).astype(kind), clefts_like((5, 8, 9)))
        assert run("cremi", path, "-o", tmp_path / ("raw" if code else kind.__name__)) == code
        if code:
            assert "type float32 are not converted\n  Store it as uint8 or uint16." in capsys.readouterr().err
    (tmp_path / "bad.hdf").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "bad.hdf", tmp_path / "nowhere.hdf", tmp_path, tmp_path / "empty"):
        assert run("cremi", path, "-o", tmp_path / "raw") == 1
        assert str(path) in (said := capsys.readouterr().err)
    assert "holds no file that ends in .hdf, .h5, .hdf5\n  Name CREMI's files" in said
    assert run("cremi", *cremi.iterdir(), "-o", tmp_path / "named") == 0
    assert not list((tmp_path / "raw").iterdir())


def write_ngff(path: Path, array: np.ndarray, start: tuple[int, ...] = (0, 0, 0)) -> Path:
    """OME-NGFF 0.5 in micrometres, with zarr-python; ``start`` is the place of the first voxel, in voxels."""
    step = [0.04, 0.004, 0.004]
    group = zarr.create_group(path)
    group.create_array("0", data=array, chunks=(1, 4, 8, 8)[-array.ndim :])
    scale = {"type": "scale", "scale": step}
    shift = {"type": "translation", "translation": [number * size for number, size in zip(start, step, strict=True)]}
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    if array.ndim == 4:
        axes.insert(0, {"name": "c", "type": "channel"})
        scale["scale"], shift["translation"] = [1.0, *step], [0.0, *shift["translation"]]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale, shift]}]}],
    }
    return path


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    """An image and labels of its middle, which begin at voxel (2, 4, 6)."""
    image, labels = noise((12, 20, 22)), np.zeros((8, 12, 14), np.uint64)
    labels[2:4, 3:9, 1:12] = 7
    labels[5, 4:9, 2:12] = BACKGROUND
    labels[6:, 8:, 4:] = 8
    return write_ngff(tmp_path / "fafb.zarr", image), write_ngff(tmp_path / "synapses.zarr", labels, (2, 4, 6))


def test_fafb__regions_of_stores__become_cases(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """In voxels or in nm; image and labels are cut at the same place although their arrays begin elsewhere."""
    image, labels = stores
    regions = ["--region", "2:10,4:16,6:20", "--region", "120:320nm,28:64nm,32:72nm"]
    options = [*regions, "--split", "fafb_z2_y4_x6", "--class-name", "synapse", "--name", "Brain"]
    assert run("fafb", image, labels, *options, "-o", tmp_path / "raw") == 0
    folder = tmp_path / "raw/Dataset204_Brain"
    truth = np.isin(zarr.open_array(labels / "0")[:], [7, 8])
    for kind, name, (z, y, x) in (
        ("Ts", "fafb_z2_y4_x6", (slice(2, 10), slice(4, 16), slice(6, 20))),
        ("Tr", "fafb_z3_y7_x8", (slice(3, 8), slice(7, 16), slice(8, 18))),
    ):
        written = folder / f"images{kind}/{name}_0000.nii.gz"
        assert np.array_equal(voxels(written), noise((12, 20, 22))[z, y, x])
        part = truth[z.start - 2 : z.stop - 2, y.start - 4 : y.stop - 4, x.start - 6 : x.stop - 6]
        assert part.any()
        assert np.array_equal(voxels(folder / f"labels{kind}/{name}.nii.gz"), part)
        grid = read_volume([written]).grid
        assert grid.spacing == RESOLUTION
        assert np.allclose(grid.origin, (z.start * 40, y.start * 4, x.start * 4))
    described = json.loads((folder / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "synapse": 1}
    assert described["sources"]["fafb_z3_y7_x8"]["start"] == [3, 7, 8]
    assert str(tmp_path) not in json.dumps(described)


def test_fafb__plain_arrays__take_spacing_and_unit(tmp_path: Path) -> None:
    """Stores that say nothing about their voxels, in one zarr."""
    group = zarr.create_group(tmp_path / "plain.zarr")
    image, truth = noise((6, 8, 9), dtype="uint16"), np.eye(9, dtype=np.uint8)[None, :8].repeat(6, 0)
    group.create_array("em", data=image)
    group.create_array("truth", data=truth)
    arrays = ["--array", "em", "--label-array", "truth", "--spacing", "0.05", "0.008", "0.008", "--unit", "um"]
    both = [tmp_path / "plain.zarr"] * 2
    assert run("fafb", *both, "--region", ":,:,:", *arrays, "-o", tmp_path / "raw") == 0
    (case,) = find_labelled_cases(tmp_path / "raw/Dataset204_FAFB", 1)
    written = read_volume(case.images)
    assert written.grid.spacing == (50, 8, 8)
    assert np.array_equal(written.channels[0], image)
    assert np.array_equal(voxels(case.labels), truth)


@pytest.mark.parametrize(
    ("region", "says", "remedy"),
    [
        ("0:4,4:16,6:20", "but ", "Choose regions that are labelled everywhere"),
        ("2:10,4:17,6:20", "covers (2, 4, 6) to (10, 16, 20)", "Choose regions that are labelled everywhere"),
        ("2:13,4:16,6:20", "outside of the volume, whose axis z has 12 voxels", ""),
        ("2:10,4:16", "has 2 axes instead of 3", ""),
        ("6:7,4:5,6:7", "no training case has a voxel of any label", "Give the labels that belong to these images, or"),
    ],
)
def test_fafb__wrong_region__is_said(
    stores: tuple[Path, Path], tmp_path: Path, capsys: Any, region: str, says: str, remedy: str
) -> None:
    """A region with labels, within the volume and labelled everywhere, is taken."""
    assert run("fafb", *stores, "--region", region, "-o", tmp_path / "raw") == 1
    said = capsys.readouterr().err
    assert says in said
    assert f"\n  {remedy}" in said
    assert run("fafb", *stores, "--region", "2:10,4:16,6:20", "-o", tmp_path / "raw") == 0


def test_fafb__overlapping_regions__are_told(stores: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    """One that is in training and test makes a test worthless."""
    regions = ("2:7,4:16,6:20", "6:10,4:16,6:20", "7:10,4:16,6:20")
    options = [part for region in regions for part in ("--region", region)]
    assert run("fafb", *stores, *options, "-o", tmp_path / "raw") == 0
    said = capsys.readouterr().err
    assert f"regions '{regions[0]}' and '{regions[1]}' overlap" in said
    assert f"regions '{regions[0]}' and '{regions[2]}' overlap" not in said


def test_fafb__wrong_stores__are_told(stores: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    """Labels as image, no store at all, several channels, and lengths that are not EM's."""
    image, labels = stores
    where = ["--region", "2:10,4:16,6:20", "-o", tmp_path / "raw"]
    assert run("fafb", labels, labels, *where) == 1
    assert "label file given as image" in capsys.readouterr().err
    assert run("fafb", image, tmp_path / "nowhere.zarr", *where) == 1
    assert "nowhere.zarr does not exist" in capsys.readouterr().err
    colours = write_ngff(tmp_path / "colours.zarr", noise((2, 12, 20, 22)))
    assert run("fafb", colours, labels, *where) == 1
    assert "colours.zarr has 2 channels\n  Name an array with one channel" in capsys.readouterr().err
    zarr.open_group(colours).create_array("grey", data=noise((12, 20, 22)))
    named = ["--array", "grey", "--spacing", 0.04, 0.004, 0.004, "--unit", "um"]
    assert run("fafb", colours, labels, *where[:2], "-o", tmp_path / "named", *named) == 0
    assert run("fafb", image, labels, *where, "--spacing", 1, 1, 1, "--unit", "mm") == 1
    assert "in mm, which is not EM's\n  Correct its unit: nm." in capsys.readouterr().err
    assert run("fafb", image, labels, *where, "--spacing", 0.04, 0.004, 0.004, "--unit", "um") == 0
