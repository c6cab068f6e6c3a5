"""CREMI's HDF5 files, in and out; h5py itself is the reference, and the layout is that of a real file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import shared

import coarse2fine
from coarse2fine.errors import OutputError, VolumeError
from coarse2fine.io import Grid, is_store, open_store, read_attributes, write_cremi

BACKGROUND = 0xFFFF_FFFF_FFFF_FFFF
RAW = np.random.default_rng(0).integers(0, 255, (13, 40, 50), dtype=np.uint8)
CLEFTS = np.where(RAW > 200, RAW, BACKGROUND).astype(np.uint64)
GRID = Grid((7, 20, 30), (40.0, 4.0, 4.0), "nm", (80.0, 40.0, 60.0))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A padded CREMI sample: the labels lie inside of the raw volume, by their offset in nm."""
    path = tmp_path / "sample_A_padded.hdf"
    with h5py.File(path, "w") as file:
        file.attrs["file_format"] = "0.2"
        raw = file.create_dataset("volumes/raw", data=RAW, chunks=(4, 16, 32), compression="gzip")
        raw.attrs["resolution"] = (40.0, 4.0, 4.0)
        clefts = file.create_dataset("volumes/labels/clefts", data=CLEFTS[2:9, 10:30, 15:45], compression="gzip")
        clefts.attrs["resolution"], clefts.attrs["offset"] = (40.0, 4.0, 4.0), (80.0, 40.0, 60.0)
        file.create_dataset("predictions/map", data=RAW.astype(">f4"))
        file.create_dataset("volumes/labels/mask", data=RAW)
        file.create_dataset("annotations/ids", data=np.arange(3))
    return path


@pytest.mark.shared
def test_open_store__real_cremi_file__regions_are_h5pys() -> None:
    """Raw voxels in the file's own type, spacing in nm, chunks as stored."""
    path = shared("data/cremi_sample_c/sample_C_8nm.hdf")
    scales = open_store(str(path))
    (volume,) = scales.levels
    with h5py.File(path) as file:
        raw = file["volumes/raw"]
        assert np.array_equal(volume.channels[0][20:31, 100:301, -77:], raw[20:31, 100:301, -77:])
        assert (volume.grid.shape, scales.chunks) == (raw.shape, raw.chunks)
        assert volume.grid.spacing == tuple(raw.attrs["resolution"])
    assert (volume.grid.unit, scales.name) == ("nm", "sample_C_8nm")
    assert is_store(str(path))


def test_open_store__cremi_sample__raw_labels_and_others(sample: Path) -> None:
    """Labels are read as labels with their offset; other datasets with the spacing that the user gives."""
    raw = open_store(str(sample))
    assert np.array_equal(raw.levels[0].channels[0][3:9, :, 8:], RAW[3:9, :, 8:])
    assert raw.chunks == (4, 16, 32)
    labels = open_store(f"file://{sample}", array="volumes/labels/clefts", as_labels=True).levels[0]
    assert np.array_equal(labels.channels[0][:, :, :], CLEFTS[2:9, 10:30, 15:45])
    assert labels.grid == Grid((7, 20, 30), (40.0, 4.0, 4.0), "nm", (80.0, 40.0, 60.0))
    other = open_store(str(sample), array="predictions/map", spacing=(0.04, 0.004, 0.004), unit="um")
    assert np.array_equal(other.levels[0].channels[0].transpose((2, 1, 0))[5:9, :, :3], RAW.T[5:9, :, :3])
    assert other.levels[0].channels[0].dtype == other.levels[0].channels[0][:1, :1, :1].dtype == np.float32
    assert other.levels[0].grid.spacing == (40, 4, 4)
    assert raw.identity != other.identity
    assert open_store(raw.where).identity == raw.identity


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        ("volumes/labels/clefts", {}, "label file given as image"),
        ("volumes/labels/mask", {"spacing": (1.0, 1.0, 1.0)}, "label file given as image"),
        ("volumes/raw2", {}, r"volumes/raw \(13, 40, 50\)"),
        ("volumes", {}, r"predictions/map"),
        ("annotations/ids", {"spacing": (1.0, 1.0, 1.0), "unit": "nm"}, "shape"),
        ("predictions/map", {}, "resolution"),
        ("predictions/map", {"spacing": (1.0, 1.0, 1.0)}, "unit"),
        ("predictions/map", {"spacing": (1.0, 1.0, 1.0), "unit": "nm", "as_labels": True}, "float32"),
        (None, {"spacing": (1.0, 1.0, float("nan"))}, "not positive"),
    ],
)
def test_open_store__hdf5_not_as_needed__says_what(
    sample: Path, array: str | None, options: dict[str, Any], words: str
) -> None:
    """A missing dataset is answered with a list of the volumes that there are."""
    with pytest.raises(VolumeError, match=words):
        open_store(str(sample), array=array, **options)


