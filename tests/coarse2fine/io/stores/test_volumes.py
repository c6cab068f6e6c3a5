"""Reading chunked stores by region; they are written with zarr-python, or byte by byte from the formats' rules."""

from __future__ import annotations

import functools
import http.server
import json
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stored_volumes import EM, REGION, SHAPE, VOXELS, same_region, write_n5, write_ngff, write_precomputed, write_zarr

from coarse2fine.errors import VolumeError
from coarse2fine.io import is_store, open_store


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int32", "float32"])
def test_open_store__plain_zarr__voxels_and_given_spacing(tmp_path: Path, version: int, dtype: str) -> None:
    """A plain array has no spacing: it must be given, with its unit; then the array is read as it is."""
    voxels = (VOXELS * 3.0).astype(dtype)
    where = str(write_zarr(tmp_path / "a.zarr", voxels, version))
    scales = open_store(where, **EM)
    (volume,) = scales.levels
    assert same_region(volume.channels[0], voxels)
    assert volume.channels[0].dtype == np.dtype(dtype).newbyteorder("=")
    assert (volume.grid.shape, volume.grid.spacing, volume.grid.unit) == (SHAPE, (40, 4, 4), "nm")
    assert (scales.name, scales.chunks) == ("a", (8, 8, 8))
    with pytest.raises(VolumeError, match="--spacing"):
        open_store(where)
    with pytest.raises(VolumeError, match="--unit"):
        open_store(where, spacing=(40, 4, 4))


def test_open_store__sharded_zarr__inner_chunks(tmp_path: Path) -> None:
    """What can be read by itself is the chunk in the shard, and missing chunks are the fill value."""
    voxels = VOXELS.copy()
    voxels[:, :16, :16] = 9
    write_zarr(tmp_path / "a", voxels, chunk=4, shards=(12, 8, 8), fill_value=9)
    scales = open_store(str(tmp_path / "a"), **EM)
    assert scales.chunks == (4, 4, 4)
    assert same_region(scales.levels[0].channels[0], voxels)
    (tmp_path / "a/c/0/0/0").unlink(missing_ok=True)
    assert same_region(scales.levels[0].channels[0], voxels)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "xyz", "tczyx", "yxcz"])
def test_open_store__ngff__axes_channels_and_levels(tmp_path: Path, axes: str, version: str) -> None:
    """Any order of axes gives (z, y, x); channels become entries, finest first although listed last."""
    scales = open_store(str(write_ngff(tmp_path / "a.ome.zarr", axes, version=version)))
    assert [volume.grid.spacing for volume in scales.levels] == [(40, 4, 4), (40, 8, 8)]
    for volume, step in zip(scales.levels, (1, 2), strict=True):
        fine = VOXELS[:, ::step, ::step]
        expected = [fine // 2 + channel for channel in range(3)] if "c" in axes else [fine]
        assert len(volume.channels) == len(expected)
        for channel, truth in zip(volume.channels, expected, strict=True):
            assert same_region(channel, truth) if step == 1 else np.array_equal(channel[:, :, :], truth)
    assert (scales.name, scales.identity["channels"]) == ("a", len(scales.levels[0].channels))
    one = open_store(str(tmp_path / "a.ome.zarr"), array="r1")
    assert [volume.grid.spacing for volume in one.levels] == [(40, 8, 8)]


def test_open_store__ngff__transforms_are_combined(tmp_path: Path) -> None:
    """Those of the whole image come after those of a level; lengths are converted to nm."""

    def transforms(level: int) -> list[dict[str, Any]]:
        step = 2**level
        scale = {"type": "scale", "scale": [2.0, step, step]}
        return [scale, {"type": "translation", "translation": [1.0, 2.0, 3.0]}]

    shared = [{"type": "scale", "scale": [0.02, 0.004, 0.004]}, {"type": "translation", "translation": [0, 0, 0.5]}]
    image = {"coordinateTransformations": shared}
    write_ngff(tmp_path / "a", scale=transforms, units="micrometer", image=image)
    grids = [volume.grid for volume in open_store(str(tmp_path / "a")).levels]
    assert [grid.spacing for grid in grids] == [(40, 4, 4), (40, 8, 8)]
    assert [(grid.unit, grid.origin) for grid in grids] == [("nm", (20, 8, 512))] * 2


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("nanometer", ("nm", 4.0)),
        ("angstrom", ("nm", 0.4)),
        ("µm", ("nm", 4000.0)),
        ("Micrometers", ("nm", 4000.0)),
        ("millimeter", ("mm", 4.0)),
        ("cm", ("mm", 40.0)),
        ("meter", ("mm", 4000.0)),
    ],
)
def test_open_store__units__become_nm_or_mm(tmp_path: Path, unit: str, expected: tuple[str, float]) -> None:
    grid = open_store(str(write_ngff(tmp_path / "a", units=unit))).levels[0].grid
    assert (grid.unit, grid.spacing[2]) == expected


