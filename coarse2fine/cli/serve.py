"""``python -m coarse2fine.cli.serve``: stores on this machine for a viewer in its browser, such as neuroglancer.

Python's own web server tells browsers not to hand files to pages of others, and knows no parts of files, which viewers
need of shards. This one serves the folders that are named and nothing else, to this machine, and to one page.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_PAGE, _PORT = "https://neuroglancer-demo.appspot.com", 9000  # as of ``large.viewer``, which takes long to import
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_PIECE = 1 << 20  # bytes


class Handler(BaseHTTPRequestHandler):
    """Answers for files below some folders: ``/0/NAME/...`` for the first, and so on.

    Args:
        folders: The folders.
        origin: The page that may read.
    """

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, folders: Sequence[Path], origin: str) -> None:
        self.folders, self.origin = folders, origin
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_OPTIONS(self) -> None:  # the name is the server's
        """Lets the page ask for parts of files."""
        self._answer(204, {"Access-Control-Allow-Headers": "range", "Access-Control-Allow-Private-Network": "true"})

    def do_HEAD(self) -> None:
        """How large a file is."""
        self._file(body=False)

    def do_GET(self) -> None:
        """A file, or a part of it."""
        self._file(body=True)

    def _file(self, *, body: bool) -> None:
        path = self._path()
        if path is None:
            self._answer(404, {})
            return
        size = path.stat().st_size
        first, last = 0, size - 1
        if found := _RANGE.fullmatch(self.headers.get("Range", "")):
            low, high = found.groups()
            first = int(low) if low else max(size - int(high or 0), 0)
            last = min(int(high), size - 1) if low and high else size - 1
            if first > last:
                self._answer(416, {"Content-Range": f"bytes */{size}"})
                return
        headers = {"Accept-Ranges": "bytes"} | ({"Content-Range": f"bytes {first}-{last}/{size}"} if found else {})
        self._answer(206 if found else 200, headers, last - first + 1)
        if body:
            with path.open("rb") as stream:
                stream.seek(first)
                left = last - first + 1
                while left > 0 and (piece := stream.read(min(left, _PIECE))):
                    self.wfile.write(piece)
                    left -= len(piece)

    def _path(self) -> Path | None:
        """The file that is asked for; None if there is none, or it is none of ours."""
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):  # a page by another name
            return None
        _, number, *parts = unquote(urlsplit(self.path).path).split("/")
        if not number.isdecimal() or int(number) >= len(self.folders) or not parts:
            return None
        folder = self.folders[int(number)]
        path = folder.joinpath(*parts[1:])
        inside = parts[0] == folder.name and path.resolve().is_relative_to(folder.resolve())
        return path if inside and path.is_file() else None

    def _answer(self, code: int, headers: dict[str, str], length: int = 0) -> None:
        self.send_response(code)
        for name, value in (headers | {"Access-Control-Allow-Origin": self.origin}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """A line for each chunk would say nothing."""


def make_server(folders: Sequence[Path], port: int, origin: str) -> ThreadingHTTPServer:
    """A server for this machine; port 0 takes any that is free."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, folders=folders, origin=origin))


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m coarse2fine.cli.serve", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a store")
    parser.add_argument("--port", type=int, default=_PORT)
    parser.add_argument("--origin", default=_PAGE, help=f"page that may read (default: {_PAGE})")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        if not folder.is_dir():
            parser.error(f"{folder} is no folder")
    try:
        server = make_server([folder.absolute() for folder in options.folders], options.port, options.origin)
    except OSError as error:
        parser.error(f"port {options.port} cannot be used ({error.strerror}): end what uses it")
    with server:
        try:
            sys.stdout.write(f"serving at http://127.0.0.1:{server.server_address[1]} until Ctrl-C\n")
            sys.stdout.flush()
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
