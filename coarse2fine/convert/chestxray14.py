"""NIH ChestX-ray14, as its authors publish it.

``Data_Entry_2017.csv`` or its later version, ``train_val_list.txt``, ``test_list.txt``, and pictures in
``images_001/images`` and so on. See Wang and others, CVPR 2017, https://nihcc.app.box.com/v/ChestXray-NIHCC.
"""

from __future__ import annotations

from pathlib import Path

from coarse2fine.convert.radiographs import Radiographs, find_file, present, read_lines
from coarse2fine.errors import ImageError
from coarse2fine.system.terminal import shown

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
_NONE = "No Finding"
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}


def find_chestxray14(source: Path, *, split: bool = True) -> Radiographs:
    """All pictures with their labels, and the official split.

    Args:
        source: Folder with ``Data_Entry_2017.csv`` and folders of pictures.
        split: Whether pictures are split as the lists say; those that are in none are left out.

    Raises:
        ImageError: If the table, a list or all pictures are missing, or a label is unknown.
    """
    path = find_file(source, "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
    places = {
        file.name: file.relative_to(source).as_posix()
        for folder in sorted(source.glob("images*"))
        for file in (*folder.glob("*.png"), *folder.glob("images/*.png"))
    }
    of = _splits(source) if split else {}
    records, outside = [], 0
    for line in read_lines(path, "Image Index", "Finding Labels", "Patient ID", "View Position"):
        name = line["Image Index"]
        if split and name not in of:
            outside += 1
            continue
        found = line["Finding Labels"].split("|")
        for label in found:
            if label not in (*LABELS, _NONE):
                raise ImageError(f"{path}: {shown(label)} of {shown(name)} is no label", "Download it again.")
        records.append(
            {
                "file": places.get(name, f"images/{name}"),
                "patient": line["Patient ID"],
                **({"split": of[name]} if split else {}),
                "view": line["View Position"],
                **{label: str(int(label in found)) for label in LABELS},
            }
        )
    return present(source, records, [f"{outside} pictures are in none of the lists, and left out"] if outside else [])


def _splits(source: Path) -> dict[str, str]:
    """The part that each picture is in."""
    of: dict[str, str] = {}
    for part, name in _LISTS.items():
        path = source / name
        if not path.is_file():
            raise ImageError(
                f"{source} holds no {name}",
                "Download it there, or leave the official split out: --no-split. c2f-finetune then splits by patient.",
            )
        of |= dict.fromkeys(path.read_text(encoding="utf-8").split(), part)
    return of
