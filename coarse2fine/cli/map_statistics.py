"""``c2f-explain --statistics``: maps against labels, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from coarse2fine.cli.masks import file_of
from coarse2fine.errors import VolumeError
from coarse2fine.explain.statistics import Agreement, agreement
from coarse2fine.io import check_writable, find_cases, read_volume
from coarse2fine.measures import TABLE_SUFFIXES, write_table
from coarse2fine.system.terminal import plain

COLUMNS = ("case", "label", "energy", "area", "hit")
_SAME = 1e-3  # of lengths and cosines: formats round them


def write_statistics(maps: Path, labels: Path, output: Path, console: Console, *, overwrite: bool) -> None:
    """Write a row for each map and label that is there, and tell the means of each label.

    Args:
        maps: A file, or a folder.
        labels: Likewise; of a folder the files that are named as the maps.
        output: The table.
        console: Gets the means.
        overwrite: Whether a table that is there is replaced.

    Raises:
        VolumeError: If something is missing, or does not fit.
        OutputError: If the table cannot be written.
    """
    check_writable(output, overwrite, TABLE_SUFFIXES)
    rows: list[tuple[str, int, Agreement]] = []
    for case in find_cases(maps, 1, series=False):
        reference = file_of(labels, case.name, "labels") if maps.is_dir() else labels
        rows += ((case.name, *found) for found in compare(case.files[0], reference))
    if not rows:
        raise VolumeError(f"{labels} has no label but 0", "Give labels of what maps should point at.")
    table = (
        {"case": case, "label": label, "energy": one.energy, "area": one.area, "hit": int(one.hit)}
        for case, label, one in rows
    )
    write_table(table, COLUMNS, output)
    for value in sorted({label for _, label, _ in rows}):
        console.print(plain(summary(value, [one for _, label, one in rows if label == value])), soft_wrap=True)


def compare(file: Path, reference: Path) -> Iterator[tuple[int, Agreement]]:
    """A map against each label of a file.

    Raises:
        VolumeError: If they are not of the same image, or the file has no labels.
    """
    found, labels = read_volume([file]), read_volume([reference])
    if not _same_place(found.grid, labels.grid):
        raise VolumeError(
            f"{file} and {reference} lie on different grids: shapes {found.grid.shape} and {labels.grid.shape}, "
            f"voxels of {found.grid.spacing} and {labels.grid.spacing}, first ones at {found.grid.origin} and "
            f"{labels.grid.origin} (z, y, x)",
            "Give labels of the image that the map was made of.",
        )
    values = labels.channels[0]
    if not np.array_equal(values, np.round(values)):
        raise VolumeError(f"{reference}: its values are no whole numbers", "Give labels, and maps before them.")
    for value in np.unique(values):
        if value:
            yield int(value), agreement(found.channels[0], values == value)


def summary(label: int, found: list[Agreement]) -> str:
    """Means over the maps of a label."""
    energies = [one.energy for one in found if one.energy is not None]
    energy = f"{np.mean(energies):.1%}" if energies else "nothing"
    return (
        f"label {label}: {energy} of a map inside, which is {np.mean([one.area for one in found]):.1%} of the volume; "
        f"{sum(one.hit for one in found)} of {len(found)} maxima inside"
    )


def _same_place(one: Any, other: Any) -> bool:
    """Whether two grids are the same, but for rounding."""
    return one.shape == other.shape and all(
        np.allclose(getattr(one, name), getattr(other, name), rtol=_SAME, atol=_SAME)
        for name in ("spacing", "origin", "cosines")
    )
