"""Measures as rows of a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coarse2fine.io import atomic_write
from coarse2fine.measures.measuring import Intensity, Measure

TABLE_SUFFIXES = (".csv", ".tsv")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a text begins with that spreadsheets execute."""

_VOLUMES = {"mm": ("volume_ml", 1e-3), "nm": ("volume_um3", 1e-9)}  # what fields write, and of cubes of the unit


def row_of(measure: Measure) -> dict[str, Any]:
    """A measure by the names of columns, which say units; what does not apply is None.

    >>> row = row_of(Measure("lesion", (2,), 500, 4000.0, "mm", components=3))
    >>> row["label"], row["name"], row["voxels"], row["volume_ml"], row["components"]
    ('2', 'lesion', 500, 4.0, 3)
    """
    unit, place = measure.unit, measure.place
    volume, factor = _VOLUMES[unit]
    row: dict[str, Any] = {} if measure.number is None else {"object": measure.number}
    row |= {
        "label": " ".join(map(str, measure.values)),
        "name": measure.name,
        "voxels": measure.voxels,
        volume: _rounded(measure.volume * factor),
    }
    if measure.number is None:
        row["components"] = measure.components
    else:
        row[f"diameter_{unit}"] = _rounded(measure.diameter)
    for name in ("centroid", "box_min", "box_max"):
        point = (None, None, None) if place is None else getattr(place, name)
        row |= {f"{name}_{axis}_{unit}": _rounded(value) for axis, value in zip("xyz", point, strict=True)}
    row["frame"] = None if place is None else place.frame
    for index, values in enumerate(measure.intensity):
        row |= {
            f"channel{index}_{name}": _rounded(getattr(values, name)) for name in ("mean", "sd", "p5", "p50", "p95")
        }
    return row


def columns_of(unit: str, channels: int, *, objects: bool = False) -> tuple[str, ...]:
    """The names of columns, also where nothing was found.

    Args:
        unit: Of the grids, "mm" or "nm".
        channels: How many are measured.
        objects: Whether rows are objects rather than labels.
    """
    nothing = (Intensity(0.0, 0.0, 0.0, 0.0, 0.0),) * channels
    return tuple(row_of(Measure("", (), 0, 0.0, unit, number=0 if objects else None, intensity=nothing)))


def write_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    """Write rows, such as those of ``row_of``, below a line of names; atomically.

    Names of labels and cases are a stranger's: one that a spreadsheet would take for a formula gets an apostrophe in
    front, as advised by OWASP (CSV injection).

    Args:
        rows: Values by column; a row may lack some.
        columns: All names, in their order.
        path: Ends in .csv, or in .tsv for tabs between the columns.

    Raises:
        OutputError: If it cannot be written.
    """
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _as_text(value) for name, value in row.items()} for row in rows)


def _as_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # which csv does not quote, and readers take for the end of a line
    return f"'{text}" if value.startswith(_FORMULA) else text


def _rounded(value: float | None) -> float | None:
    """To nine digits, more than a volume can justify."""
    return None if value is None else float(f"{value:.9g}")
