"""Finding the files of each case, in nnU-Net's naming: one file per channel, ``NAME_0000.nii.gz`` and so on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coarse2fine.errors import VolumeError
from coarse2fine.io.dicom.members import DICOM_SUFFIX, is_dicom, is_series
from coarse2fine.io.dicom.series import series_name
from coarse2fine.io.files.images import INPUT_SUFFIXES, LABEL_SUFFIXES, split_suffix
from coarse2fine.io.files.readers import NIFTI_SUFFIXES, SIMPLE_ITK, TIFF_SUFFIXES, Reader

_CHANNEL = re.compile(r"(?P<name>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True, slots=True)
class Case:
    """One volume to segment.

    Attributes:
        name: File name without channel number and ending.
        files: One file per channel, in channel order; of a DICOM series its folder or zip file.
        suffix: Ending of the first file, with the dot; .dcm of a DICOM series.
    """

    name: str
    files: tuple[Path, ...]
    suffix: str


@dataclass(frozen=True, slots=True)
class LabelledCase:
    """One volume to learn from or to measure on.

    Attributes:
        name: Of the case.
        images: One file per channel.
        labels: The true labels.
    """

    name: str
    images: tuple[Path, ...]
    labels: Path


def find_cases(
    source: Path, channels: int, suffixes: Sequence[str] = INPUT_SUFFIXES, *, series: bool = True
) -> list[Case]:
    """The cases that a file or a folder holds, sorted by name.

    Files of a case are numbered ``_0000``, ``_0001`` and so on. A model with one channel also takes files without
    number: a single file always, the files of a folder if none of them is numbered ``_0000``. In a folder, hidden
    files, sub-folders and files that are no volumes are skipped. A folder with DICOM files, or a zip file, is one case
    that is named after it.

    Args:
        source: A folder, or one file of a case; the other channels are looked for beside it.
        channels: Number of channels of the model.
        suffixes: Endings of files in folders that are volumes.
        series: Whether a DICOM series will do.

    Raises:
        VolumeError: If ``source`` is missing, holds no volume, or lacks a channel or has too many of them.
    """
    if is_series(source):
        if not series:
            raise VolumeError(
                f"{source} is a DICOM series, which only c2f-infer reads",
                "Use that, or convert the series to a file that the model reads.",
            )
        return [_case_of_series(source, channels, suffixes)]
    if source.is_dir():
        return _cases_of_folder(source, channels, suffixes)
    if not source.exists():
        raise VolumeError(f"{source} does not exist", "Name a volume, or a folder of volumes.")
    if is_dicom(source):
        raise VolumeError(f"{source} is one file of a DICOM series", "Name the folder that holds the series.")
    stem, suffix = split_suffix(source)
    match = _CHANNEL.fullmatch(stem)
    if channels == 1:
        return [Case(stem.removesuffix("_0000"), (source,), suffix)]
    if match is None:
        raise VolumeError(
            f"{source}: the model has {channels} channels, this is a single file without channel number",
            f"Name the files {stem}_0000{suffix} to {stem}_{channels - 1:04d}{suffix} and give the first.",
        )
    sibling = re.compile(rf"{re.escape(match['name'])}_\d{{4}}{re.escape(suffix)}")
    files = [path for path in _volumes(source.parent, (suffix,)) if sibling.fullmatch(path.name)]
    return [_numbered_case(match["name"], files, channels)]


def find_labelled_cases(
    folder: Path, channels: int, reader: Reader = SIMPLE_ITK, part: str = "Tr"
) -> list[LabelledCase]:
    """Cases of a folder in nnU-Net's raw layout, such as ``imagesTr`` and ``labelsTr``.

    Args:
        folder: The folder.
        channels: Number of channels of the model.
        reader: Of the model; says which files are volumes.
        part: What the names of the two folders end in: ``Tr``, or ``Ts`` of a test set.

    Raises:
        VolumeError: If the folders are missing, or an image has no labels.
    """
    images, labels = folder / f"images{part}", folder / f"labels{part}"
    for path in (images, labels):
        if not path.is_dir():
            raise VolumeError(f"{path} does not exist", "Name a folder with imagesTr and labelsTr, as nnU-Net has it.")
    found = []
    for case in find_cases(images, channels, input_suffixes(reader)):
        paths = [labels / f"{case.name}{suffix}" for suffix in label_suffixes(reader)]
        file = next((path for path in paths if path.is_file()), None)
        if file is None:
            raise VolumeError(f"{images}: case {case.name} has no labels", f"Add {paths[0]}, or remove the images.")
        found.append(LabelledCase(case.name, case.files, file))
    return found


def _case_of_series(source: Path, channels: int, suffixes: Sequence[str]) -> Case:
    volumes = _volumes(source, suffixes) if source.is_dir() else []
    if volumes:
        raise VolumeError(
            f"{source} holds both DICOM files and other volumes, such as {volumes[0].name}",
            "Move the one or the other to another folder.",
        )
    if channels != 1:
        raise VolumeError(
            f"{source} is a DICOM series, which is one channel; the model has {channels}",
            "Convert the series of each channel to .nii.gz, named CASE_0000.nii.gz, CASE_0001.nii.gz and so on, for "
            "example with SimpleITK: WriteImage(ReadImage(ImageSeriesReader.GetGDCMSeriesFileNames(FOLDER)), NEW).",
        )
    return Case(series_name(source), (source,), DICOM_SUFFIX)


def input_suffixes(reader: Reader) -> tuple[str, ...]:
    """Endings of the files in a folder that are volumes for a model with this reader."""
    return TIFF_SUFFIXES if reader.library == "tifffile" else INPUT_SUFFIXES


def label_suffixes(reader: Reader) -> tuple[str, ...]:
    """Endings of the files that labels of a model with this reader may be written to."""
    return (*TIFF_SUFFIXES, *LABEL_SUFFIXES) if reader.library == "tifffile" else LABEL_SUFFIXES


def output_path(case: Case, output: Path, is_folder: bool) -> Path:
    """Where the labels of a case go: ``output`` itself, or a file in it that is named after the case.

    The file gets the ending of the case's first file, ".nii.gz" for a DICOM series, or ".mha" where labels are not
    written in that format.
    """
    if not is_folder:
        return output
    if case.suffix == DICOM_SUFFIX:
        return output / f"{case.name}{NIFTI_SUFFIXES[0]}"
    return output / f"{case.name}{case.suffix if case.suffix in (*LABEL_SUFFIXES, *TIFF_SUFFIXES) else '.mha'}"


def _cases_of_folder(folder: Path, channels: int, suffixes: Sequence[str]) -> list[Case]:
    volumes = _volumes(folder, suffixes)
    if not volumes:
        below = next((path for path in sorted(folder.iterdir()) if path.is_dir() and is_series(path)), None)
        if below:
            raise VolumeError(
                f"{folder} holds no volume, but its folder {below.name} holds DICOM files",
                "Name the folder of a series.",
            )
        raise VolumeError(f"{folder} holds no volume", f"Volumes end in {', '.join(suffixes)}.")
    groups: dict[str, list[Path]] = defaultdict(list)
    if channels == 1 and not any(split_suffix(path)[0].endswith("_0000") for path in volumes):
        for path in volumes:
            groups[split_suffix(path)[0]].append(path)
        for name, paths in groups.items():
            _refuse_twins(name, paths)
        return [Case(name, tuple(paths), split_suffix(paths[0])[1]) for name, paths in sorted(groups.items())]
    for path in volumes:
        match = _CHANNEL.fullmatch(split_suffix(path)[0])
        if match is None:
            raise VolumeError(
                f"{path} has no channel number, such as _0000, before its ending",
                "Add one if it is an image to segment, or move it to another folder.",
            )
        groups[match["name"]].append(path)
    return [_numbered_case(name, paths, channels) for name, paths in sorted(groups.items())]


def _numbered_case(name: str, paths: Iterable[Path], channels: int) -> Case:
    """The case of these files, which must be channels 0 to ``channels`` - 1, once each."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        found[split_suffix(path)[0][-4:]].append(path)
    for number, twins in found.items():
        _refuse_twins(f"{name}, channel {number}", twins)
    expected = [f"{number:04d}" for number in range(channels)]
    missing = [f"{name}_{number}" for number in expected if number not in found]
    extra = [found[number][0].name for number in sorted(found) if number not in expected]
    if missing or extra:
        lists = [f"{word} {', '.join(names)}" for word, names in (("missing", missing), ("extra", extra)) if names]
        raise VolumeError(
            f"case {name}: its files do not match the {channels} channel(s) of the model: {'; '.join(lists)}",
            f"The model needs exactly the channels {', '.join(expected)}. Check that it is the one for these images.",
        )
    files = tuple(found[number][0] for number in expected)
    return Case(name, files, split_suffix(files[0])[1])


def _refuse_twins(name: str, paths: list[Path]) -> None:
    if len(paths) > 1:
        raise VolumeError(f"case {name}: both {paths[0]} and {paths[1]} match", "Keep only one of them there.")


def _volumes(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files of the folder that are volumes by their ending, sorted."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise VolumeError(f"cannot list {folder}: {error.strerror}", "Check that you may read it.") from error
    return [
        path
        for path in paths
        if path.name.endswith(tuple(suffixes)) and not path.name.startswith(".") and path.is_file()
    ]
