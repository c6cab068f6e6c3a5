"""Raw data sets as nnU-Net v2 wants them: what they are made of, their checks, and writing one in a single step.

The layout is nnU-Net's: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.convert.checks import (
    Findings,
    check_grids,
    check_image,
    count_labels,
    judge,
    listed,
    note_image,
)
from coarse2fine.convert.samples import Part, RawData, Sample, Written
from coarse2fine.errors import ConfigError, OutputError, VolumeError
from coarse2fine.io import Volume, atomic_folder, atomic_write, check_folder, write_labels
from coarse2fine.report import versions
from coarse2fine.system.timing import Ticks

ENDING = ".nii.gz"
"""Of all files in a data set that we write."""


_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")


_OURS = {*_FOLDERS, "dataset.json"}


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def hold_out(samples: Sequence[Sample], names: Sequence[str]) -> tuple[Sample, ...]:
    """The samples, with the named ones as test cases.

    Args:
        samples: The cases.
        names: Their names, or what follows an underscore at the end of one: ``C`` for ``sample_C``.

    Raises:
        ConfigError: If a name belongs to none or several.
    """
    chosen = set()
    for name in names:
        exact = [sample.name for sample in samples if sample.name == name]
        fitting = exact or [sample.name for sample in samples if sample.name.endswith(f"_{name}")]
        if len(fitting) != 1:
            raise ConfigError(
                f"--split {name} fits {'several cases' if fitting else 'no case'}",
                f"Name one of {listed([sample.name for sample in samples])}.",
            )
        chosen.add(fitting[0])
    return tuple(replace(sample, test=True) if sample.name in chosen else sample for sample in samples)


def target_folder(root: Path, number: int, name: str, *, overwrite: bool) -> Path:
    """The folder that a data set will get, checked before anything is read.

    Args:
        root: nnU-Net's folder of raw data sets; created if it does not exist.
        number: nnU-Net's number of the data set.
        name: Its name.
        overwrite: Whether a data set that is there may be replaced.

    Raises:
        ConfigError: If number or name are none that nnU-Net takes.
        OutputError: If the folder exists and may not be replaced, another data set has the number, or ``root`` cannot
            be created.
    """
    if not 1 <= number <= 999:
        raise ConfigError(f"--dataset-id is {number}", "nnU-Net's numbers of data sets have three digits: 1 to 999.")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name is {name!r}", "Use letters, digits, - and _.")
    target = root / f"Dataset{number:03d}_{name}"
    try:
        check_folder(target)
        others = sorted(path.name for path in root.glob(f"Dataset{number:03d}_*") if path.name != target.name)
        if others:
            raise OutputError(
                f"{root} holds {others[0]}, and nnU-Net allows a number only once",
                "Choose another one with --dataset-id.",
            )
        if target.is_symlink() or target.exists():
            _check_replaceable(target, overwrite)
    except OSError as error:
        raise _output_error(target, error) from error
    return target


def build(
    data: RawData,
    target: Path,
    *,
    overwrite: bool,
    link: bool = False,
    progress: Ticks = lambda done, total: None,
) -> Written:
    """Reads, checks and writes a data set.

    All is written into a hidden folder beside ``target``, which gets its name when everything is there and right.

    Args:
        data: What to write.
        target: From ``target_folder``.
        overwrite: Whether a data set there may be replaced.
        link: Whether files that are taken over unchanged become hard links, where the file system has them. Whoever
            then writes into the original changes the data set, too.
        progress: Called with the number of cases done and of all.

    Raises:
        VolumeError: If something about the cases is wrong; all that is found is told at once.
        OutputError: If the data set cannot be written.
    """
    _check_names(data.samples)
    _check_sources(data.samples, target)
    findings = Findings(voxels=np.zeros(len(data.labels), np.int64))
    try:
        # What is there may have changed, or appeared, since the first check.
        with atomic_folder(target, lambda: _check_replaceable(target, overwrite)) as folder:
            for done, sample in enumerate(data.samples):
                progress(done, len(data.samples))
                try:
                    _add(sample, data, folder, findings, link)
                except VolumeError as error:
                    findings.problems.append(error)
            progress(len(data.samples), len(data.samples))
            judge(data, findings)
            _write_json(data, folder)
    except OSError as error:
        raise _output_error(target, error) from error
    test = sum(sample.test for sample in data.samples)
    return Written(target, len(data.samples) - test, test, (*data.warnings, *findings.warnings))


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if not overwrite:
        raise OutputError(f"{target} exists already", "Use --overwrite to replace it, or choose another --dataset-id.")
    if target.is_symlink() or not target.is_dir():
        raise OutputError(f"{target} is no folder of its own", "Remove it, or choose another --dataset-id.")
    foreign = sorted({path.name for path in target.iterdir()} - _OURS)
    if foreign:
        raise OutputError(
            f"{target} holds more than a data set: {listed(foreign)}",
            "Move these away first: replacing the folder would delete them.",
        )


def _check_names(samples: Sequence[Sample]) -> None:
    first: dict[str, str] = {}
    for sample in samples:
        if sample.name in first:
            raise VolumeError(
                f"case {sample.name} is there twice: {first[sample.name]} and {sample.image.where}", "Give only one."
            )
        first[sample.name] = sample.image.where
    if all(sample.test for sample in samples):
        raise VolumeError("there is no case for training", "Give labelled cases that are not held out, too.")


def _check_sources(samples: Sequence[Sample], target: Path) -> None:
    """Refuses to replace what is read."""
    place = target.resolve()
    for sample in samples:
        for part in (sample.image, sample.labels):
            if part is not None and part.file is not None and part.file.resolve().is_relative_to(place):
                raise OutputError(f"{part.file} lies in the output {target}", "Choose another folder with -o.")


def _add(sample: Sample, data: RawData, folder: Path, findings: Findings, link: bool) -> None:
    """Checks a case and adds it to the folder."""
    kind = "Ts" if sample.test else "Tr"
    image = sample.image.load()
    check_image(sample, image, data)
    note_image(sample, image, findings)
    labels = None
    if sample.labels is not None:
        labels = sample.labels.load()
        check_grids(sample, image, labels)
        counts = count_labels(sample.labels.where, labels.channels[0], data.labels)
        if not counts[1:].any():
            findings.warnings.append(f"{sample.name}: no voxel of any label but background")
        if not sample.test:
            findings.voxels += counts
    if findings.problems:
        return  # nothing will come of this folder, but further problems are worth knowing
    _put(sample.image, image, folder / f"images{kind}" / f"{sample.name}_0000{ENDING}", link)
    if sample.labels is not None and labels is not None:
        _put(sample.labels, labels, folder / f"labels{kind}" / f"{sample.name}{ENDING}", link)


def _put(part: Part, volume: Volume[NDArray[Any]], path: Path, link: bool) -> None:
    """Writes a part, or takes its file over."""
    path.parent.mkdir(exist_ok=True)
    if part.file is None:
        voxels = volume.channels[0]
        if voxels.dtype not in (np.uint8, np.uint16):
            raise VolumeError(
                f"{part.where}: voxels of type {voxels.dtype} are not converted", "Store it as uint8 or uint16."
            )
        write_labels(voxels, volume.grid, path)  # despite its name, it takes any voxels of these types
        return
    if link:
        with suppress(OSError):  # another disk, or a file system or owner that does not allow it
            os.link(part.file.resolve(), path)  # resolved, because a link to a symbolic link breaks when that goes
            return
    shutil.copyfile(part.file, path)
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _write_json(data: RawData, folder: Path) -> None:
    content = {
        "channel_names": {"0": data.channel},
        "labels": dict(data.labels),
        "numTraining": sum(not sample.test for sample in data.samples),
        "file_ending": ENDING,
        "name": data.name,
        **data.about,
        "converted_by": f"c2f-convert, coarse2fine {versions()['coarse2fine']}",
        "sources": {sample.name: dict(sample.source) for sample in data.samples},
    }
    with atomic_write(folder / "dataset.json") as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _output_error(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {target}: {error.strerror or error}",
        "Name a folder that you may write to with -o, or make room on its disk.",
    )
