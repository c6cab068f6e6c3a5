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
    for suffix in LABEL_SUFFIXES:
        if (file := Path(where) / f"{case.name}{suffix}").is_file():
            return file
    raise VolumeError(
        f"{where} has no mask for {case.name}",
        f"Put {case.name}{LABEL_SUFFIXES[0]} there: for a folder of cases, --mask names a folder with one file for "
        "each.",
    )
