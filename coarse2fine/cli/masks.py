"""The mask of a case, where a mask is given."""

from __future__ import annotations

from pathlib import Path

from coarse2fine.errors import VolumeError
from coarse2fine.io import LABEL_SUFFIXES, Case


def mask_of(where: str | None, case: Case, in_folder: bool) -> Path | None:
    """The mask of a case: what is named, or of the cases of a folder the file of that name in a folder.

    Raises:
        VolumeError: If there is none.
    """
    if where is None:
        return None
    if not in_folder:
        return Path(where)
    return file_of(Path(where), case.name, "mask")


def file_of(folder: Path, name: str, what: str) -> Path:
    """The file of a case in a folder with one for each.

    Args:
        folder: The folder.
        name: Of the case.
        what: Is missing if there is none.

    Raises:
        VolumeError: If there is none.
    """
    for suffix in LABEL_SUFFIXES:
        if (file := folder / f"{name}{suffix}").is_file():
            return file
    raise VolumeError(
        f"{folder} has no {what} for {name}",
        f"Put {name}{LABEL_SUFFIXES[0]} there: of several cases, a folder with one file for each is named.",
    )
