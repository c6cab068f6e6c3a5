"""What commands write for a DICOM series."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from coarse2fine.errors import OutputError
from coarse2fine.io import DICOM_SUFFIX, Case, check_segmentation


def is_one_series(cases: Sequence[Case]) -> bool:
    """Whether the one case is a DICOM series."""
    return len(cases) == 1 and cases[0].suffix == DICOM_SUFFIX


def endings(
    cases: Sequence[Case], output: Path, options: argparse.Namespace, names: Mapping[str, Collection[int]]
) -> tuple[str, ...]:
    """Endings that labels may have beside those of image files.

    Args:
        cases: What is segmented.
        output: Where labels go.
        options: Of the command.
        names: Label values by name.

    Raises:
        OutputError: If ``output`` is a DICOM segmentation that cannot be made.
    """
    wanted = output.name.endswith(DICOM_SUFFIX) and not output.is_dir()
    if not is_one_series(cases):
        if wanted:
            raise OutputError(
                f"cannot write {output}: a DICOM segmentation refers to the images of a DICOM series, and "
                f"{options.input} is none",
                "Name a file that ends in .nii.gz, or give the series with -i.",
            )
        return ()
    if wanted:
        if options.deadline is not None:
            raise OutputError(
                f"cannot write {output} by a deadline: nobody knows how long a DICOM segmentation takes to write",
                "Name a file that ends in .nii.gz, or leave out --deadline.",
            )
        check_segmentation(cases[0].files[0], names)
    return (DICOM_SUFFIX,)


def check_beside(cases: Sequence[Case], files: Sequence[tuple[str, Path]]) -> None:
    """Refuse to write among the images of a series, which the next run would read.

    Args:
        cases: What is segmented.
        files: Options with the files that they name.

    Raises:
        OutputError: Naming one of them.
    """
    if not is_one_series(cases) or not cases[0].files[0].is_dir():
        return
    folder = cases[0].files[0].resolve()
    for option, file in files:
        if file.resolve().parent == folder:
            raise OutputError(f"{file} would lie among the images of the series", f"Name another folder with {option}.")
