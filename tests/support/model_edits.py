"""Changes to model folders: to their JSON files, and to what is in their checkpoints."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PLANS, DATA, CHECKPOINT = "plans.json", "dataset.json", "fold_all/checkpoint_final.pth"
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


def follow(remedy: str, folder: Path, pristine: Path) -> dict[str, Any]:
    """Does what a message says, with a folder that is as it should be at hand; returns options for ``load_model``."""
    if remedy.startswith("Name one that is there"):
        return {"checkpoint": remedy.rpartition(": ")[2]}
    if remedy == "Name the same kind of function in resampling_fn_data and resampling_fn_probabilities.":
        used = get(json.loads((folder / PLANS).read_text()), USED)
        for part in ("", "_kwargs"):
            set_key(PLANS, f"{USED}.resampling_fn_probabilities{part}", used[f"resampling_fn_data{part}"])(folder)
        return {}
    if re.match("Copy the model folder again|Give |Use a model|Use the model ", remedy):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pristine, folder)
        return {}
    words = {PLANS: r"plans\.json", DATA: r"dataset\.json", CHECKPOINT: "checkpoint(_final|s of| again)"}
    files = [file for file, word in words.items() if re.search(word, remedy)]
    assert files, remedy
    for file in files:
        if (folder / file).is_dir():
            (folder / file).rmdir()
        shutil.copy(pristine / file, folder / file)
    return {}
