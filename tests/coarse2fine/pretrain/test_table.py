"""Tables of pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coarse2fine.errors import ImageError
from coarse2fine.pretrain.table import check_splits, find_pictures, read_table

ROWS = [
    {"file": "a.png", "patient": "p1", "notes": 'clear, no "opacity"'},
    {"file": "b.png", "patient": "p1", "notes": "two\nlines"},
    {"file": "c.png", "patient": "p2", "notes": ""},
]


def save(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    save(tmp_path / "images", ["a.png", "b.png", "c.png"])
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    return tmp_path / "table.csv"


def test_read_table__csv__rows_with_file_patient_and_all_columns(table: Path, tmp_path: Path) -> None:
    """As Python's own writer wrote them, commas, quotes and line breaks included."""
    read = read_table(table)
    assert [row.columns for row in read.rows] == ROWS
    assert read.files == [tmp_path / "images" / row["file"] for row in ROWS]
    assert read.patients == ["p1", "p1", "p2"]
    assert read.column("notes") == [row["notes"] for row in ROWS]
    assert read.where_equal("patient", "p1").files == read.files[:2]
    assert [row.name for row in read.take([2, 0]).rows] == ["c.png", "a.png"]


def test_read_table__other_names_of_columns_and_folders__are_found(tmp_path: Path) -> None:
    """With a byte order mark, as spreadsheets write; without a folder of images, beside the table."""
    save(tmp_path / "here", ["a.png"])
    (tmp_path / "t.csv").write_text("Image Index,Patient ID\na.png,7\n", encoding="utf-8-sig")
    read = read_table(tmp_path / "t.csv", tmp_path / "here", "Image Index", "Patient ID")
    assert (read.patients, read.files) == (["7"], [tmp_path / "here" / "a.png"])
    (tmp_path / "here" / "t.csv").write_text("file,patient\na.png,7\n")
    assert read_table(tmp_path / "here" / "t.csv").files == read.files


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no rows"),
        ("file,patient\n", "has no rows"),
        ("name,patient\na.png,1\n", "has no column 'file'"),
        ("file,who\na.png,1\n", "has no column 'patient'"),
        ("file,patient\na.png,\n", "row 1 has no patient"),
        ("file,patient\na.png,1\n ,2\n", "row 2 has no file"),
        ("file,patient\na.png,1,2\n", "row 1 has more fields than the 2 columns"),
        ("file,patient\na.png\n", "row 1 has fewer fields than the 2 columns"),
        ("file,patient\nx.png,1\na.png,2\ny.png,3\n", "names 'x.png', which is not in .*images, and 1 more"),
        ('file,patient\n"a.png,1\n', "is no CSV in UTF-8"),
        ("file,patient\n\xff,1\n", "is no CSV in UTF-8"),
    ],
)
def test_read_table__what_is_no_such_table__one_line(table: Path, text: str, says: str) -> None:
    """Naming the row or column; the table that was right before is right again."""
    good = table.read_bytes()
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(ImageError, match=says) as raised:
        read_table(table)
    assert raised.value.remedy
    table.write_bytes(good)
    assert len(read_table(table)) == 3


def test_read_table__missing_files__naming_their_folder_helps(table: Path, tmp_path: Path) -> None:
    """As does removing their rows; a table that is not there is said."""
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match=r"names 'a\.png', which is not in") as raised:
        read_table(table)
    assert "--images" in raised.value.remedy
    assert len(read_table(table, tmp_path / "elsewhere")) == 3
    with pytest.raises(ImageError, match="does not exist"):
        read_table(tmp_path / "none.csv")


def test_column__that_is_not_there__names_those_that_are(table: Path) -> None:
    """And they can be read."""
    with pytest.raises(ImageError, match="has no column 'report'") as raised:
        read_table(table).column("report")
    assert "it has file, patient, notes" in raised.value.remedy


def test_find_pictures__folder_without_table__all_pictures_in_it_and_nothing_else(tmp_path: Path) -> None:
    """In folders, too, in the order of their names, but not what is hidden; none at all is refused."""
    save(tmp_path, ["b.png", "a.jpg", "c/d.TIF", ".hidden.png"])
    (tmp_path / "notes.txt").write_text("no picture")
    found = find_pictures(tmp_path)
    assert [row.name for row in found.rows] == ["a.jpg", "b.png", "c/d.TIF"]
    assert len(set(found.patients)) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="empty holds no picture"):
        find_pictures(tmp_path / "empty")
    with pytest.raises(ImageError, match="none does not exist"):
        find_pictures(tmp_path / "none")


def test_check_splits__patient_in_two_splits__is_refused(table: Path) -> None:
    """By its name; patients that are apart pass."""
    read = read_table(table)
    check_splits({"train": read.take([0, 1]), "test": read.take([2])})
    with pytest.raises(ImageError, match="patient 'p1' is in train and in test"):
        check_splits({"train": read.take([0, 2]), "test": read.take([1])})