def test_open_store__hdf5_damaged__says_where(sample: Path, tmp_path: Path) -> None:
    """A file cut short cannot be opened; a damaged chunk shows where it is read; a missing file is missing."""
    content = sample.read_bytes()
    with h5py.File(sample) as file:
        info = file["volumes/raw"].id.get_chunk_info(0)
    start = info.byte_offset
    sample.write_bytes(content[: start + 10] + b"\xff" * 400 + content[start + 410 :])
    array = open_store(str(sample)).levels[0].channels[0]
    assert np.array_equal(array[8:, 32:, 32:], RAW[8:, 32:, 32:])
    with pytest.raises(VolumeError, match=r"volumes/raw, voxels \(1, 2, 3\) to \(4, 5, 6\)"):
        array[1:4, 2:5, 3:6]
    (tmp_path / "cut.hdf").write_bytes(content[: len(content) // 2])
    with pytest.raises(VolumeError, match="truncated"):
        open_store(str(tmp_path / "cut.hdf"))
    with pytest.raises(VolumeError, match="does not exist"):
        open_store(str(tmp_path / "none.hdf"))


def slabs(labels: np.ndarray, height: int) -> Iterator[np.ndarray]:
    for z in range(0, len(labels), height):
        yield labels[z : z + height]


@pytest.mark.parametrize("height", [1, 3, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint64])
def test_write_cremi__slabs__are_one_published_volume(tmp_path: Path, height: int, dtype: type) -> None:
    """Layout, types, background and attributes are those of the published files, however the slabs are cut."""
    labels = np.where(RAW > 200, RAW, 0)[:7, :20, :30].astype(dtype)
    path = tmp_path / "out.hdf"
    write_cremi(path, slabs(labels, height), GRID, attributes={"comment": "found", "resolution": (1, 1, 1)})
    with h5py.File(path) as file:
        assert file.attrs["file_format"] == "0.2"
        clefts = file["volumes/labels/clefts"]
        assert (clefts.dtype, clefts.compression) == (np.uint64, "gzip")
        assert np.array_equal(clefts[:], np.where(labels > 0, labels, np.uint64(BACKGROUND)))
        assert (clefts.attrs["resolution"].tolist(), clefts.attrs["offset"].tolist()) == ([40, 4, 4], [80, 40, 60])
        assert clefts.attrs["comment"] == "found"
    again = open_store(str(path), array="volumes/labels/clefts", as_labels=True)
    assert again.levels[0].grid == GRID


@pytest.mark.shared
def test_write_cremi__as_the_real_file__same_layout(tmp_path: Path) -> None:
    """Attributes have the names, types and order of the real sample's; neuron ids keep 0; mm become nm."""
    path, source = tmp_path / "out.hdf", shared("data/cremi_sample_c/sample_C_8nm.hdf")
    grid = Grid((2, 9, 9), (40e-6, 8e-6, 8e-6), "mm")
    labels = np.arange(162, dtype=np.uint32).reshape(2, 9, 9)
    attributes = read_attributes(source)
    write_cremi(path, [labels], grid, "volumes/labels/neuron_ids", background=0, attributes=attributes)
    with h5py.File(path) as ours, h5py.File(source) as real:
        written, raw = ours["volumes/labels/neuron_ids"], real["volumes/raw"]
        assert dict(ours.attrs) == dict(real.attrs)
        assert np.array_equal(written[:], labels)
        assert set(written.attrs) == set(raw.attrs)
        for name, value in raw.attrs.items():
            assert written.attrs[name].dtype == value.dtype
            assert np.allclose(written.attrs[name], value)


@pytest.mark.parametrize("height", [2, 7])
def test_write_cremi__slabs_do_not_fit__old_file_stays(tmp_path: Path, height: int) -> None:
    """Too few or too many sections, another width, signed labels, a label that means background, an interruption."""
    path = tmp_path / "out.hdf"
    path.write_bytes(b"old")
    labels = np.ones(GRID.shape, np.uint32)

    def interrupted() -> Iterator[np.ndarray]:
        yield labels[:2]
        raise KeyboardInterrupt

    for given, error in [
        (slabs(labels[:-1], height), ValueError),
        (slabs(np.ones((8, 20, 30), np.uint32), height), ValueError),
        (slabs(labels[:, 1:], height), ValueError),
        (slabs(labels.astype(np.int64), height), ValueError),
        (slabs(labels * np.uint64(BACKGROUND), height), OutputError),
        (interrupted(), KeyboardInterrupt),
    ]:
        with pytest.raises(error):
            write_cremi(path, given, GRID)
        assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("out.hdf", b"old")]


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from coarse2fine.errors import OutputError
from coarse2fine.io import Grid, write_cremi
labels = np.random.default_rng(0).integers(0, 1 << 32, (20, 100, 100), dtype=np.uint32)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_cremi(Path(sys.argv[1]), iter([labels]), Grid(labels.shape, (1.0, 1.0, 1.0)))
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to run into")
def test_write_cremi__no_space__keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.hdf"
    path.write_bytes(b"old")
    root = Path(coarse2fine.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.startswith(f"cannot write {path}: File too large\n")
    assert "space is needed" in done.stdout
    assert done.stderr == ""
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("out.hdf", b"old")]
    with pytest.raises(OutputError):
        write_cremi(tmp_path / "none/out.hdf", [], GRID)
