"""Published sets of radiographs as tables that ``c2f-pretrain`` and ``c2f-finetune`` read; pictures stay in place.

Columns are ``file`` (from the source's folder), ``patient``, ``study``, ``split``, ``view``, one for each label with 0
and 1, and ``text``, as far as the data set has them.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coarse2fine.errors import ImageError
from coarse2fine.io import atomic_write
from coarse2fine.system.terminal import plain, shown

Record = Mapping[str, str]
"""Columns of a picture by name."""

UNCERTAIN = {"zeros": "0", "ones": "1"}
"""What becomes of labels of which the report is not sure, as the field names the two ways (Irvin and others, CheXpert,
AAAI 2019)."""
FINDINGS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
"""Labels of CheXpert and MIMIC-CXR."""


@dataclass(frozen=True, slots=True)
class Radiographs:
    """A data set.

    Attributes:
        records: One for each picture, all with the same columns.
        warnings: What was left out.
    """

    records: tuple[Record, ...]
    warnings: tuple[str, ...] = ()


def write_table(path: Path, data: Radiographs) -> None:
    """Write a table as CSV; errors as of ``atomic_write``."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(data.records[0]))
        writer.writeheader()
        writer.writerows(data.records)


def present(root: Path, records: Sequence[Record], warnings: Sequence[str] = ()) -> Radiographs:
    """The records whose files are there.

    Raises:
        ImageError: If none is.
    """
    there = tuple(record for record in records if (root / record["file"]).is_file())
    if not there:
        first = f": {shown(records[0]['file'])} is missing" if records else ""
        raise ImageError(
            f"{root} holds none of the {len(records)} pictures of its table{first}", "Download them there."
        )
    missing = len(records) - len(there)
    return Radiographs(there, (*warnings, *([f"{missing} pictures are missing, and left out"] if missing else [])))


def find_file(folder: Path, *names: str) -> Path:
    """The first of some files, each as it is or gzipped.

    Raises:
        ImageError: If there is none of them.
    """
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise ImageError(f"{folder} holds no {names[0]}", "Download it into this folder, or name the one that holds it.")


def read_lines(path: Path, *wanted: str) -> Iterator[dict[str, str]]:
    """Rows of a CSV file, perhaps gzipped, by the names of its columns; fields that are missing are empty.

    Raises:
        ImageError: If it cannot be read, or lacks a column.
    """
    remedy = "Download it again."
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            reader = csv.DictReader(file, restval="", skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            for name in wanted:
                if name not in names:
                    raise ImageError(f"{path} has no column {shown(name)}", remedy)
            reader.fieldnames = names
            yield from reader
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise ImageError(f"{path} cannot be read: {plain(str(error))[:200]}", remedy) from None


def certain(value: str, uncertain: str, path: Path) -> str:
    """A label of CheXpert's kind as 0 or 1; what a report does not mention is 0.

    Args:
        value: 1.0, 0.0, -1.0 (not sure) or nothing.
        uncertain: A name of ``UNCERTAIN``.
        path: Where it is from, for messages.

    Raises:
        ImageError: If it is something else.
    """
    known = {"": "0", "0": "0", "1": "1", "-1": UNCERTAIN[uncertain]}
    plainly = value.strip().removesuffix(".0")
    if plainly not in known:
        raise ImageError(f"{path}: {shown(value)} is no label", "Labels are 1, 0, -1 or empty: download it again.")
    return known[plainly]
