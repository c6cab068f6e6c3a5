"""How chunks of stored arrays are named, and what lies about under other names."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorstore as ts

_PACKED = {
    ".gz": "gunzip -r",
    ".bz2": "bunzip2",
    ".br": "brotli -d",
    ".zst": "zstd -d",
    ".zstd": "zstd -d",
    ".xz": "unxz",
}
_METADATA = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata", "attributes.json", "info", "provenance"}
_MOST_ENTRIES = 2000  # that are looked at in search of chunks; a store may have millions


def edges_of(array: ts.TensorStore, shard: bool = False) -> tuple[int, ...]:
    """Voxels of a chunk along each axis: what is read as a whole, or what is stored as one value."""
    layout = array.chunk_layout
    chunk = layout.write_chunk if shard else layout.read_chunk
    return tuple(edge or length for edge, length in zip(chunk.shape or array.shape, array.shape, strict=True))


def chunk_key(array: ts.TensorStore, voxel: Sequence[int]) -> str | None:
    """The key of the value that holds a voxel, below the array's own folder; None if the format has no such rule.

    Args:
        array: As opened, with its own axes and domain.
        voxel: In these.
    """
    spec: dict[str, Any] = array.spec().to_json()
    metadata = spec.get("metadata", {})
    edges = edges_of(array, shard=True)
    origin = array.domain.inclusive_min
    index = [str((v - o) // e) for v, o, e in zip(voxel, origin, edges, strict=True)]
    if spec["driver"] == "zarr":
        return str(metadata.get("dimension_separator", ".")).join(index)
    if spec["driver"] == "zarr3":
        encoding = metadata.get("chunk_key_encoding", {})
        is_v2 = encoding.get("name") == "v2"
        separator = encoding.get("configuration", {}).get("separator", "." if is_v2 else "/")
        return str(separator).join(index if is_v2 else ["c", *index])
    if spec["driver"] == "n5":
        return "/".join(index)
    if spec.get("scale_metadata", {}).get("sharding"):
        return None
    ends = zip(index, origin, edges, array.domain.exclusive_max, strict=True)
    return "_".join(f"{o + int(i) * e}-{min(o + (int(i) + 1) * e, stop)}" for i, o, e, stop in list(ends)[:3])


def blosc_checker(folder: Path, array: ts.TensorStore) -> Callable[[Sequence[int]], None] | None:
    """What refuses chunks that say they unpack to more than a chunk; None if the array is not compressed by Blosc.

    Blosc allocates, and fills, as many bytes as a chunk's own header says, up to 2 GB. Other codecs stop by themselves.

    Args:
        folder: Of the array.
        array: As opened; the function takes one of its voxels, and raises ValueError.
    """
    metadata: dict[str, Any] = array.spec().to_json().get("metadata", {})
    stated = [metadata.get("compressor"), metadata.get("compression"), *metadata.get("codecs", [])]
    if not any(
        isinstance(one, dict) and "blosc" in (one.get("id"), one.get("type"), one.get("name")) for one in stated
    ):
        return None
    start = 4 + 4 * array.rank if "compression" in metadata else 0  # N5 has a header of its own before
    largest = math.prod(edges_of(array)) * array.dtype.numpy_dtype.itemsize

    def check(voxel: Sequence[int]) -> None:
        try:
            with (folder / (chunk_key(array, voxel) or "")).open("rb") as file:
                header = file.read(start + 8)[start:]
        except OSError:
            return  # missing, or told when it is read
        size = int.from_bytes(header[4:8], "little")
        if size > largest:
            raise ValueError(f"a chunk unpacks to {size} bytes instead of {largest}")

    return check


def stray_hint(folder: Path | None, key: str | None) -> str:
    """What to do if an array's folder holds chunks under other names than its metadata say; empty if it does not.

    Args:
        folder: Of the array; None if it is not on a disk.
        key: Of one of its chunks, as the metadata have it.
    """
    found = next(_values(folder), None) if folder is not None and key is not None else None
    if found is None or folder is None or key is None:
        return ""
    packed = _PACKED.get(Path(found).suffix)
    if packed:
        return f"Its chunks are packed once more, as {found}: unpack them ({packed} {folder})."
    pattern, other = re.sub(r"\d+", "0", key), re.sub(r"\d+", "0", found)
    if other == pattern:
        return ""
    for old, new in (("/", "."), (".", "/")):
        if other == pattern.replace(old, new) and (folder / ".zarray").is_file():
            return f'Its chunks are named like {found}: write "dimension_separator": "{new}" into {folder}/.zarray.'
        if other == pattern.replace(old, new) and (folder / "zarr.json").is_file():
            return (
                f'Its chunks are named like {found}: write "separator": "{new}" into the configuration of '
                f"chunk_key_encoding in {folder}/zarr.json."
            )
    return f"It holds {found}, but its metadata have chunks named like {key}: rename them or correct the metadata."


def _values(folder: Path) -> Iterator[str]:
    """Files below a folder that are no metadata, by their paths from there."""
    pending, left = [""], _MOST_ENTRIES
    while pending:
        part = pending.pop()
        try:
            with os.scandir(folder / part) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        return
                    path = f"{part}/{entry.name}".lstrip("/")
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
                    elif entry.name not in _METADATA and not entry.name.startswith("."):
                        yield path
        except OSError:
            continue
