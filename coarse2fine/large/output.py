"""What a run writes: formats, where it takes shape, and how it appears at its place in one step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from canvas import Box
from coarse2fine.errors import ConfigError, OutputError
from coarse2fine.io import LabelSpec, LabelStore, check_folder, open_labels, write_cremi
from coarse2fine.io.stores.tensors import parse_place
from coarse2fine.large.execution.work import WorkFolder
from coarse2fine.large.source import Source

PUBLISHED = "publish"
"""Phase whose marker says that the result is at its place."""
STAGED = "result"
"""Name of the result in the work folder."""

_PRECOMPUTED = "precomputed://"
_HDF5 = (".hdf", ".h5", ".hdf5")
_SECTIONS = 16  # that are converted at once for HDF5


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a run.

    Attributes:
        where: Path or URL.
        format: ``zarr`` (OME-NGFF 0.5), ``precomputed`` (neuroglancer) or ``cremi`` (HDF5).
        objects: Whether connected voxels of a label get a number of their own, in place of the label.
        overwrite: Whether something that is there already may be replaced.
        shards: Shape Z,Y,X of files that hold many chunks, empty for the usual one; None for a file for each chunk.
    """

    where: str
    format: Literal["zarr", "precomputed", "cremi"]
    objects: bool = False
    overwrite: bool = False
    shards: str | None = None

    @property
    def path(self) -> Path | None:
        """Where it is on this machine's file system; None for a URL."""
        return None if "://" in self.where else Path(self.where).expanduser().absolute()

    @property
    def name(self) -> str:
        """Name of the result."""
        return self.where.rstrip("/").rsplit("/", 1)[-1].split(".")[0] or "labels"

    @property
    def store_format(self) -> Literal["zarr", "precomputed"]:
        """Format of the store in which the result takes shape."""
        return "precomputed" if self.format == "precomputed" else "zarr"

    @property
    def pyramid(self) -> bool:
        """Whether the format has room for coarser levels."""
        return self.format != "cremi"

    def staged(self, work: WorkFolder) -> str:
        """Where the result takes shape: in the work folder, or, behind a URL, at its own place without metadata."""
        return str(work.path(STAGED)) if self.path else self.where

    def describe(self) -> Mapping[str, Any]:
        """For the manifest."""
        shards = {} if self.shards is None else {"shards": self.shards}
        return {"where": self.where, "format": self.format, "objects": self.objects, **shards}


def plan_output(
    where: str,
    *,
    objects: bool,
    overwrite: bool,
    inputs: str,
    work: Path,
    mask: str | None = None,
    shards: str | None = None,
) -> Output:
    """Decide the format by the name, and find out before a long run whether the result can be written.

    Args:
        where: Ends in .zarr, .hdf, .h5 or .hdf5, or begins with ``precomputed://``.
        objects: Whether objects are numbered; always so in HDF5, whose layout has no other labels.
        overwrite: Whether something that is there may be replaced.
        inputs: The input, which must be neither in the output nor around it.
        work: Work folder.
        mask: Another input, of which the same holds.
        shards: See ``Output``.

    Raises:
        OutputError: If it cannot be written there.
        ConfigError: If the name says no format.
    """
    output = name_output(where, objects=objects, overwrite=overwrite, shards=shards)
    path = output.path
    if path is None:
        return output
    for source in (inputs, mask):
        folder = parse_place(source).folder if source else None
        if folder and (_lies_in(path, folder) or _lies_in(folder, path)):
            raise OutputError(
                f"the output {path} and the input {source} lie in each other", "Choose an output elsewhere with -o."
            )
    if path.exists() and not overwrite and not was_published(work):
        raise _exists(path)
    if path.is_dir() and not _is_result(path):
        raise OutputError(f"{path} is a folder, but no result of an earlier run", "Choose another name with -o.")
    check_folder(path)
    work.parent.mkdir(parents=True, exist_ok=True)
    if work.parent.stat().st_dev != path.parent.stat().st_dev:
        raise OutputError(
            f"the work folder {work} and the output {path} are on different disks",
            "Put the work folder (--work) onto the output's: the result is moved to its place in one step.",
        )
    return output


def name_output(where: str, *, objects: bool, overwrite: bool, shards: str | None = None) -> Output:
    """Decide the format by the name; arguments as of ``plan_output``.

    Raises:
        ConfigError: If the name says no format, or one without shards if these are wanted.
    """
    if shards is not None and not where.rstrip("/").endswith(".zarr"):
        raise ConfigError(
            f"--shards is for results in zarr, and {where} is none", "Leave it out, or name a result ending in .zarr."
        )
    name = where.removeprefix(_PRECOMPUTED).rstrip("/")
    if where.startswith(_PRECOMPUTED):
        return Output(name, "precomputed", objects, overwrite)
    if name.endswith(_HDF5) and "://" not in name:
        return Output(name, "cremi", True, overwrite)
    if name.endswith(".zarr"):
        return Output(name, "zarr", objects, overwrite, shards)
    raise ConfigError(
        f"{where}: no format for the result of a volume that is read by region",
        "Name a folder or URL ending in .zarr, a file ending in .hdf, or precomputed://FOLDER.",
    )


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def was_published(work: Path) -> bool:
    """Whether the run of a work folder has made its result appear, and was killed before it could tidy up."""
    done = work / "done"
    moved = any((done / "create").glob("*/*.json")) and not (work / "data" / STAGED).exists()
    return moved or any((done / PUBLISHED).glob("*/*.json"))


def publish(output: Output, spec: LabelSpec, work: WorkFolder, source: Source) -> None:
    """Make the finished result appear at its place; may be repeated after a crash.

    Args:
        output: The place.
        spec: Where the result took shape.
        work: The work folder.
        source: The input, whose attributes HDF5 results keep.

    Raises:
        OutputError: If it cannot be written.
    """
    path = output.path
    if was_published(work.folder):
        return
    if path is not None and path.exists() and not output.overwrite:
        raise _exists(path)
    if output.format == "cremi" and path is not None:
        write_cremi(path, _slabs(open_labels(spec)), spec.grid, attributes=source.attributes())
        return
    staged = Path(spec.where)
    open_labels(spec).finish()
    if path is None:
        return
    try:
        _sync_tree(staged)
        if path.exists():
            old = work.path("replaced")
            if old.is_symlink():
                old.unlink()
            with suppress(FileNotFoundError):
                shutil.rmtree(old)
            path.rename(old)
        staged.rename(path)
    except OSError as error:
        raise OutputError(
            f"cannot move the result to {path}: {error.strerror}",
            "Make its folder one that is there and that you may write to, and run the same command again.",
        ) from error


def _exists(path: Path) -> OutputError:
    return OutputError(f"{path} exists already", "Use --overwrite to replace it, or choose another name.")


def _slabs(store: LabelStore) -> Iterator[NDArray[np.unsignedinteger[Any]]]:
    depth, height, width = store.spec.grid.shape
    step = min(_SECTIONS, store.spec.chunk[0])
    for start in range(0, depth, step):
        yield store.read(Box((start, 0, 0), (min(start + step, depth), height, width)))


def _is_result(path: Path) -> bool:
    """Whether a folder is something that this module may replace: a chunked array store, or empty."""
    return not any(path.iterdir()) or any((path / name).is_file() for name in ("zarr.json", "info"))


def _sync_tree(folder: Path) -> None:
    """Names of a store's metadata must be on the disk before the store is moved."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
