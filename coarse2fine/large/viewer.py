"""A state for neuroglancer, which shows image and result over each other: https://github.com/google/neuroglancer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from coarse2fine.io import Grid
from coarse2fine.io.stores.tensors import parse_place

PAGE = "https://neuroglancer-demo.appspot.com"
"""The public page of neuroglancer; nothing but the page itself comes from there."""
PORT = 9000
_METRES = {"nm": 1e-9, "mm": 1e-3}
_FAMILIES = {"OME-NGFF": "zarr", "zarr": "zarr", "N5": "n5", "precomputed": "precomputed"}


@dataclass(frozen=True, slots=True)
class Shown:
    """A store that is shown.

    Attributes:
        where: Path or URL.
        format: As in its identity, such as ``OME-NGFF 0.5``.
        array: Name of an array inside of it; empty for its top.
    """

    where: str
    format: str
    array: str = ""

    @property
    def family(self) -> str:
        """How neuroglancer calls the format; empty if it does not read it from here."""
        local = self.folder
        return "" if local and not local.is_dir() else _FAMILIES.get(self.format.split(" ")[0], "")

    @property
    def folder(self) -> Path | None:
        """Where it is on this machine; None for a URL."""
        return parse_place(self.where).folder


@dataclass(frozen=True, slots=True)
class View:
    """What a viewer needs.

    Attributes:
        state: For neuroglancer, fit for JSON.
        folders: On this machine, to be served under their numbers, see ``cli.serve``.
        doubts: What cannot be shown, and why.
    """

    state: Mapping[str, Any]
    folders: tuple[Path, ...]
    doubts: tuple[str, ...]

    @property
    def link(self) -> str:
        """The address that shows the state."""
        return f"{PAGE}/#!{quote(json.dumps(self.state, separators=(',', ':')), safe='')}"


def view_of(image: Shown, result: Shown, grid: Grid, labels: Sequence[str], *, objects: bool) -> View:
    """A view of image and result.

    Args:
        image: The input.
        result: What was written.
        grid: Of the result.
        labels: Values that are shown.
        objects: Whether they are too many to name: then all are shown.
    """
    layers: list[dict[str, Any]] = []
    folders: list[Path] = []
    doubts: list[str] = []
    for shown, kind in ((image, "image"), (result, "segmentation")):
        if not shown.family:
            doubts.append(f"neuroglancer does not read {shown.where} ({shown.format}): the state leaves it out")
            continue
        if shown.format.startswith("zarr"):
            doubts.append(
                f'{shown.where} is a plain array: give neuroglancer its voxel size in the layer\'s tab "Source"'
            )
        if shown.folder is None:
            url = parse_place(shown.where).url
        else:
            url = address(len(folders), shown.folder)
            folders.append(shown.folder)
        inner = f"/{quote(shown.array.strip('/'))}" if shown.array else ""
        layer: dict[str, Any] = {"type": kind, "name": "image" if kind == "image" else "labels"}
        layer["source"] = f"{shown.family}://{url}{inner}"
        if kind == "segmentation":
            layer["segments"] = [] if objects else list(labels)
        layers.append(layer)
    step = [f"{size * _METRES[grid.unit]:.12g}" for size in grid.spacing]
    dimensions = {name: [float(size), "m"] for name, size in zip("xyz", step[::-1], strict=True)}
    middle = [
        first / size + count / 2 for first, size, count in zip(grid.origin, grid.spacing, grid.shape, strict=True)
    ]
    state = {"dimensions": dimensions, "position": middle[::-1], "layers": layers, "layout": "4panel"}
    return View(state, tuple(folders), tuple(doubts))


def address(number: int, folder: Path, port: int = PORT) -> str:
    """Where ``cli.serve`` has a folder.

    >>> address(0, Path("data/in put.zarr"))
    'http://127.0.0.1:9000/0/in%20put.zarr'
    """
    return f"http://127.0.0.1:{port}/{number}/{quote(folder.name)}"
