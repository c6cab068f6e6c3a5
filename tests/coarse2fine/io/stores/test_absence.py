"""Servers in trouble: what is not there is the fill value, what a server does not hand out is an error."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from canvas import Box
from coarse2fine.errors import VolumeError
from coarse2fine.io import open_store
from coarse2fine.io.stores import tensors
from coarse2fine.io.stores.presence import check_stored

VOXELS = np.random.default_rng(0).integers(1, 255, (8, 16, 24), dtype=np.uint8)
VOXELS[:5, :9, :9] = 0  # the first chunk is background, and not written
CHUNK = (4, 8, 8)
PLACE: dict[str, Any] = {"resolution": [40, 4, 4], "units": ["nm"] * 3}
PAGE = b"<!DOCTYPE html><html><body>Back soon</body></html>"
Rule = Callable[[str, bool], int]  # status for a path, given whether a file is there; 299 answers with a page


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder by a rule that may change; a file that is handed out has status 200."""

    request_queue_size = 100

    def __init__(self, folder: Path) -> None:
        self.rule: Rule = lambda path, there: 200 if there else 404
        host = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *words: object) -> None:
                pass

            def do_GET(self) -> None:
                status = host.rule(self.path, Path(self.translate_path(self.path)).is_file())
                if status == 200:
                    super().do_GET()
                    return
                body = PAGE if status == 299 else b""
                self.send_response(200 if status == 299 else status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815  # the base class has it

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    zarr.create_array(tmp_path / "a", data=VOXELS, chunks=CHUNK, fill_value=0, attributes=PLACE)
    monkeypatch.setattr(tensors, "_RETRIES", {"max_retries": 2, "initial_delay": "1ms", "max_delay": "1ms"})
    with served(tmp_path) as host:
        yield host


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    with Server(folder) as host:
        thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield host
        host.shutdown()
        thread.join()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/a"


def of_absent(status: int) -> Rule:
    return lambda path, there: 200 if there else status


HALF, REST = (slice(0, 4),) + (slice(None),) * 2, (slice(4, 8),) + (slice(None),) * 2


@pytest.mark.parametrize("absent", [404, 403, 410, 299])
def test_region__server_in_order__absent_chunks_are_the_fill_value(server: Server, absent: int) -> None:
    """Whatever a server answers for chunks that were never written, the volume reads as from the disk."""
    server.rule = of_absent(absent)
    scales = open_store(address(server))
    array, storage = scales.levels[0].channels[0], scales.storage[0]
    assert np.array_equal(array[:, :, :], VOXELS)
    assert check_stored(scales) == ()
    assert storage.stored(Box((0, 0, 0), CHUNK)) is False
    assert storage.stored(Box((4, 0, 0), (8, 8, 8))) is True


@pytest.mark.parametrize(
    ("absent", "trouble"),
    [
        *((404, code) for code in (401, 403, 404, 429, 299)),
        *((403, code) for code in (401, 403, 404, 503)),
        *((410, 410), (299, 299), (299, 500)),
    ],
)
def test_region__server_fails_in_mid_run__is_an_error(server: Server, absent: int, trouble: int) -> None:
    """From some moment on the server answers everything in one way; after that it works again, and so does reading."""
    server.rule = of_absent(absent)
    array = open_store(address(server)).levels[0].channels[0]
    assert np.array_equal(array[HALF], VOXELS[HALF])
    server.rule = lambda path, there: trouble
    with pytest.raises(VolumeError, match=r"voxels \(4, 0, 0\) to \(8, 16, 24\)"):
        array[REST]
    server.rule = of_absent(absent)
    assert np.array_equal(array[REST], VOXELS[REST])


@pytest.mark.parametrize(
    ("absent", "trouble"), [(404, 403), (404, 299), (403, 403), (403, 401), (299, 299), (299, 403)]
)
def test_region__chunks_refused_but_not_metadata__is_an_error(server: Server, absent: int, trouble: int) -> None:
    """Chunks may lie behind another host than metadata."""
    server.rule = of_absent(absent)
    array = open_store(address(server)).levels[0].channels[0]
    assert np.array_equal(array[HALF], VOXELS[HALF])
    server.rule = lambda path, there: trouble if "/c/" in path else of_absent(absent)(path, there)
    with pytest.raises(VolumeError, match="cannot be read"):
        array[REST]


def test_region__one_chunk_refused_by_a_server_that_knows_404__is_an_error(server: Server) -> None:
    """Such as one that may not be read, among others that may."""
    array = open_store(address(server)).levels[0].channels[0]
    server.rule = lambda path, there: 403 if path.endswith("c/1/1/1") else of_absent(404)(path, there)
    with pytest.raises(VolumeError, match="403") as info:
        array[:, :, :]
    assert "that you may read it" in info.value.remedy
    assert np.array_equal(array[HALF], VOXELS[HALF])


def test_region__one_chunk_asks_who_is_there__is_an_error(server: Server) -> None:
    """401 never means that there is nothing, even where 403 does."""
    server.rule = of_absent(403)
    array = open_store(address(server)).levels[0].channels[0]
    server.rule = lambda path, there: 401 if path.endswith("c/1/1/1") else of_absent(403)(path, there)
    with pytest.raises(VolumeError, match="401"):
        array[:, :, :]


@pytest.mark.parametrize("absent", [403, 299])
def test_check_stored__all_chunks_refused__is_refused(server: Server, absent: int) -> None:
    """Nothing but metadata can be read from a server that does not say 404: not a volume of zeros."""
    server.rule = lambda path, there: absent if "/c/" in path else of_absent(absent)(path, there)
    with pytest.raises(VolumeError, match="none of the 12 chunks"):
        check_stored(open_store(address(server)))


def test_open_store__some_metadata_refused__is_an_error(server: Server, tmp_path: Path) -> None:
    """What a server refuses is not taken for absent where it says 404 for what is absent."""
    zarr.create_array(tmp_path / "b", data=VOXELS, chunks=CHUNK, zarr_format=2, attributes=PLACE)
    where = address(server).replace("/a", "/b")
    for name, code in ((".zattrs", 403), (".zattrs", 299), (".zarray", 403), (".zattrs", 401)):
        server.rule = lambda path, there, name=name, code=code: code if path.endswith(name) else 200 if there else 404
        with pytest.raises(VolumeError, match=r"zattrs|403") as info:
            open_store(where)
        assert ("credentials" in info.value.remedy) == (code != 299)
    server.rule = of_absent(404)
    assert np.array_equal(open_store(where).levels[0].channels[0][HALF], VOXELS[HALF])


@pytest.mark.parametrize("trouble", [429, 503])
def test_region__server_busy_for_a_moment__is_asked_again(server: Server, trouble: int) -> None:
    array = open_store(address(server)).levels[0].channels[0]
    asked: dict[str, int] = {}

    def busy(path: str, there: bool) -> int:
        asked[path] = asked.get(path, 0) + 1
        return trouble if asked[path] <= 2 else of_absent(404)(path, there)

    server.rule = busy
    assert np.array_equal(array[:, :, :], VOXELS)
    assert max(asked.values()) == 3