def test_open_store__spacing_given__coarser_levels_follow(tmp_path: Path) -> None:
    """What the user says about the finest level replaces the metadata, which still say how levels relate."""
    write_ngff(tmp_path / "a", units="")
    with pytest.raises(VolumeError, match="unit"):
        open_store(str(tmp_path / "a"))
    scales = open_store(str(tmp_path / "a"), spacing=(0.05, 0.01, 0.01), unit="um")
    assert [volume.grid.spacing for volume in scales.levels] == [(50, 10, 10), (50, 20, 20)]
    assert open_store(str(tmp_path / "a"), unit="mm").levels[1].grid.spacing == (40, 8, 8)


NM = {"units": ["nm"] * 3}
FACTORS = [[1, 1, 1], [2, 2, 1]]


def transform(step: int) -> dict[str, Any]:
    return {"axes": ["z", "y", "x"], "scale": [40, 4 * step, 4 * step], "translate": [1, 2, 3], **NM}


@pytest.mark.parametrize(
    ("group", "own"),
    [
        ({"pixelResolution": {"unit": "um", "dimensions": [0.004, 0.004, 0.04]}, "scales": FACTORS}, [{}, {}]),
        ({"resolution": [4, 4, 40], **NM}, [{}, {"downsamplingFactors": [2, 2, 1]}]),
        ({"resolution": [4, 4, 40], "downsamplingFactors": FACTORS, **NM}, [{}, {}]),
        ({"scales": FACTORS}, [{"transform": transform(step)} for step in (1, 2)]),
        ({}, [{"pixelResolution": {"unit": "nm", "dimensions": [y, y, 40]}} for y in (4, 8)]),
    ],
)
def test_open_store__n5__conventions_of_levels(
    tmp_path: Path, group: dict[str, Any], own: list[dict[str, Any]]
) -> None:
    """Each way in which N5 stores say spacing and factors, x first, gives the same grids (z, y, x)."""
    for level, step in enumerate((1, 2)):
        voxels = VOXELS[:, ::step, ::step].astype(np.uint16)
        write_n5(tmp_path / f"a.n5/raw/s{level}", voxels, own[level], (4, 8, 16))
    (tmp_path / "a.n5/attributes.json").write_text('{"n5": "2.0.0"}')
    if group:
        (tmp_path / "a.n5/raw/attributes.json").write_text(json.dumps(group))
    scales = open_store(str(tmp_path / "a.n5"), array="raw")
    assert [volume.grid.spacing for volume in scales.levels] == [(40, 4, 4), (40, 8, 8)]
    assert {volume.grid.unit for volume in scales.levels} == {"nm"}
    assert same_region(scales.levels[0].channels[0], VOXELS.astype(np.uint16))
    assert scales.chunks == (4, 8, 16)
    if "transform" in own[0]:
        assert scales.levels[0].grid.origin == (1, 2, 3)
    single = open_store(f"n5://{tmp_path}/a.n5/raw/s0", **EM)
    assert same_region(single.levels[0].channels[0], VOXELS.astype(np.uint16))


