"""Raw data sets as nnU-Net v2 wants them: what they are made of, their checks, and writing one in a single step.

The layout is nnU-Net's: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import ConfigError, OutputError, VolumeError
from coarse2fine.io import Volume, atomic_write, check_folder, write_labels
from coarse2fine.report import versions

ENDING = ".nii.gz"
"""Of all files in a data set that we write."""

_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
_OURS = {*_FOLDERS, "dataset.json"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_MOST_LISTED = 20  # problems in one message
_MOST_VALUES = 10  # that are no label, in one message
_SAME_PLACE = 0.01  # voxels that origins may differ by; float32 headers are better than that
_SAME_DIRECTION = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """An image or a label map that is yet to be read.

    Attributes:
        where: The file and the place in it, for messages.
        load: Reads it as a volume of one channel.
        file: A ``.nii.gz`` file that holds just this and becomes part of the data set as it is. None if what ``load``
            gives is written.
    """

    where: str
    load: Callable[[], Volume[NDArray[Any]]]
    file: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One case.

    Attributes:
        name: Of the case, unique in the data set.
        image: Its only channel.
        labels: What is true; None for a test case without labels.
        test: Whether it is a test case (imagesTs, labelsTs) and not one for training.
        source: Where it comes from, for dataset.json; nothing that says where on this machine.
    """

    name: str
    image: Part
    labels: Part | None
    test: bool
    source: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class RawData:
    """A data set before it is read.

    Attributes:
        name: After ``Dataset123_``.
        channel: Name of the channel; nnU-Net normalises "CT" by the foreground's statistics, all others by z-score.
        labels: Value of each label by name, 0 (background) to the highest without a gap.
        unit: Of the spacing.
        spacings: Lowest and highest voxel distance that makes sense, in ``unit``.
        about: Further entries of dataset.json, which nnU-Net ignores: reference, licence and the like.
        samples: The cases.
        warnings: What the user should know about how they were found.
    """

    name: str
    channel: str
    labels: Mapping[str, int]
    unit: str
    spacings: tuple[float, float]
    about: Mapping[str, str]
    samples: tuple[Sample, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """A finished data set.

    Attributes:
        folder: Where it lies.
        training: Number of training cases.
        test: Number of test cases.
        warnings: What is allowed, but maybe not wanted.
    """

    folder: Path
    training: int
    test: int
    warnings: tuple[str, ...]


@dataclass(slots=True)
class _Findings:
    """What is seen while cases are read, to be judged over the whole data set."""

    problems: list[VolumeError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seen: dict[bytes, str] = field(default_factory=dict)
    voxels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


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
                f"Name one of {_listed([sample.name for sample in samples])}.",
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
    progress: Callable[[int, int], None] = lambda done, total: None,
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
    findings = _Findings(voxels=np.zeros(len(data.labels), np.int64))
    try:
        with _new_folder(target, overwrite) as folder:
            for done, sample in enumerate(data.samples):
                progress(done, len(data.samples))
                try:
                    _add(sample, data, folder, findings, link)
                except VolumeError as error:
                    findings.problems.append(error)
            progress(len(data.samples), len(data.samples))
            _judge(data, findings)
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
            f"{target} holds more than a data set: {_listed(foreign)}",
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


@contextmanager
def _new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A hidden folder that becomes ``target`` if the body ends well, and goes away otherwise."""
    # Nobody else may enter it while files get their names, which are known: a link could lie there before.
    temp = target.with_name(f".c2f-{secrets.token_hex(8)}")
    temp.mkdir(mode=0o700)
    new = temp / target.name
    new.mkdir()
    try:
        yield new
        if target.exists():
            _check_replaceable(target, overwrite)  # it may have changed, or appeared, since the first check
            _exchange(new, target, temp / "old")
        else:
            new.rename(target)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _exchange(new: Path, target: Path, old: Path) -> None:
    """Puts ``new`` in the place of ``target``, which becomes ``old``."""
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise


def _add(sample: Sample, data: RawData, folder: Path, findings: _Findings, link: bool) -> None:
    """Checks a case and adds it to the folder."""
    kind = "Ts" if sample.test else "Tr"
    image = sample.image.load()
    _check_image(sample, image, data)
    _note_image(sample, image, findings)
    labels = None
    if sample.labels is not None:
        labels = sample.labels.load()
        _check_grids(sample, image, labels)
        counts = _count_labels(sample.labels.where, labels.channels[0], data.labels)
        if not counts[1:].any():
            findings.warnings.append(f"{sample.name}: no voxel of any label but background")
        if not sample.test:
            findings.voxels += counts
    if findings.problems:
        return  # nothing will come of this folder, but further problems are worth knowing
    _put(sample.image, image, folder / f"images{kind}" / f"{sample.name}_0000{ENDING}", link)
    if sample.labels is not None and labels is not None:
        _put(sample.labels, labels, folder / f"labels{kind}" / f"{sample.name}{ENDING}", link)


def _check_image(sample: Sample, image: Volume[NDArray[Any]], data: RawData) -> None:
    low, high = data.spacings
    spacing = image.grid.spacing
    if not all(low <= step <= high for step in spacing):
        raise VolumeError(
            f"{sample.image.where}: a voxel spacing of {_numbers(spacing)} {data.unit} (z, y, x) is not plausible",
            f"It should lie between {low:g} and {high:g} {data.unit}: correct the header or the unit.",
        )


def _note_image(sample: Sample, image: Volume[NDArray[Any]], findings: _Findings) -> None:
    """Warns of empty images, and of those with two names: one in training and test makes a test worthless."""
    voxels = np.ascontiguousarray(image.channels[0])
    digest = blake2b(repr((voxels.shape, voxels.dtype.str)).encode(), digest_size=16)
    digest.update(voxels.data.cast("B"))
    twin = findings.seen.setdefault(digest.digest(), sample.name)
    if twin != sample.name:
        findings.warnings.append(f"{sample.name}: the image has the same voxels as {twin}")
    if voxels.min() == voxels.max():  # a missing chunk of a store is no error, but all of them are none to learn from
        findings.warnings.append(f"{sample.name}: all voxels of the image are {voxels.flat[0]}")


def _check_grids(sample: Sample, image: Volume[NDArray[Any]], labels: Volume[NDArray[Any]]) -> None:
    """Raises a VolumeError unless voxels of image and labels have the same places."""
    one, other = image.grid, labels.grid
    off = math.dist(one.origin, other.origin)
    for what, same, first, second in (
        ("shapes (z, y, x)", one.shape == other.shape, one.shape, other.shape),
        # nnU-Net's own tolerance: it refuses what differs by more
        ("spacings (z, y, x)", np.allclose(one.spacing, other.spacing), one.spacing, other.spacing),
        ("origins (x, y, z)", off <= _SAME_PLACE * min(one.spacing), one.origin, other.origin),
        (
            "directions",
            np.allclose(one.cosines, other.cosines, rtol=0, atol=_SAME_DIRECTION),
            one.cosines,
            other.cosines,
        ),
    ):
        if not same:
            raise VolumeError(
                f"{sample.name}: image and labels have different {what}: {_numbers(first)} and {_numbers(second)}",
                "Check that they belong together; resample the labels to the image if they do.",
            )


def _count_labels(where: str, labels: NDArray[Any], names: Mapping[str, int]) -> NDArray[np.int64]:
    """Voxels per label.

    Raises:
        VolumeError: If there are values that are no label.
    """
    counts = np.zeros(len(names), np.int64)
    odd: set[float] = set()
    for plane in labels:  # temporaries of a plane are small
        valid = (plane >= 0) & (plane < len(names))
        whole = plane.astype(np.int64, casting="unsafe") if valid.all() else np.where(valid, plane, 0).astype(np.int64)
        valid &= whole == plane
        counts += np.bincount(whole[valid], minlength=len(names))
        if not valid.all():
            odd |= {value.item() for value in np.unique(plane[~valid])[:_MOST_VALUES]}
    if odd:
        values = ", ".join(f"{value:g}" for value in sorted(odd)[:_MOST_VALUES])
        values += ", ..." if len(odd) > _MOST_VALUES else ""
        raise VolumeError(
            f"{where} holds values that are no label: {values}",
            f"Labels are whole numbers from 0 to {len(names) - 1}: {', '.join(names)}.",
        )
    return counts


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


def _judge(data: RawData, findings: _Findings) -> None:
    """Raises what was found about single cases, or about all together."""
    problems = findings.problems
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [f"\n  - {error.problem}" for error in problems[:_MOST_LISTED]]
        more = f"\n  - and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        raise VolumeError(
            f"{len(problems)} of {len(data.samples)} cases cannot be used:{''.join(lines)}{more}",
            problems[0].remedy + " Nothing was written.",
        )
    if not findings.voxels[1:].any():
        raise VolumeError(
            "no training case has a voxel of any label but background", "Check that these are the right labels."
        )
    missing = [name for name, value in data.labels.items() if value and not findings.voxels[value]]
    if missing:
        findings.warnings.append(f"no training case has a voxel of: {', '.join(missing)}")


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
        "Check that you may write there and that there is space on the disk.",
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.7g}" for value in values)


def _listed(names: Sequence[str]) -> str:
    """The names, or the first of many."""
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more
