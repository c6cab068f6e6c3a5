"""A raw data set whose labels are made from another one's: some of them, merged, and background elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.common.merging import Merged, merged_file
from coarse2fine.io import atomic_folder
from coarse2fine.nnunet.checkpoint import read_json


def derive(source: Path, target: Path, merged: Merged) -> None:
    """Write a raw data set in nnU-Net's layout with the training images of another one, unless it is there.

    Images are links. Test cases are not taken along.

    Args:
        source: Raw data set with ``imagesTr``, ``labelsTr`` and ``dataset.json``.
        target: Folder to write, in one step.
        merged: What its labels are made of.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    about = read_json(source / "dataset.json")
    labels = {"background": 0} | {name: value for value, name in enumerate(merged, 1)}
    with atomic_folder(target, lambda: None) as new:
        for name in ("imagesTr", "labelsTr"):
            (new / name).mkdir()
        for image in sorted((source / "imagesTr").iterdir()):
            (new / "imagesTr" / image.name).symlink_to(image.resolve())
        for file in sorted((source / "labelsTr").iterdir()):
            merged_file(file, merged, new / "labelsTr")
        (new / "dataset.json").write_text(json.dumps({**about, "labels": labels, "name": target.name}, indent=1))
