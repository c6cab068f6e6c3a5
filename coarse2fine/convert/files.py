"""Folders of NIfTI files as they are published: which file is which case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from coarse2fine.convert.rawdata import ENDING
from coarse2fine.convert.samples import Part, Sample
from coarse2fine.errors import VolumeError
from coarse2fine.io import read_volume


def list_files(folder: Path) -> list[Path]:
    """All files of a folder but hidden ones, sorted.

    Raises:
        VolumeError: If it is no folder that can be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError as error:
        raise VolumeError(
            f"cannot list {folder}: {error.strerror or error}", "Name a folder of the data set that you may read."
        ) from error


def volumes(folder: Path, ending: str = ENDING) -> dict[str, Path]:
    """Files with this ending, by what their names are without it; none if there is no such folder."""
    if not folder.is_dir():
        return {}
    return {path.name.removesuffix(ending): path for path in list_files(folder) if path.name.endswith(ending)}


def file_part(path: Path) -> Part:
    """An image or a label map that is a file of its own."""
    return Part(str(path), lambda: read_volume([path]), path)


def paired(
    images: Mapping[str, Path], labels: Mapping[str, Path], folder: Path, *, test: bool, split: str
) -> list[Sample]:
    """Cases of images with labels.

    Args:
        images: Files by case.
        labels: Files by case.
        folder: Where they are, for messages.
        test: Whether these are test cases.
        split: What the published data set calls them.

    Raises:
        VolumeError: If a case lacks its image or its labels; all of them are named.
    """
    lacking = [f"no image of {name}" for name in sorted(labels.keys() - images.keys())]
    lacking += [f"no labels of {name}" for name in sorted(images.keys() - labels.keys())]
    if lacking:
        raise VolumeError(
            f"{folder}: incomplete pairs: {', '.join(lacking)}",
            "Copy or unpack the data set again, or move what has no partner to another folder.",
        )
    return [_sample(name, images[name], labels[name], test=test, split=split) for name in sorted(images)]


def unlabelled(images: Mapping[str, Path], *, split: str) -> list[Sample]:
    """Test cases without labels."""
    return [_sample(name, images[name], None, test=True, split=split) for name in sorted(images)]


def left_out(folder: Path, taken: Sequence[Path]) -> list[str]:
    """A warning if the folder holds further volumes."""
    known = {path.name for path in taken}
    others = [path.name for path in list_files(folder) if path.name not in known and ".nii" in path.suffixes]
    return [f"{folder}: left out, because their names are not those of the data set: {', '.join(others)}"] * bool(
        others
    )


def _sample(name: str, image: Path, labels: Path | None, *, test: bool, split: str) -> Sample:
    files = {"image": image.name} | ({"labels": labels.name} if labels else {})
    return Sample(name, file_part(image), file_part(labels) if labels else None, test, {"split": split, **files})
