"""What HDF5 datasets say about their axes and their place in space, and what reading them may cost."""

from __future__ import annotations

import importlib
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from coarse2fine.errors import VolumeError
from coarse2fine.io.stores.scales import MOST_IN_CHUNK

ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)
"""What h5py raises on damage, and on links and types that are no data."""

_DEFLATE, _DEFLATE_RATIO = 1, 1032  # zlib's best, by its format
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class StatedPlace:
    """What a dataset's attributes say; lists are in the order of its axes.

    Attributes:
        names: Of all axes; empty if they have none.
        spacing: Of the axes in space or of all; None if it is not stated.
        offset: Position of the first voxel, likewise.
        units: One for all, or one each.
    """

    names: tuple[str | None, ...]
    spacing: tuple[float, ...] | None
    offset: tuple[float, ...] | None
    units: str | tuple[str | None, ...] | None


def read_place(where: str, dataset: h5py.Dataset) -> StatedPlace:
    """Attributes of CREMI and funlib.persistence, of ilastik (``axistags``) and of Fiji (``element_size_um``).

    Raises:
        VolumeError: If one of them is not of its kind.
    """
    units = _attribute(dataset, "units")
    for name in ("voxel_size", "resolution", "element_size_um"):
        spacing = _numbers(where, dataset, name)
        if spacing is not None:
            if name == "element_size_um":
                units = "um"
            break
    texts = _texts(units)
    return StatedPlace(
        _names(dataset),
        spacing,
        _numbers(where, dataset, "offset"),
        texts[0] if texts and len(texts) == 1 else texts,
    )


def check_filters(where: str, dataset: h5py.Dataset) -> None:
    """Refuses compression that nothing here can undo; packages that bring HDF5's plugins are used if installed.

    Raises:
        VolumeError: Naming the filter.
    """
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(index) for index in range(plist.get_nfilters())]
    for code, _, _, name in filters:
        if not h5py.h5z.filter_avail(code) and not _plugins_have(code):
            words = f"{name.decode(errors='replace')} ({code})" if name else str(code)
            raise VolumeError(
                f"{where} is compressed by the HDF5 filter {words}, which is not installed",
                "Install HDF5's plugins (pip install hdf5plugin), or repack the file where they "
                "are (h5repack -f GZIP=4 OLD NEW).",
            )
    if sum(code == _DEFLATE for code, *_ in filters) > 1:
        raise VolumeError(f"{where} is compressed by deflate twice", "Repack it (h5repack -f GZIP=4 OLD NEW).")


def _plugins_have(code: int) -> bool:
    try:
        importlib.import_module("hdf5plugin")
    except ImportError:
        return False
    return bool(h5py.h5z.filter_avail(code))


def check_chunks(where: str, dataset: h5py.Dataset, region: Sequence[Any]) -> None:
    """Refuses chunks that would grow far beyond their size when they are unpacked.

    HDF5 unpacks all that a chunk holds before it looks at the size. Small ones cannot grow too large; large ones are
    unpacked piece by piece first.

    Raises:
        VolumeError: Naming the chunk.
    """
    if dataset.compression != "gzip":
        return
    size = int(np.prod(dataset.chunks)) * dataset.dtype.itemsize
    for place in chunk_places(dataset, region):
        info = dataset.id.get_chunk_info_by_coord(place)
        if info.byte_offset is None or info.size * _DEFLATE_RATIO <= MOST_IN_CHUNK or info.filter_mask:
            continue
        stream, unpacked = zlib.decompressobj(), 0
        rest = dataset.id.read_direct_chunk(place)[1]
        while rest and not stream.eof and unpacked <= size:
            unpacked += len(stream.decompress(rest, _PIECE))
            rest = stream.unconsumed_tail
        if unpacked > size:
            raise VolumeError(
                f"{where}: the chunk at {place} unpacks to more than its {size} bytes",
                "The file is damaged: copy or download it again.",
            )


def chunk_places(dataset: h5py.Dataset, region: Sequence[Any]) -> Iterator[tuple[int, ...]]:
    """First voxels of the chunks that a region lies in."""
    parts = [part if isinstance(part, slice) else slice(part, part + 1) for part in region]
    ranges = [
        range(part.start // edge * edge, part.stop, edge) for part, edge in zip(parts, dataset.chunks, strict=True)
    ]
    return itertools.product(*ranges)


def _attribute(dataset: h5py.Dataset, name: str) -> Any:
    try:
        return dataset.attrs.get(name)
    except ERRORS:
        return None


def _numbers(where: str, dataset: h5py.Dataset, name: str) -> tuple[float, ...] | None:
    if name not in dataset.attrs:
        return None
    values = np.ravel(_attribute(dataset, name))
    if values.dtype.kind not in "iuf" or not 1 <= values.size <= 5:
        raise VolumeError(
            f"{where}: attribute {name} is not a list of 3 numbers",
            "Correct or remove it; --spacing and --unit say the spacing instead.",
        )
    return tuple(float(value) for value in values)


def _texts(value: Any) -> tuple[str | None, ...] | None:
    """Text or a list of texts, as h5py returns them."""
    if value is None:
        return None
    parts = [value] if isinstance(value, str | bytes) else list(np.ravel(value))[:5]
    texts = [part.decode(errors="replace") if isinstance(part, bytes) else part for part in parts]
    return tuple(text if isinstance(text, str) else None for text in texts)


def _names(dataset: h5py.Dataset) -> tuple[str | None, ...]:
    """Names of the axes, by whoever wrote them."""
    named = _texts(_attribute(dataset, "axis_names"))
    if named:
        return named
    tags = _texts(_attribute(dataset, "axistags"))
    if tags and tags[0]:
        try:
            return tuple(str(axis["key"]) for axis in json.loads(tags[0])["axes"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return ()
    labels = _texts(_attribute(dataset, "DIMENSION_LABELS")) or ()
    return labels if any(labels) else ()
