"""Pictures with a table and masks, in which labels can be seen."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

EDGE = 16


def save_picture(path: Path, pixels: np.ndarray) -> Path:
    """Write an 8-bit picture, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """Write a CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def save_set(folder: Path, patients: int = 12, seed: int = 0) -> Path:
    """Two pictures of each patient, with a square that is bright or dark; returns the table.

    Columns are ``file``, ``patient``, ``bright``, ``left`` (where the square is) and ``kind``, a class; masks of the
    squares lie in ``masks``.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(2 * patients):
        bright, left = bool(number // 2 % 2), bool(generator.random() < 0.5)
        pixels = generator.integers(90, 130, (EDGE, EDGE))
        start = (int(generator.integers(0, EDGE - 6)), 1 if left else EDGE - 7)
        where = (slice(start[0], start[0] + 6), slice(start[1], start[1] + 6))
        pixels[where] = 230 if bright else 10
        mask = np.zeros((EDGE, EDGE), np.uint8)
        mask[where] = 255
        name = f"p{number:02}.png"
        save_picture(folder / "images" / name, pixels)
        save_picture(folder / "masks" / name, mask)
        rows.append((name, f"patient {number // 2}", int(bright), int(left), "bright" if bright else "dark"))
    return write_table(folder / "table.csv", ("file", "patient", "bright", "left", "kind"), rows)
