"""Label stores, read back with zarr-python and with a decoder of neuroglancer's format written from its description."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import coarse2fine
from canvas import Box
from coarse2fine.errors import OutputError, VolumeError
from coarse2fine.io import Grid, LabelSpec, create_labels, open_labels, open_store, pyramid_factors

GRID = Grid((11, 38, 45), (40.0, 4.0, 4.0), "nm", (80.0, 24.0, 40.0))
FACTORS = ((1, 1, 1), (1, 2, 2), (2, 4, 4))
WHOLE = Box.whole(GRID.shape)
FORMATS = ["zarr", "precomputed"]


def spec_of(folder: Path, form: str = "zarr", dtype: str = "uint32") -> LabelSpec:
    return LabelSpec(str(folder), form, GRID, dtype, (4, 16, 16), FACTORS, "cleft")  # type: ignore[arg-type]


def labels_of(dtype: str) -> np.ndarray:
    """Blobs of a few large labels with background between them."""
    rng = np.random.default_rng(0)
    names = rng.integers(1, np.iinfo(dtype).max, 6, dtype=dtype, endpoint=True)
    names[0] = 0
    coarse = rng.choice(names, (4, 10, 12))
    noise = rng.choice(names, GRID.shape)
    large = coarse.repeat(3, 0).repeat(4, 1).repeat(4, 2)[: GRID.shape[0], : GRID.shape[1], : GRID.shape[2]]
    return np.where(rng.random(GRID.shape) < 0.3, noise, large)


def blocks(shape: tuple[int, ...], edges: tuple[int, int, int]) -> list[Box]:
    starts = product(*(range(0, n, edge) for n, edge in zip(shape, edges, strict=True)))
    return [Box.of(start, edges).clip(Box.whole(shape)) for start in starts]


def most_frequent(labels: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
    """Voxel by voxel, least label if tied."""
    result = np.zeros([-(-n // f) for n, f in zip(labels.shape, factors, strict=True)], labels.dtype)
    for place in np.ndindex(*result.shape):
        cut = tuple(slice(i * f, (i + 1) * f) for i, f in zip(place, factors, strict=True))
        names, counts = np.unique(labels[cut], return_counts=True)
        result[place] = names[counts.argmax()]
    return result


def decoded(content: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """A chunk (z, y, x) of one channel in neuroglancer's compressed_segmentation encoding with blocks of 8."""
    words = np.frombuffer(content, "<u4")[1:]  # the first says where the channel begins
    grid = [-(-n // 8) for n in shape]
    voxels = np.zeros([8 * n for n in grid], dtype)
    for number, (z, y, x) in enumerate(np.ndindex(*grid)):
        table, values = (int(word) for word in words[2 * number : 2 * number + 2])
        bits, table = table >> 24, table & 0xFFFFFF
        stream = words[values : values + 16 * bits].astype(np.uint64)
        places = range(0, 512 * bits, bits) if bits else [0] * 512
        index = [(int(stream[i // 32]) >> (i % 32)) & ((1 << bits) - 1) if bits else 0 for i in places]
        names = np.frombuffer(words[table:].tobytes()[: (max(index) + 1) * dtype.itemsize], dtype)
        voxels[8 * z : 8 * z + 8, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = names[index].reshape(8, 8, 8)
    return voxels[tuple(map(slice, shape))]


def read_precomputed(folder: Path, level: int) -> np.ndarray:
    info = json.loads((folder / "info").read_text())
    scale, dtype = info["scales"][level], np.dtype(info["data_type"])
    voxels = np.zeros(scale["size"][::-1], dtype)
    for path in (folder / scale["key"]).iterdir():
        edges = [[int(part) for part in axis.split("-")] for axis in path.name.split("_")]
        cut = tuple(slice(a - o, b - o) for (a, b), o in zip(edges, scale["voxel_offset"], strict=True))[::-1]
        if scale["encoding"] == "raw":
            voxels[cut] = np.frombuffer(path.read_bytes(), dtype).reshape(voxels[cut].shape)
        else:
            voxels[cut] = decoded(path.read_bytes(), voxels[cut].shape, dtype)
    return voxels


def read_independently(folder: Path, form: str, level: int) -> np.ndarray:
    return zarr.open_array(folder / str(level), mode="r")[:] if form == "zarr" else read_precomputed(folder, level)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_label_store__written_block_by_block__others_read_it(tmp_path: Path, form: str, dtype: str) -> None:
    """Labels of all levels are what independent readers find, and what a brute-force vote gives."""
    spec, labels = pickle.loads(pickle.dumps(spec_of(tmp_path / "out", form, dtype))), labels_of(dtype)
    create_labels(spec)
    for box in blocks(GRID.shape, (8, 16, 32)):
        open_labels(spec).write(box, labels[box.slices])
    store, expected = open_labels(spec), labels
    for level in (1, 2):
        ratio = tuple(b // a for a, b in zip(FACTORS[level - 1], FACTORS[level], strict=True))
        expected = most_frequent(expected, ratio)
        for box in blocks(spec.shape(level), (4, 16, 16)):
            store.build(level, box)
        assert spec.shape(level) == expected.shape
        assert np.array_equal(read_independently(tmp_path / "out", form, level), expected)
    assert np.array_equal(read_independently(tmp_path / "out", form, 0), labels)
    part = Box((3, 5, 7), (10, 37, 45))
    assert np.array_equal(store.read(part), labels[part.slices])
    assert store.read(part).dtype == dtype


def test_finish__zarr__is_an_ngff_label_image(tmp_path: Path) -> None:
    """Only ``finish`` makes it an image; then the specification's parts are there and the centres of voxels agree."""
    spec = spec_of(tmp_path / "out")
    create_labels(spec)
    with pytest.raises(VolumeError):
        open_store(spec.where, as_labels=True)
    open_labels(spec).finish()
    group = zarr.open_group(tmp_path / "out", mode="r")
    ome = group.attrs["ome"]
    (image,) = ome["multiscales"]
    assert (ome["version"], image["name"], "image-label" in ome) == ("0.5", "cleft", True)
    assert image["axes"] == [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    assert [dataset["path"] for dataset in image["datasets"]] == ["0", "1", "2"]
    for level, dataset in enumerate(image["datasets"]):
        scale, move = dataset["coordinateTransformations"]
        array = group[dataset["path"]]
        assert (array.metadata.dimension_names, array.fill_value) == (("z", "y", "x"), 0)
        assert (array.chunks, array.shards) == ((4, 16, 16), None)
        assert type(array.compressors[0]).__name__ == "ZstdCodec"
        # The edge of the volume is where it is, whatever the level.
        edge = [m - s / 2 for s, m in zip(scale["scale"], move["translation"], strict=True)]
        assert edge == [80 - 20, 24 - 2, 40 - 2]
        assert scale["scale"] == [40 * FACTORS[level][0], 4 * FACTORS[level][1], 4 * FACTORS[level][2]]
    again = open_store(spec.where, as_labels=True)
    assert again.levels[0].grid == GRID
    with pytest.raises(VolumeError, match="image-label"):
        open_store(spec.where)


def test_finish__precomputed__is_a_segmentation(tmp_path: Path) -> None:
    """Place, sizes and spacings are the format's (x, y, z); nothing of the unfinished state stays."""
    spec = replace(
        spec_of(tmp_path / "out", "precomputed"), grid=replace(GRID, spacing=(30 * 1e-6, 4e-6, 4e-6), unit="mm")
    )
    spec = replace(spec, grid=replace(spec.grid, origin=(80e-6, 24e-6, 4e-5)))
    create_labels(spec)
    with pytest.raises(VolumeError, match="not finished"):
        open_store(spec.where, as_labels=True)
    open_labels(spec).finish()
    info = json.loads((tmp_path / "out/info").read_text())
    assert set(info) == {"@type", "type", "data_type", "num_channels", "scales"}
    assert (info["@type"], info["type"]) == ("neuroglancer_multiscale_volume", "segmentation")
    assert [scale["resolution"] for scale in info["scales"]] == [[4, 4, 30], [8, 8, 30], [16, 16, 60]]
    assert [scale["voxel_offset"] for scale in info["scales"]] == [[10, 6, 3], [5, 3, 3], [2, 2, 1]]
    assert {scale["encoding"] for scale in info["scales"]} == {"compressed_segmentation"}
    assert [scale["size"] for scale in info["scales"]] == [[45, 38, 11], [23, 19, 11], [12, 10, 6]]
    assert open_store(spec.where, as_labels=True).levels[0].grid.origin == (90, 24, 40)
    open_labels(spec).write(WHOLE, labels_of("uint32"))


@pytest.mark.parametrize("form", FORMATS)
def test_create_labels__again__keeps_what_is_there(tmp_path: Path, form: str) -> None:
    """A resumed run finds its labels; one with other settings, or another's folder, is refused."""
    spec = spec_of(tmp_path / "out", form)
    create_labels(spec)
    open_labels(spec).write(WHOLE, labels_of("uint32"))
    create_labels(spec)
    assert np.array_equal(open_labels(spec).read(WHOLE), labels_of("uint32"))
    for other in (
        replace(spec, dtype="uint64"),
        replace(spec, chunk=(4, 16, 8)),
        replace(spec, grid=replace(GRID, shape=(11, 38, 46))),
        replace(spec, factors=FACTORS[:1]),
        replace(spec, format=FORMATS[1 - FORMATS.index(form)]),  # type: ignore[arg-type]
    ):
        if other.factors != FACTORS and form == "precomputed":
            continue  # fewer levels of the same are a part of it
        with pytest.raises(OutputError, match=str(tmp_path)):
            create_labels(other)
    assert np.array_equal(open_labels(spec).read(WHOLE), labels_of("uint32"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("notes")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        create_labels(replace(spec, where=str(tmp_path / "mine")))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(OutputError):
        open_labels(replace(spec, where=str(tmp_path / "none")))


def test_read__after_another_handle_wrote__is_new(tmp_path: Path) -> None:
    """Nothing is cached, as other processes write the store; blocks of background take no space."""
    spec = spec_of(tmp_path / "out")
    create_labels(spec)
    first, second = open_labels(spec), open_labels(spec)
    box = Box((0, 0, 0), (4, 16, 16))
    for value in (3, 5, 0):
        second.write(box, np.full(box.shape, value, np.uint8))
        assert (first.read(box) == value).all()
    assert not list((tmp_path / "out/0/c").rglob("[0-9]*/*/*"))


def write_block(spec: LabelSpec, box: Box) -> None:
    open_labels(spec).write(box, labels_of("uint32")[box.slices])


@pytest.mark.long
@pytest.mark.parametrize("form", FORMATS)
def test_write__processes_side_by_side__lose_nothing(tmp_path: Path, form: str) -> None:
    """Neighbouring blocks of two processes do not touch each other's chunks."""
    spec = spec_of(tmp_path / "out", form)
    create_labels(spec)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(write_block, [(spec, box) for box in blocks(GRID.shape, (4, 16, 16))])
    assert np.array_equal(open_labels(spec).read(WHOLE), labels_of("uint32"))


@pytest.mark.parametrize(
    "box",
    [
        Box((0, 0, 0), (4, 16, 15)),
        Box((1, 0, 0), (4, 16, 16)),
        Box((8, 32, 32), (10, 38, 45)),
        Box((0, 32, 0), (4, 36, 16)),
    ],
)
def test_write__parts_of_chunks__are_refused(tmp_path: Path, box: Box) -> None:
    """Also at the end of the array, where a cut chunk must be whole."""
    spec = spec_of(tmp_path / "out")
    create_labels(spec)
    with pytest.raises(ValueError, match="whole chunks"):
        open_labels(spec).write(box, np.zeros(box.shape, np.uint32))


def test_write__labels_that_do_not_fit__are_refused(tmp_path: Path) -> None:
    """Signed, too large, of the wrong shape, or outside; wider types are fine as long as the labels fit."""
    spec = spec_of(tmp_path / "out", dtype="uint8")
    create_labels(spec)
    store = open_labels(spec)
    store.write(WHOLE, np.full(GRID.shape, 255, np.uint64))
    assert (store.read(WHOLE) == 255).all()
    with pytest.raises(OutputError, match="label 256 does not fit into uint8"):
        store.write(WHOLE, np.full(GRID.shape, 256, np.uint16))
    for data in (np.zeros(GRID.shape, np.int32), np.zeros(GRID.shape, bool), np.zeros((1, 2, 3), np.uint8)):
        with pytest.raises(ValueError, match="labels of shape"):
            store.write(WHOLE, data)
    for call in (store.read, lambda box: store.write(box, np.zeros(box.shape, np.uint8))):
        with pytest.raises(ValueError, match="not all in"):
            call(Box((0, 0, 0), (12, 38, 45)))
    assert store.read(Box((3, 3, 3), (3, 9, 9))).shape == (0, 6, 6)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "int32"},
        {"chunk": (0, 8, 8)},
        {"format": "hdf5"},
        {"factors": ()},
        {"factors": ((1, 2, 2),)},
        {"factors": ((1, 1, 1), (2, 2, 2), (2, 3, 4))},
        {"factors": ((1, 1, 1), (2, 2, 2), (1, 2, 2))},
        {"factors": ((1, 1, 1), (1, 1, 1))},
    ],
)
def test_label_spec__not_possible__is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(spec_of(tmp_path), **change)


FULL_DISK = """
import resource, sys
import numpy as np
from canvas import Box
from coarse2fine.errors import OutputError
from coarse2fine.io import Grid, LabelSpec, create_labels, open_labels
shape = (32, 64, 64)
spec = LabelSpec(sys.argv[1], sys.argv[2], Grid(shape, (1.0, 1.0, 1.0)), "uint32", shape, ((1, 1, 1),), "a")
create_labels(spec)
store = open_labels(spec)
store.write(Box.whole(shape), np.full(shape, 7, np.uint32))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    store.write(Box.whole(shape), np.random.default_rng(0).integers(0, 1 << 32, shape, dtype=np.uint32))
except OutputError as error:
    print(error)
print((store.read(Box.whole(shape)) == 7).all())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to run into")
@pytest.mark.parametrize("form", FORMATS)
def test_write__no_space__keeps_the_old_chunk(tmp_path: Path, form: str) -> None:
    """When the system refuses a write midway, the message says so and the labels before it are still there."""
    root = Path(coarse2fine.__file__).parents[1]
    command = [sys.executable, "-c", FULL_DISK, tmp_path / "out", form]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    problem, remedy, kept = done.stdout.splitlines()
    assert problem == f"cannot write {tmp_path}/out, level 0: File too large"
    assert "space" in remedy
    assert kept == "True"


def test_labels__place_that_takes_no_files__is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coarse2fine.io.stores.tensors._RETRIES", {"max_retries": 1, "initial_delay": "1ms"})
    (tmp_path / "file").write_text("")
    for where in (f"{tmp_path}/file", f"{tmp_path}/file/out", "http://127.0.0.1:9/out", "ftp://host/out"):
        with pytest.raises(OutputError) as info:
            create_labels(replace(spec_of(tmp_path), where=where))
        assert info.value.remedy


@pytest.mark.parametrize("shape", [(62, 1250, 1250), (300, 300, 300), (1, 900, 900), (2000, 40, 10), (100, 100, 100)])
@pytest.mark.parametrize("spacing", [(40.0, 4.0, 4.0), (1.0, 1.0, 1.0), (5.0, 0.7, 0.9)])
def test_pyramid_factors__voxels_become_cubes(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    """Every step halves all of the shortest voxels and none that is much longer, until the level is small."""
    factors = pyramid_factors(shape, spacing)
    assert factors[0] == (1, 1, 1)
    for fine, coarse in pairwise(factors):
        lengths = {axis: spacing[axis] * fine[axis] for axis in range(3) if math.ceil(shape[axis] / fine[axis]) > 1}
        shortest = min(lengths.values())
        halved = {axis for axis, length in lengths.items() if length <= shortest * 1.4143}
        assert {axis for axis in range(3) if coarse[axis] == 2 * fine[axis]} == halved
        assert all(coarse[axis] in (fine[axis], 2 * fine[axis]) for axis in range(3))
    sizes = [max(math.ceil(n / f) for n, f in zip(shape, factor, strict=True)) for factor in factors]
    assert sizes[-1] <= 128
    assert all(size > 128 for size in sizes[:-1])


def test_write__interrupted_chunk__is_repaired_by_writing_again(tmp_path: Path) -> None:
    """What a killed process leaves of a chunk does not stop the block from being written again."""
    spec = spec_of(tmp_path / "out")
    create_labels(spec)
    left: Callable[[str], Path] = (tmp_path / "out/0/c/0/0").joinpath
    left("").mkdir(parents=True)
    left("0").write_bytes(b"half")
    left("0.__lock").write_bytes(b"half of it")
    create_labels(spec)
    open_labels(spec).write(WHOLE, labels_of("uint32"))
    assert np.array_equal(zarr.open_array(tmp_path / "out/0", mode="r")[:], labels_of("uint32"))
