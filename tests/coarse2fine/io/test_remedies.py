"""What servers, plugins and hostile files do to stores: common cases work, remedies are followed to the letter."""

from __future__ import annotations

import functools
import gc
import http.server
import importlib
import json
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import zarr

from coarse2fine.errors import VolumeError
from coarse2fine.io import open_store
from coarse2fine.io.stores.presence import check_stored

VOXELS = np.random.default_rng(0).integers(1, 255, (8, 12, 20), dtype=np.uint8)
VOXELS[:5, :9, :9] = 0  # the first chunk is background, and not written
PLACE: dict[str, Any] = {"resolution": [40, 4, 4], "units": ["nm"] * 3}


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; says in its own way that something is not there."""

    def __init__(self, folder: Path, missing: Callable[[http.server.SimpleHTTPRequestHandler], None]) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *words: object) -> None:
                pass

            def send_error(self, *words: Any) -> None:
                missing(self)

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))

    request_queue_size = 100


def forbidden(handler: http.server.SimpleHTTPRequestHandler) -> None:
    handler.send_response(403)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def web_page(handler: http.server.SimpleHTTPRequestHandler) -> None:
    page = b"<!DOCTYPE html><html><body>Welcome</body></html>"
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(len(page)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(page)


@pytest.fixture(params=[forbidden, web_page])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with Server(tmp_path, request.param) as host:
        thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}"
        host.shutdown()
        thread.join()


@pytest.mark.parametrize("version", [2, 3])
def test_open_store__server_without_404__reads_as_from_the_disk(tmp_path: Path, server: str, version: int) -> None:
    """Formats are found out by asking for files that do not exist, and chunks of background do not exist either."""
    options = {"chunks": (4, 8, 8), "zarr_format": version, "fill_value": 0, "attributes": PLACE}
    zarr.create_array(tmp_path / "a", data=VOXELS, **options)
    scales = open_store(f"{server}/a")
    assert np.array_equal(scales.levels[0].channels[0][:, :, :], VOXELS)
    assert check_stored(scales) == ()
    with pytest.raises(VolumeError):
        open_store(f"{server}/b")


def test_open_store__all_forbidden__says_so(tmp_path: Path) -> None:
    """A store that may not be read is not called missing."""
    with Server(tmp_path, forbidden) as host:
        thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with pytest.raises(VolumeError, match="403") as info:
            open_store(f"http://127.0.0.1:{host.server_port}/a")
        host.shutdown()
        thread.join()
    assert "that you may read it" in info.value.remedy


PLUGIN = """
import ctypes, h5py

class Filter(ctypes.Structure):
    _fields_ = [("version", ctypes.c_int), ("id", ctypes.c_int), ("encoder", ctypes.c_uint), ("decoder", ctypes.c_uint),
                ("name", ctypes.c_char_p), ("can_apply", ctypes.c_void_p), ("set_local", ctypes.c_void_p),
                ("filter", ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p,
                                            ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p))]

unchanged = Filter._fields_[7][1](lambda flags, count, values, size, room, buffer: size)
kept = Filter(1, 300, 1, 1, b"test", None, None, unchanged)
h5py.h5z.register_filter(ctypes.addressof(kept))
"""


def test_hdf5__filter_of_a_plugin__works_once_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the message names the filter and the package; with it the file is read."""
    path = tmp_path / "a.hdf"
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(VOXELS.shape)
        plist.set_filter(300, h5py.h5z.FLAG_OPTIONAL, ())
        raw = h5py.h5d.create(
            file.create_group("volumes").id, b"raw", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple(VOXELS.shape), plist
        )
        raw.write_direct_chunk((0, 0, 0), VOXELS.tobytes())
        file["volumes/raw"].attrs["resolution"] = (40.0, 4.0, 4.0)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(VolumeError, match=r"filter .*300.*not installed") as info:
        open_store(str(path))
    assert "pip install hdf5plugin" in info.value.remedy
    (tmp_path / "hdf5plugin.py").write_text(PLUGIN)
    monkeypatch.delitem(sys.modules, "hdf5plugin")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    scales = open_store(str(path))
    assert np.array_equal(scales.levels[0].channels[0][:, :, :], VOXELS)
    del scales, info, raw
    gc.collect()  # HDF5 keeps filters of datasets that are open
    h5py.h5z.unregister_filter(300)
    sys.modules.pop("hdf5plugin")


def test_hdf5__chunk_that_expands__is_refused(tmp_path: Path) -> None:
    """A megabyte of deflate that becomes a gigabyte is unpacked piece by piece, as far as the chunk's size."""
    packer = zlib.compressobj(9)
    first, again = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    bomb = first + again * 999
    with h5py.File(tmp_path / "a.hdf", "w") as file:
        raw = file.create_dataset("volumes/raw", shape=(4, 8, 8), chunks=(4, 8, 8), dtype="u1", compression="gzip")
        raw.attrs["resolution"] = (40.0, 4.0, 4.0)
        raw.id.write_direct_chunk((0, 0, 0), bomb)
    with pytest.raises(VolumeError, match="unpacks to more than its 256 bytes"):
        open_store(str(tmp_path / "a.hdf")).levels[0].channels[0][:, :, :]


def test_hdf5__large_honest_chunk__is_read(tmp_path: Path) -> None:
    """A chunk large enough to be unpacked piece by piece first."""
    voxels = np.random.default_rng(0).integers(0, 255, (16, 200, 200), dtype=np.uint8)
    with h5py.File(tmp_path / "a.hdf", "w") as file:
        raw = file.create_dataset("volumes/raw", data=voxels, chunks=voxels.shape, compression="gzip")
        raw.attrs["resolution"] = (40.0, 4.0, 4.0)
    assert np.array_equal(open_store(str(tmp_path / "a.hdf")).levels[0].channels[0][:, :, :], voxels)


