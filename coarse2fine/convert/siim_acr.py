"""SIIM-ACR pneumothorax segmentation: run lengths of the challenge as masks.

``train-rle.csv`` with the columns ``ImageId`` and ``EncodedPixels``, a row for each pneumothorax and -1 for none;
pictures named by their identifier, anywhere below the folder. The challenge published them as DICOM files of 1024 x
1024. https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coarse2fine.convert.radiographs import Radiographs, find_file, present, read_lines
from coarse2fine.errors import ImageError
from coarse2fine.io import atomic_write
from coarse2fine.system.terminal import shown

SIZE = 1024
LABEL, MASKS = "Pneumothorax", "masks"
_PICTURES = (".png", ".jpg", ".jpeg")
_NONE = "-1"


def find_siim_acr(source: Path) -> tuple[Radiographs, dict[str, list[str]]]:
    """All pictures that have a row, and the run lengths of each by its identifier.

    Raises:
        ImageError: If the table or all pictures are missing.
    """
    path = find_file(source, "train-rle.csv", "stage_2_train.csv")
    runs: dict[str, list[str]] = {}
    for line in read_lines(path, "ImageId", "EncodedPixels"):
        several = runs.setdefault(line["ImageId"], [])
        if (text := line["EncodedPixels"].strip()) != _NONE:
            several.append(text)
    files = [file for file in sorted(source.rglob("*")) if MASKS not in file.relative_to(source).parts]
    places = {file.stem: file.relative_to(source).as_posix() for file in files if file.suffix.lower() in _PICTURES}
    if not places and any(file.suffix.lower() == ".dcm" for file in files):
        raise ImageError(
            f"{source} holds the pictures as DICOM files",
            "Save each as a .png file of the same name, for instance by dcm2pnm of DCMTK, beside it.",
        )
    records = [
        {"file": places.get(name, f"{name}.png"), "patient": name, LABEL: str(int(bool(several)))}
        for name, several in runs.items()
    ]
    return present(source, records), runs


def write_masks(folder: Path, data: Radiographs, runs: dict[str, list[str]]) -> None:
    """A mask of each picture, named as it: 255 is pneumothorax.

    Raises:
        ImageError: If run lengths cannot be, naming the picture.
        OutputError: If it cannot be written.
    """
    for record in data.records:
        try:
            mask = decode(runs[record["patient"]])
        except ValueError as error:
            raise ImageError(
                f"run lengths of {shown(record['patient'])}: {error}", "Download the table again."
            ) from None
        with atomic_write(folder / f"{Path(record['file']).stem}.png") as path:
            Image.fromarray(mask.astype(np.uint8) * 255).save(path, "PNG")


def decode(runs: Sequence[str], size: int = SIZE) -> NDArray[np.bool_]:
    """The union of some regions, column by column from the top left; shape (size, size).

    Each is pairs of numbers: pixels that are skipped since the end of the last run, and pixels that belong to it.

    Raises:
        ValueError: If numbers are missing, negative, or lead out of the picture.

    >>> decode(["1 2 1 1"], 3).astype(int).tolist()
    [[0, 0, 0], [1, 1, 0], [1, 0, 0]]
    """
    mask = np.zeros(size * size, bool)
    for text in runs:
        numbers = np.array([int(word) for word in text.split()], np.int64)
        if len(numbers) % 2 or not len(numbers) or (numbers < 0).any() or numbers.sum() > size * size:
            raise ValueError(f"{len(numbers)} numbers that are no pairs, or lead out of {size} x {size} pixels")
        ends = np.cumsum(numbers)
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            mask[start:end] = True
    return mask.reshape(size, size).T