def test_open_store__precomputed__offsets_and_scales(tmp_path: Path) -> None:
    """Voxels count from 0 wherever the volume lies; its place is the origin, in nm."""
    scales = open_store(str(write_precomputed(tmp_path / "em")))
    assert [volume.grid.spacing for volume in scales.levels] == [(40, 4, 4), (40, 8, 8)]
    assert scales.levels[0].grid.origin == (280, 24, 20)
    # Offsets are those of outer corners, here (x, y) = (2, 3) of 8 nm: corners at 16 and 24, centres 4 nm further
    # inside, where those of the finest level, corners at 20 and 24, are 2 nm inside.
    assert scales.levels[1].grid.origin == (280, 24 + 2, 16 + 2)
    assert same_region(scales.levels[0].channels[0], VOXELS)
    assert np.array_equal(scales.levels[1].channels[0][:, 2:5, 3:], VOXELS[:, 4:10:2, 6::2])
    assert scales.chunks == (4, 8, 8)
    coarse = open_store(f"precomputed://file://{tmp_path}/em", array="coarse")
    assert [volume.grid.shape for volume in coarse.levels] == [(9, 10, 13)]


@pytest.fixture
def requests() -> list[str]:
    """What the server has been asked for."""
    return []


@pytest.fixture
def server(tmp_path: Path, requests: list[str]) -> Iterator[str]:
    class Patient(http.server.ThreadingHTTPServer):
        request_queue_size = 100  # of connections that are begun at once

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            requests.append(str(words))

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with Patient(("127.0.0.1", 0), handler) as host:
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}"
        host.shutdown()
        thread.join()


def test_open_store__http__as_from_the_disk(tmp_path: Path, server: str, requests: list[str]) -> None:
    """A server that can only be asked for keys is enough, for every format."""
    write_ngff(tmp_path / "a.zarr")
    write_precomputed(tmp_path / "em")
    write_n5(tmp_path / "a.n5", VOXELS, {"resolution": [4, 4, 40], "units": ["nm"] * 3}, (4, 8, 8))
    for where in (f"{server}/a.zarr/", f"zarr://{server}/a.zarr", f"precomputed://{server}/em", f"{server}/a.n5"):
        scales = open_store(where)
        assert same_region(scales.levels[0].channels[0], VOXELS)
        count = len(requests)
        assert count
        assert np.array_equal(scales.levels[0].channels[0][REGION], VOXELS[REGION])
        assert len(requests) == count, "what is in the cache is not asked for again"
        assert open_store(where.rstrip("/")).identity == open_store(scales.where).identity == scales.identity
    with pytest.raises(VolumeError, match=r"none\.zarr"):
        open_store(f"{server}/none.zarr")


def test_open_store__server_gone__says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coarse2fine.io.stores.tensors._RETRIES", {"max_retries": 1, "initial_delay": "1ms"})
    with pytest.raises(VolumeError, match="does not answer"):
        open_store("http://127.0.0.1:9/a.zarr")
    with pytest.raises(VolumeError, match="ftp://"):
        open_store("ftp://host/a.zarr")


