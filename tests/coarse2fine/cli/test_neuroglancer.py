"""c2f-infer --neuroglancer: a state that its own library understands, and stores that a browser can read."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import tensorstore as ts
import zarr
from conftest import blobs
from infer_runs import SHAPE, Models, run, use
from large_volumes import write_image

from coarse2fine.cli.serve import make_server
from coarse2fine.io import Grid, open_store
from coarse2fine.large.viewer import PAGE, PORT, Shown, view_of

GRID = Grid((8, 16, 32), (40.0, 4.0, 4.0), "nm", (80.0, 8.0, 0.0))


@contextmanager
def serving(*folders: Path) -> Iterator[str]:
    """The server on any free port."""
    with make_server(folders, 0, PAGE) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.alone
def test_main__neuroglancer__state_shows_what_is_served(
    tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    """The addresses in the file, read through the server that the message names, give image and result."""
    image = write_image(tmp_path / "in put.zarr", blobs(SHAPE), spacing=(2, 0.8, 0.9))
    state = tmp_path / "state.json"
    arguments = ["-i", image, *use(models), "--set", "rois.threshold=0.5", "--shards"]
    assert run(*arguments, "-o", tmp_path / "out.zarr", "--neuroglancer", state) == 0
    told = capsys.readouterr().err
    folders = shlex.split(re.search(r"cli\.serve (.*)", told)[1])
    found = json.loads(state.read_text())
    assert [layer["type"] for layer in found["layers"]] == ["image", "segmentation"]
    assert found["dimensions"] == {"x": [0.0009, "m"], "y": [0.0008, "m"], "z": [0.002, "m"]}
    assert found["layers"][1]["segments"] == [str(label) for label in np.unique(labels_of(tmp_path / "out.zarr"))[1:]]
    with serving(*map(Path, folders)) as address:
        for layer, expected in zip(found["layers"], (blobs(SHAPE), labels_of(tmp_path / "out.zarr")), strict=True):
            url = layer["source"].replace(f"http://127.0.0.1:{PORT}", address).removeprefix("zarr://")
            array = ts.open({"driver": "zarr3", "kvstore": {"driver": "http", "base_url": f"{url}/0/"}}).result()
            np.testing.assert_array_equal(array.read().result(), expected)
            assert open_store(url, as_labels=layer["type"] != "image").levels[0].grid.shape == SHAPE


def labels_of(folder: Path) -> np.ndarray:
    return zarr.open_group(folder, mode="r")["0"][:]


def test_view_of__its_own_library__understands_all_of_it(tmp_path: Path) -> None:
    """Layers, places and units, as neuroglancer's Python package reads the state."""
    neuroglancer = pytest.importorskip("neuroglancer", reason="its Python package is not installed")
    for name in ("a.zarr", "b"):
        (tmp_path / name).mkdir()
    shown = Shown(str(tmp_path / "a.zarr"), "OME-NGFF 0.4", "em"), Shown(str(tmp_path / "b"), "precomputed")
    view = view_of(*shown, GRID, ["1", "2"], objects=False)
    state = neuroglancer.ViewerState(json.loads(json.dumps(view.state)))
    assert [type(layer.layer).__name__ for layer in state.layers] == ["ImageLayer", "SegmentationLayer"]
    assert state.layers[0].source[0].url == "zarr://http://127.0.0.1:9000/0/a.zarr/em"
    assert state.layers[1].source[0].url == "precomputed://http://127.0.0.1:9000/1/b"
    assert set(state.layers[1].segments) == {1, 2}
    np.testing.assert_allclose(state.dimensions.scales, [4e-9, 4e-9, 4e-8])
    assert list(state.position) == [16, 10, 6]
    assert neuroglancer.parse_url(view.link).to_json() == json.loads(json.dumps(view.state))


def test_view_of__other_places_and_formats__are_taken_or_left_out_with_a_reason(tmp_path: Path) -> None:
    """Buckets are read where they are; HDF5 is not read at all; objects are too many to be named."""
    hdf5 = tmp_path / "in.hdf"
    hdf5.touch()
    view = view_of(Shown(str(hdf5), "HDF5"), Shown("s3://bucket/out.zarr", "OME-NGFF 0.5"), GRID, ["1"], objects=True)
    (layer,) = view.state["layers"]
    assert layer["source"] == "zarr://s3://bucket/out.zarr"
    assert layer["segments"] == []
    assert "does not read" in view.doubts[0]
    assert view.folders == ()


def test_serve__parts_of_files_for_one_page__and_nothing_else(tmp_path: Path) -> None:
    """Ranges as shards need them; no file outside of the folders, no list of files, no other name of this machine."""
    folder = tmp_path / "a.zarr"
    folder.mkdir()
    (folder / "c").write_bytes(bytes(range(100)))
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")

    def ask(path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        request = urllib.request.Request(address + path, headers=headers)  # http
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, b"", {}

    with serving(folder) as address:
        code, body, headers = ask("/0/a.zarr/c", Range="bytes=10-19")
        assert (code, body, headers["Content-Range"]) == (206, bytes(range(10, 20)), "bytes 10-19/100")
        assert headers["Access-Control-Allow-Origin"] == PAGE
        assert ask("/0/a.zarr/c", Range="bytes=-5")[1] == bytes(range(95, 100))
        assert ask("/0/a.zarr/c", Range="bytes=90-")[1] == bytes(range(90, 100))
        assert ask("/0/a.zarr/c")[:2] == (200, bytes(range(100)))
        assert ask("/0/a.zarr/c", Range="bytes=200-")[0] == 416
        for path in (
            "/0/a.zarr/../secret",
            "/0/a.zarr/%2e%2e/secret",
            "/0/a.zarr/link",
            "/0/a.zarr",
            "/1/a.zarr/c",
            "/",
        ):
            assert ask(path)[0] == 404
        assert ask("/0/a.zarr/c", Host="evil.example")[0] == 404


def test_serve__as_the_message_says_it__starts(tmp_path: Path) -> None:
    """The command itself, on a port that is free."""
    command = [sys.executable, "-m", "coarse2fine.cli.serve", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving at http://127.0.0.1:")
        process.terminate()