def test_zip__entry_that_expands__is_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=VOXELS, attributes=PLACE)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a/zarr.json", "zarr.json")
        archive.writestr("c/0/0/0", bytes(123_457))
    size, larger = ((n).to_bytes(4, "little") for n in (123_457, 600 << 20))
    path.write_bytes(path.read_bytes().replace(size, larger))
    with pytest.raises(VolumeError, match="c/0/0/0 would take"):
        open_store(str(tmp_path / "a.zip"))


ABSURD: list[tuple[str, dict[str, Any], str]] = [
    ("zarr.json", {"shape": [10**9, 10**9, 10**9]}, "no volume has so many"),
    ("zarr.json", {"shape": [2**62, 8, 8]}, "less than or equal"),
    ("zarr.json", {"shape": [-1, 8, 8]}, "greater than or equal to 0"),
    ("zarr.json", {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**4] * 3}}}, "smaller chunks"),
    ("zarr.json", {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 8, 8]}}}, "greater than"),
    ("zarr.json", {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 8, 10**6]}}}, "far more"),
    ("zarr.json", {"chunk_grid": 5}, "chunk_grid"),
    ("zarr.json", {"shape": "8"}, "shape"),
    ("zarr.json", {"codecs": [5]}, "codecs"),
    ("zarr.json", {"attributes": [1]}, "attributes is no JSON object"),
    ("zarr.json", {"attributes": {"resolution": "4"}}, "resolution"),
    ("zarr.json", {"attributes": {"resolution": [4, 4]}}, "resolution is not a list of 3 numbers"),
    ("zarr.json", {"attributes": {"ome": {"multiscales": {"0": 1}}}}, "multiscales"),
    ("zarr.json", {"attributes": {"ome": {"multiscales": [[]]}}}, "no JSON object"),
]


@pytest.mark.parametrize(("name", "change", "words"), ABSURD, ids=[str(number) for number in range(len(ABSURD))])
def test_open_store__absurd_metadata__refused_at_once(
    tmp_path: Path, name: str, change: dict[str, Any], words: str
) -> None:
    """Nothing is allocated, no library sees it, and what is wrong is named; undone, the store is read."""
    zarr.create_array(tmp_path / "a", data=VOXELS, chunks=(4, 8, 8), attributes=PLACE)
    path = tmp_path / "a" / name
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | change))
    start = time.monotonic()
    with pytest.raises(VolumeError, match=words) as info:
        open_store(str(tmp_path / "a"))
    assert time.monotonic() - start < 5
    assert str(tmp_path / "a") in info.value.problem
    path.write_text(text)
    assert np.array_equal(open_store(str(tmp_path / "a")).levels[0].channels[0][:, :, :], VOXELS)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 5000 + "1" + "}" * 5000, "9" * 10_000, "[1]", "\xff"])
def test_open_store__json_that_exhausts__is_refused(tmp_path: Path, text: str) -> None:
    zarr.create_array(tmp_path / "a", data=VOXELS, attributes=PLACE)
    (tmp_path / "a/zarr.json").write_text(text, encoding="latin-1")
    with pytest.raises(VolumeError, match="JSON"):
        open_store(str(tmp_path / "a"))


def test_open_store__huge_metadata__are_not_read(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=VOXELS, attributes=PLACE)
    with (tmp_path / "a/zarr.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(VolumeError, match="larger than 16 MiB"):
        open_store(str(tmp_path / "a"))


def test_remedy__chunks_too_large__written_anew(tmp_path: Path) -> None:
    """A volume in one chunk of more than half a gigabyte is refused; with smaller chunks it is read."""
    shape = (1 << 10, 1 << 10, 513)
    zarr.create_array(tmp_path / "a", shape=shape, dtype="u1", chunks=shape, attributes=PLACE)
    with pytest.raises(VolumeError, match=r"takes 0\.538 GB") as info:
        open_store(str(tmp_path / "a"))
    assert "64 x 64 x 64" in info.value.remedy
    zarr.create_array(tmp_path / "b", shape=shape, dtype="u1", chunks=(64, 64, 64), attributes=PLACE)
    assert open_store(str(tmp_path / "b")).levels[0].grid.shape == shape


@pytest.mark.parametrize("version", [2, 3])
def test_region__blosc_chunk_that_expands__is_refused(tmp_path: Path, version: int) -> None:
    """Blosc would allocate what a chunk's header says, here 2 GB; others' chunks stop by themselves."""
    codec = zarr.codecs.BloscCodec() if version == 3 else numcodecs.Blosc()
    options = {"chunks": (4, 8, 8), "zarr_format": version, "attributes": PLACE, "compressors": codec}
    zarr.create_array(tmp_path / "a", data=VOXELS, **options)
    array = open_store(str(tmp_path / "a")).levels[0].channels[0]
    assert np.array_equal(array[:, :, :], VOXELS)
    path = tmp_path / "a" / ("c/1/1/2" if version == 3 else "1.1.2")
    packed = path.read_bytes()
    path.write_bytes(packed[:4] + (2**31 - 32).to_bytes(4, "little") + packed[8:])
    with pytest.raises(VolumeError, match="unpacks to 2147483616 bytes instead of 256"):
        open_store(str(tmp_path / "a")).levels[0].channels[0][4:, 8:, 16:]
    assert np.array_equal(open_store(str(tmp_path / "a")).levels[0].channels[0][:4, :, :], VOXELS[:4])