def test_identity__tells_volumes_apart(tmp_path: Path) -> None:
    """It survives JSON and opening again, and changes with the metadata, spacing and array."""
    where = str(write_ngff(tmp_path / "a"))
    first = open_store(where)
    assert json.loads(json.dumps(first.identity)) == open_store(first.where).identity == first.identity
    assert pickle.loads(pickle.dumps(first.identity)) == first.identity
    assert open_store(where, spacing=(40, 4, 5), unit="nm").identity != first.identity
    assert open_store(where, array="r0").identity != first.identity
    write_zarr(tmp_path / "a/r0", VOXELS + 1, overwrite=True)
    assert open_store(where).identity != first.identity


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("kind", ["v2", "v3", "n5", "precomputed"])
def test_region__chunk_damaged__names_level_and_voxels(tmp_path: Path, kind: str) -> None:
    """A truncated chunk is an error where it is read, and nowhere else."""
    where = tmp_path / "a"
    if kind == "n5":
        write_n5(where, VOXELS, {}, (8, 8, 8))
    elif kind == "precomputed":
        write_precomputed(where)
    else:
        write_zarr(where, version=int(kind[1]))
    chunk = {"v2": "0.1.1", "v3": "c/0/1/1", "n5": "1/1/0", "precomputed": "fine/13-21_14-22_7-11"}[kind]
    truncate(where / chunk)
    array = open_store(str(where), **EM).levels[0].channels[0]
    assert np.array_equal(array[:4, :8, :], VOXELS[:4, :8])
    with pytest.raises(VolumeError, match=r"\(1, 9, 10\) to \(3, 12, 12\)") as info:
        array[1:3, 9:12, 10:12]
    assert str(where) in info.value.problem
    assert "source" not in str(info.value)


def test_region__not_finite__names_the_voxel(tmp_path: Path) -> None:
    """Only the region that is read is looked at."""
    voxels = VOXELS.astype(np.float64)
    voxels[3, 11, 20], voxels[4, 11, 20] = np.nan, 1e300
    array = open_store(str(write_zarr(tmp_path / "a", voxels)), **EM).levels[0].channels[0]
    assert np.array_equal(array[:3, :, :], voxels[:3])
    with pytest.raises(VolumeError, match=r"2 voxels .*\(3, 11, 20\)"):
        array[2:, 10:, 7:]
    with pytest.raises(VolumeError, match=r"\(4, 11, 20\)"):
        array.transpose((2, 1, 0))[:, :, 4:]


