"""SIIM-ACR pneumothorax segmentation: run lengths of the challenge as masks, and its DICOM files as pictures.

``train-rle.csv`` with the columns ``ImageId`` and ``EncodedPixels``, a row for each pneumothorax and -1 for none;
pictures named by their identifier, anywhere below the folder. The challenge published them as DICOM files of 1024 x
1024, ``dicom-images-train/STUDY/SERIES/IMAGE.dcm``. https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coarse2fine.convert.radiographs import Radiographs, find_file, present, read_lines
from coarse2fine.errors import ImageError
from coarse2fine.io import atomic_write
from coarse2fine.io.dicom.radiographs import read_radiograph
from coarse2fine.system.terminal import shown
from coarse2fine.system.timing import Ticks

SIZE = 1024
LABEL, MASKS, IMAGES = "Pneumothorax", "masks", "images"
_PICTURES, _DICOM = (".png", ".jpg", ".jpeg"), (".dcm",)
_NONE = "-1"


@dataclass(frozen=True, slots=True)
class Pneumothorax:
    """The challenge's pictures.

    Attributes:
        data: A record for each; of DICOM files ``file`` is that of the picture that ``write_pictures`` makes.
        runs: Run lengths of each picture by its identifier.
        dicom: Files by identifier, if pictures are yet to be made of them.
    """

    data: Radiographs
    runs: Mapping[str, Sequence[str]]
    dicom: Mapping[str, Path]


def find_siim_acr(source: Path) -> Pneumothorax:
    """All pictures that have a row; DICOM files count if there are no others.

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
    pictures = {file.stem: file for file in files if file.suffix.lower() in _PICTURES}
    dicom = {} if pictures else {file.stem: file for file in files if file.suffix.lower() in _DICOM}
    places = {name: file.relative_to(source).as_posix() for name, file in (pictures or dicom).items()}
    records = [
        {"file": places.get(name, f"{name}.png"), "patient": name, LABEL: str(int(bool(several)))}
        for name, several in runs.items()
    ]
    data = present(source, records)
    return Pneumothorax(data, runs, {name: file for name, file in dicom.items() if name in runs})


def write_pictures(folder: Path, found: Pneumothorax, progress: Ticks = lambda done, total: None) -> Radiographs:
    """Make PNG files of DICOM files, 8 or 16 bits as these, and name patients as they do.

    Args:
        folder: Where to.
        found: With DICOM files.
        progress: Told of every file.

    Returns:
        Records with the new files, counted from the folder.

    Raises:
        VolumeError: If a file is no radiograph, or damaged.
        OutputError: If a picture cannot be written.
    """
    records = []
    for number, record in enumerate(found.data.records, 1):
        name = Path(record["file"]).stem
        read = read_radiograph(found.dicom[name])
        with atomic_write(folder / f"{name}.png") as path:
            Image.fromarray(read.pixels).save(path, "PNG")
        records.append({**record, "file": f"{name}.png", "patient": read.patient or name})
        progress(number, len(found.data.records))
    return replace(found.data, records=tuple(records))


def write_masks(folder: Path, data: Radiographs, runs: Mapping[str, Sequence[str]]) -> None:
    """A mask of each picture, named as it: 255 is pneumothorax.

    Raises:
        ImageError: If run lengths cannot be, naming the picture.
        OutputError: If it cannot be written.
    """
    for record in data.records:
        name = Path(record["file"]).stem
        try:
            mask = decode(runs[name])
        except ValueError as error:
            raise ImageError(f"run lengths of {shown(name)}: {error}", "Download the table again.") from None
        with atomic_write(folder / f"{name}.png") as path:
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
