"""Files appear as a whole or not at all, and what cannot be written is known before."""

from __future__ import annotations

from pathlib import Path

import pytest

from coarse2fine.errors import OutputError
from coarse2fine.io import atomic_write, check_writable


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_atomic_write__body_fails__keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    """An interrupted write leaves neither a changed file nor a temporary one, and the error passes through."""
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temp:  # noqa: PT012
        temp.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write__file_is_being_read__reader_keeps_the_old_content(tmp_path: Path) -> None:
    """The new file replaces the old one as a whole; it is never filled in place."""
    path = tmp_path / "report.json"
    path.write_text("old")
    with path.open() as reader:
        with atomic_write(path) as temp:
            temp.write_text("new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_atomic_write__link__replaces_the_file_behind_it(tmp_path: Path) -> None:
    """A result folder made of links stays one, and the temporary name ends like the final one."""
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "a.nii.gz", tmp_path / "b.nii.gz"
    target.write_text("old")
    link.symlink_to(target)
    with atomic_write(link) as temp:
        assert temp.name.endswith(".nii.gz")
        temp.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_atomic_write__folder_is_a_file__is_an_output_error(tmp_path: Path) -> None:
    """What the system says about the folder reaches the user with the file's name."""
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "a.json"
    with pytest.raises(OutputError, match=str(path)), atomic_write(path) as temp:
        temp.write_text("new")


def test_check_writable__usable_path__creates_the_folder_only(tmp_path: Path) -> None:
    """The folder of the result is made before the run, and the probe leaves nothing in it."""
    path = tmp_path / "new" / "folder" / "a.nii.gz"
    check_writable(path, overwrite=False, suffixes=(".nii.gz",))
    assert path.parent.is_dir()
    assert not list(path.parent.iterdir())
    path.touch()
    check_writable(path, overwrite=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exists.nii.gz", "--overwrite"),
        ("folder.nii.gz", "it is a folder"),
        ("a.jpg", "unknown file type"),
        ("exists.nii.gz/a.nii.gz", "cannot write .*a.nii.gz"),
        ("exists.nii.gz/b/a.nii.gz", "Not a directory"),
    ],
)
def test_check_writable__unusable_path__is_refused(tmp_path: Path, name: str, message: str) -> None:
    """Problems that would waste the run are found before it, for the superuser too."""
    (tmp_path / "exists.nii.gz").touch()
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(OutputError, match=message):
        check_writable(tmp_path / name, overwrite=False, suffixes=(".nii.gz", ".nrrd"))