def spoil(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the OME-NGFF metadata of a store."""
    content = json.loads((path / "zarr.json").read_text())
    change(content["attributes"]["ome"]["multiscales"][0])
    (path / "zarr.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["datasets"].append({"path": "r7", "coordinateTransformations": []}), "r7 does not exist"),
        (lambda m: m["axes"][0].update(name="y"), "axes are y, y, x"),
        (lambda m: m["axes"].pop(), "z, y and x are needed"),
        (lambda m: m["axes"].insert(0, {"name": "c"}), "3 numbers|4 numbers"),
        (lambda m: m.pop("axes"), "lack axes"),
        (lambda m: m.pop("datasets"), "datasets: field required"),
        (lambda m: m.update(datasets=[]), "datasets: list should have at least 1 item"),
        (lambda m: [axis.update(unit="parsec") for axis in m["axes"]], "parsec"),
        (lambda m: m["datasets"][1].pop("coordinateTransformations"), "does not say its spacing"),
        (lambda m: m["datasets"][1]["coordinateTransformations"][0].update(scale=[40, 0, 4]), "not positive"),
        (lambda m: m["datasets"][1]["coordinateTransformations"][0].update(scale=[40, math.nan, 4]), "not positive"),
        (
            lambda m: m["datasets"][1]["coordinateTransformations"][0].update(scale=[40, "4", 4]),
            "scale.1: .*number, not '4'",
        ),
        (lambda m: m["datasets"][1]["coordinateTransformations"][0].update(type="affine"), "affine"),
    ],
)
def test_open_store__ngff_metadata_wrong__says_what(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    """Metadata that do not describe the arrays are refused before anything is read."""
    write_ngff(tmp_path / "a")
    spoil(tmp_path / "a", change)
    with pytest.raises(VolumeError, match=words) as info:
        open_store(str(tmp_path / "a"))
    assert str(tmp_path / "a") in info.value.problem
    assert info.value.remedy


def test_open_store__labels__only_where_wanted(tmp_path: Path) -> None:
    """Labels are refused as image by their type, metadata or path, and read as labels; grey values the other way."""
    labels = VOXELS.astype(np.uint64) << np.uint64(50)
    write_zarr(tmp_path / "ids", labels)
    write_zarr(tmp_path / "sample/labels/ids")
    write_zarr(tmp_path / "float", VOXELS.astype(np.float32))
    write_ngff(tmp_path / "ngff", **{"image-label": {}})
    write_precomputed(tmp_path / "segmentation", "segmentation")
    write_zarr(tmp_path / "signed", VOXELS.astype(np.int64))
    cases: list[tuple[str, dict[str, Any]]] = [("ids", EM), ("signed", EM), ("sample", EM | {"array": "labels/ids"})]
    zarr.open_group(tmp_path / "sample", mode="a")
    for name, options in [*cases, ("ngff", {}), ("segmentation", {})]:
        with pytest.raises(VolumeError, match="label file given as image"):
            open_store(str(tmp_path / name), **options)
        found = open_store(str(tmp_path / name), as_labels=True, **options).levels[0].channels[0]
        assert same_region(found, labels if name == "ids" else VOXELS)
    with pytest.raises(VolumeError, match="float32"):
        open_store(str(tmp_path / "float"), as_labels=True, **EM)


@pytest.mark.parametrize("dtype", ["bool", "complex64", "float16"])
def test_open_store__other_voxel_types__are_refused(tmp_path: Path, dtype: str) -> None:
    write_zarr(tmp_path / "a", VOXELS.astype(dtype))
    with pytest.raises(VolumeError, match=f"type {dtype}"):
        open_store(str(tmp_path / "a"), **EM)


def test_open_store__nothing_to_read__says_so(tmp_path: Path) -> None:
    """Missing paths, folders without a store, groups without an image, missing arrays, damaged metadata."""
    zarr.open_group(tmp_path / "group", mode="w")
    write_zarr(tmp_path / "flat", VOXELS[0])
    write_zarr(tmp_path / "bad").joinpath("zarr.json").write_text("{")
    codec = write_zarr(tmp_path / "codec", version=2) / ".zarray"
    codec.write_text(json.dumps(json.loads(codec.read_text()) | {"compressor": {"id": "crc24"}}))
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("text")
    write_ngff(tmp_path / "time", "tzyx")
    for name, options, words in [
        ("none.zarr", {}, "does not exist"),
        ("folder", {}, "metadata found"),
        ("text.txt", {}, "neither a store nor"),
        ("group", {}, "No image or array was found"),
        ("group", {"array": "x/y"}, "no array x/y"),
        ("flat", EM, "no volume"),
        ("bad", EM, "not valid JSON"),
        ("codec", EM, '"crc24" is not registered'),
        ("time", {"spacing": (1.0, 2.0)}, "three"),
        ("time", {"spacing": (1.0, -2.0, 3.0)}, "not positive"),
    ]:
        with pytest.raises(VolumeError, match=words) as info:
            open_store(str(tmp_path / name), **options)
        assert info.value.remedy
        assert "tensorstore_spec" not in str(info.value)


def test_is_store__by_content_and_ending(tmp_path: Path) -> None:
    """A folder of cases is none, whatever its name; a store without ending is one."""
    write_zarr(tmp_path / "v2", version=2)
    write_ngff(tmp_path / "v3")
    write_n5(tmp_path / "n5", VOXELS, {}, (8, 8, 8))
    write_precomputed(tmp_path / "em")
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases/info").write_text("scales of notes")
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    (tmp_path / "b.zarr").write_bytes(b"x")
    assert all(is_store(str(tmp_path / name)) for name in ("v2", "v3", "n5", "em", "none.zarr", "none.hdf", "none.n5"))
    assert not any(is_store(str(tmp_path / name)) for name in ("cases", "a.nii.gz", "none", "b.zarr"))
    assert is_store("s3://bucket/em")
    assert is_store("precomputed://gs://bucket/em")
