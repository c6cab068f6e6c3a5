"""What a store holds, for people who named nothing in it, or the wrong thing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from coarse2fine.io.stores.tensors import MOST_METADATA, Store

_MOST_FOLDERS = 500  # that are looked into
_MOST_NAMES = 8
_FILES = ("zarr.json", ".zarray", ".zattrs", "attributes.json")


def arrays_remedy(store: Store, below: str = "") -> str:
    """What may be named instead: images and arrays, as far as they can be listed.

    Args:
        store: The store.
        below: Path of a group in it.
    """
    if store.folder is None:
        return "Name an image or array in it (--array), by its path from the store's top."
    found = list_arrays(store.folder, below) or list_arrays(store.folder)
    if not found:
        return "No image or array was found in it: name another store."
    more = ", ..." if len(found) > _MOST_NAMES else ""
    return f"Name one in it (--array): {', '.join(found[:_MOST_NAMES])}{more}."


def list_arrays(folder: Path, below: str = "") -> list[str]:
    """Paths of images and arrays in a folder; nothing below them is listed."""
    found, pending, left = [], [below], _MOST_FOLDERS
    while pending and left:
        path, left = pending.pop(0), left - 1
        if path != below and _is_volume(folder / path):
            found.append(path)
            continue
        try:
            with os.scandir(folder / path) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue
        pending += [f"{path}/{name}".lstrip("/") for name in names[:_MOST_FOLDERS]]
    return found


def _is_volume(folder: Path) -> bool:
    """Whether a folder's metadata are those of an array or an image of several resolutions."""
    stated = [content for name in _FILES if (content := _read(folder / name))]
    if any("dimensions" in content or ("shape" in content and "zarr_format" in content) for content in stated):
        return True
    inner = [content.get("attributes", content) for content in stated]
    inner = [content.get("ome", content) for content in inner if isinstance(content, dict)]
    is_image = any(isinstance(content, dict) and "multiscales" in content for content in inner)
    return is_image or "dimensions" in _read(folder / "s0/attributes.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size < MOST_METADATA else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
