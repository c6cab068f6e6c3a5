"""Pictures with labels, or with masks: as many of them as a disk holds, normalised when they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import ImageError
from coarse2fine.finetune.examples import Examples
from coarse2fine.pretrain.pictures import Floats, Intensities, Pixels, load_pictures
from coarse2fine.pretrain.table import PICTURES, Table
from coarse2fine.system.terminal import shown
from coarse2fine.system.timing import Ticks

_MOST_CLASSES = 256


@dataclass(frozen=True, slots=True, eq=False)
class Normalised(Sequence[Floats]):
    """Some pictures as networks see them.

    Attributes:
        pixels: Of all pictures, shape (n, channels, height, width), perhaps on the disk.
        numbers: Which ones.
        intensities: How they are normalised.
    """

    pixels: Pixels
    numbers: NDArray[np.intp]
    intensities: Intensities

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: Any) -> Any:
        return self.intensities.normalise(self.pixels[self.numbers[number]])


def of_pictures(
    pixels: Pixels, targets: Sequence[NDArray[Any]], table: Table, numbers: NDArray[np.intp], intensities: Intensities
) -> Examples:
    """Some pictures with their labels.

    Args:
        pixels: Of all rows of the table, shape (n, channels, height, width).
        targets: Of all.
        table: Their patients and names.
        numbers: Which ones.
        intensities: How they are normalised.
    """
    part = table.take(numbers)
    names = [row.name for row in part.rows]
    chosen = [targets[number] for number in numbers]
    return Examples(Normalised(pixels, numbers, intensities), chosen, part.patients, names)


def find_masks(table: Table, folder: Path) -> tuple[Table, list[Path]]:
    """The pictures that have a mask, whose file has the name of theirs with any ending.

    Raises:
        ImageError: If there is no such folder, or no mask of any picture.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder} does not exist", "Name the folder of the masks (--masks).")
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURES}
    found = [number for number, row in enumerate(table.rows) if Path(row.name).stem in files]
    if not found:
        raise ImageError(
            f"{folder} holds no mask of any picture, such as {shown(Path(table.rows[0].name).stem + '.png')}",
            "Give each mask the name of its picture.",
        )
    part = table.take(found)
    return part, [files[Path(row.name).stem] for row in part.rows]


def load_masks(
    files: Sequence[Path], size: Sequence[int], *, cache: Path | None = None, progress: Ticks = lambda done, total: None
) -> tuple[NDArray[np.uint8], int]:
    """Masks as numbers of classes.

    Two grey values, such as 0 and 255, are background and foreground; otherwise values are the classes' numbers.

    Returns:
        Shape (n, height, width), and the number of classes with the background.

    Raises:
        ImageError: If a mask cannot be read, has colours, or nothing is marked in any.
    """
    masks = load_pictures(files, size, smooth=False, cache=cache, progress=progress)
    if masks.shape[1] > 1:
        raise ImageError(
            f"{files[0]} has {masks.shape[1]} colours", "Save masks in grey, with a number for each class."
        )
    values: set[int] = set()
    for mask in masks:
        values |= set(np.unique(mask).tolist())
    if len(values) == 1:
        raise ImageError(
            f"{files[0].parent}: all masks hold {values.pop()} everywhere", "Give masks with a foreground."
        )
    if len(values) == 2:
        return np.asarray(masks[:, 0] == max(values), np.uint8), 2
    if max(values) >= _MOST_CLASSES:
        raise ImageError(
            f"{files[0].parent}: masks hold {len(values)} values up to {max(values)}",
            f"Number the classes from 0, the background, to at most {_MOST_CLASSES - 1}.",
        )
    return np.asarray(masks[:, 0], np.uint8), max(values) + 1
