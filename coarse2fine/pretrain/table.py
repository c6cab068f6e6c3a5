"""Tables of pictures: which file is whose, and what else is known of it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from coarse2fine.errors import ImageError
from coarse2fine.system.terminal import plain, shown

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
FILE, PATIENT = "file", "patient"
_MOST_IN_FIELD = 1 << 24  # characters; a report is thousands of times shorter


@dataclass(frozen=True, slots=True)
class Row:
    """One picture.

    Attributes:
        name: What it is called in the table, such as ``cxr_0001.jpg``.
        file: Where it is.
        patient: Whose it is.
        columns: All of the table by name, as text.
    """

    name: str
    file: Path
    patient: str
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """Pictures.

    Attributes:
        where: Where it comes from, for messages.
        rows: One for each.
    """

    where: Path
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def files(self) -> list[Path]:
        """Where they are."""
        return [row.file for row in self.rows]

    @property
    def patients(self) -> list[str]:
        """Whose they are."""
        return [row.patient for row in self.rows]

    def column(self, name: str) -> list[str]:
        """A column, as text.

        Raises:
            ImageError: If there is none.
        """
        check_columns(self.where, self.rows[0].columns if self.rows else (), [name])
        return [row.columns[name] for row in self.rows]

    def take(self, indices: Iterable[int]) -> Self:
        """Some of the rows, in this order."""
        return type(self)(self.where, tuple(self.rows[int(index)] for index in indices))

    def where_equal(self, column: str, value: str) -> Self:
        """Rows that hold a value; errors as of ``column``."""
        return self.take(index for index, found in enumerate(self.column(column)) if found == value)


def as_file(path: Path) -> Path | None:
    """The file itself, if there is one."""
    return path if path.is_file() else None


def read_table(
    path: Path,
    images: Path | None = None,
    file: str = FILE,
    patient: str = PATIENT,
    find: Callable[[Path], Path | None] = as_file,
) -> Table:
    """Read a table of pictures, or of other images.

    Args:
        path: CSV with names of columns in its first line, in UTF-8.
        images: Folder that files are named from; None: ``images`` beside the table, or its own folder.
        file: Name of the column of files.
        patient: Name of that of patients.
        find: Where an image is that the table names; None if it is not there.

    Raises:
        ImageError: If it cannot be read, has no rows, lacks a column or values in these two, or files do not exist.
    """
    names, lines = _read_csv(path)
    check_columns(path, names, [file, patient])
    beside = path.parent / "images"
    folder = images or (beside if beside.is_dir() else path.parent)
    for number, line in enumerate(lines, 1):
        for column in (file, patient):
            if not line[column].strip():
                raise ImageError(f"{path}: row {number} has no {column}", "Fill it in, or remove the row.")
    places = [find(folder / line[file]) for line in lines]
    missing = [line[file] for line, place in zip(lines, places, strict=True) if place is None]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ImageError(
            f"{path} names {shown(missing[0])}, which is not in {folder}{more}",
            "Name the folder of the images (--images), or remove these rows.",
        )
    pairs = zip(lines, filter(None, places), strict=True)
    return Table(path, tuple(Row(line[file], place, line[patient].strip(), line) for line, place in pairs))


def find_pictures(folder: Path) -> Table:
    """The pictures of a folder and of those in it, each taken for a patient of its own, without further columns.

    Raises:
        ImageError: If there are none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not found:
        raise ImageError(
            f"{folder} {'holds no picture' if folder.is_dir() else 'does not exist'}",
            f"Name a folder of {', '.join(PICTURES)} files.",
        )
    names = [path.relative_to(folder).as_posix() for path in found]
    return Table(folder, tuple(Row(name, path, name, {}) for name, path in zip(names, found, strict=True)))


def check_splits(splits: Mapping[str, Table]) -> None:
    """Refuse splits between which patients are shared.

    Raises:
        ImageError: Naming the first such patient.
    """
    of: dict[str, str] = {}
    for split, table in splits.items():
        for patient in table.patients:
            if of.setdefault(patient, split) != split:
                raise ImageError(
                    f"{table.where}: patient {shown(patient)} is in {of[patient]} and in {split}",
                    "Put all pictures of a patient into one of them.",
                )


def check_columns(where: Path, names: Iterable[str], wanted: Sequence[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        ImageError: Naming it, and those that there are.
    """
    names = list(names)
    for name in wanted:
        if name not in names:
            there = plain(", ".join(names))[:300] or "none"
            raise ImageError(f"{where} has no column {shown(name)}", f"Add it, or name another; it has {there}.")


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Names of columns, and rows that have all of them.

    Raises:
        ImageError: If that is not what the file holds.
    """
    limit = csv.field_size_limit(_MOST_IN_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = list(reader.fieldnames or ())
            lines = list(reader)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist", "Name a table as CSV.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ImageError(f"{path} is no CSV in UTF-8: {plain(str(error))[:200]}", "Save it as CSV in UTF-8.") from None
    finally:
        csv.field_size_limit(limit)
    for number, line in enumerate(lines, 1):
        if None in line or None in line.values():
            raise ImageError(
                f"{path}: row {number} has {'more' if None in line else 'fewer'} fields than the {len(names)} columns",
                "Put quotes around fields that hold commas, and fill in what is missing.",
            )
    if not lines:
        raise ImageError(f"{path} has no rows", "Give a table with a row for each picture, below names of columns.")
    return names, lines
