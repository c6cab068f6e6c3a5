"""Changes to model folders: to their JSON files, and to what is in their checkpoints."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CHECKPOINT = "fold_all/checkpoint_final.pth"
NETWORK = "dynamic_network_architectures.architectures.unet"
USED, SPARE = "configurations.3d_fullres", "configurations.spare"


def get(document: Any, key: str) -> Any:
    for part in key.split("."):
        document = document[part]
    return document


def put(document: Any, key: str, value: object) -> None:
    parent, _, last = key.rpartition(".")
    (get(document, parent) if parent else document)[last] = value


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def set_key(file: str, key: str, value: object) -> Callable[[Path], object]:
    """A way to damage a folder: overwrite one value of a JSON file."""
    return lambda folder: edit_json(folder / file, lambda document: put(document, key, value))


def edit_checkpoint(folder: Path, change: Callable[[dict[str, Any]], object], **options: Any) -> None:
    content = torch.load(folder / CHECKPOINT, weights_only=False)
    change(content)
    torch.save(content, folder / CHECKPOINT, **options)


def in_checkpoint(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """A way to damage a folder: change what the checkpoint holds."""
    return lambda folder: edit_checkpoint(folder, change)


def edit_pickle(path: Path, change: Callable[[bytes], bytes], compress: int = zipfile.ZIP_STORED) -> None:
    """Rewrites the instructions inside a checkpoint in PyTorch's zip format."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)
