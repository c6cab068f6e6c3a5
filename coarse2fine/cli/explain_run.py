"""What ``c2f-explain`` does: a model and a volume in, a map out; or maps and labels in, a table out."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from coarse2fine.cli.bars import show_bars
from coarse2fine.cli.explain_picture import explain_picture
from coarse2fine.cli.explain_tuned import explain_tuned_picture, subject_of_tuned
from coarse2fine.cli.map_statistics import write_statistics
from coarse2fine.cli.series import check_beside
from coarse2fine.errors import ConfigError, OutputError, VolumeError
from coarse2fine.explain.overlay import write_map_picture
from coarse2fine.explain.volumes import Explanation, Subject, explain_view, subject_of
from coarse2fine.finetune.load import is_tuned, load_tuned
from coarse2fine.io import (
    Case,
    Volume,
    check_writable,
    find_cases,
    input_suffixes,
    is_store,
    label_suffixes,
    read_volume,
    write_voxels,
)
from coarse2fine.io.files.readers import PICTURES, TIFF_SUFFIXES
from coarse2fine.io.files.tiff import spacing_beside
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.labels import read_labels
from coarse2fine.preprocessing.working_grid import view_volume, volume_doubts
from coarse2fine.system.device import pick_device
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.system.terminal import plain

_CT = "CTNormalization"


def run(options: argparse.Namespace, console: Console) -> None:
    """Do what the command line asks for.

    Raises:
        C2FError: If it cannot be done.
    """
    keep_freed_memory()
    if options.statistics:
        maps, labels = options.statistics
        write_statistics(maps, labels, options.output, console, overwrite=options.overwrite)
        return
    device = pick_device(options.device)
    if is_tuned(options.model):
        loaded = load_tuned(options.model)
        if options.folds:
            raise ConfigError(f"{options.model} is of a fine-tuning, which has no folds", "Leave out --folds.")
        if loaded.intensities is not None:
            explain_tuned_picture(options, loaded, device, console)
        else:
            write_map(options, subject_of_tuned(loaded, options.label, options.layer, device), console)
        return
    model = load_model(
        options.model,
        folds=tuple(options.folds) if options.folds else None,
        checkpoint=options.checkpoint,
        device=device,
        trust=options.trust_checkpoint,
        flat=True,
    )
    subject = subject_of(model, options.label, options.layer)
    (explain_picture if model.reader == PICTURES else write_map)(options, subject, console)


def write_map(options: argparse.Namespace, subject: Subject, console: Console) -> None:
    """Explain one volume; whatever can be wrong with options is found before the network runs.

    Raises:
        C2FError: If it cannot be done.
    """
    model = subject.model
    if options.mask and not subject.dense:
        raise ConfigError(f"{options.model} tells labels of whole volumes", "Leave out --mask.")
    case = one_case(options.input, model)
    check_outputs(options, case, model)
    volume = read_volume(case.files, [model.reader])
    mask = None if options.mask is None else label_mask(options.mask, options.label, model, volume)
    for doubt in volume_doubts(volume, [model]):
        console.print(plain(doubt), style="yellow", soft_wrap=True)
    with show_bars(console) as bars:
        task = bars.add_task(plain(case.name), total=None)
        found = explain_view(
            subject,
            view_volume(volume, model),
            method=options.method,
            mask=mask,
            ticks=lambda done, total: bars.update(task, completed=done, total=total),
        )
    write_voxels(found.values, volume.grid, options.output)
    for line in told(options, case, model, found):
        console.print(plain(line), soft_wrap=True)
    if options.png:
        title = f"{options.label}: {options.method} at {found.layer}"
        number = write_map_picture(volume, found, options.png, title=title, ct=model.schemes[0].name == _CT)
        console.print(plain(f"{options.png}: slice {number}"), soft_wrap=True)
    for doubt in found.doubts:
        console.print(plain(doubt), style="yellow", soft_wrap=True)


def one_case(source: str, model: Model) -> Case:
    """The case that an input is.

    Raises:
        ConfigError: If it is a store, or several cases.
        VolumeError: If it is none.
    """
    if is_store(source):
        raise ConfigError(
            f"{source} is a store, and maps are made of volumes in files",
            "Save the part that matters as a file, such as .nrrd.",
        )
    cases = find_cases(Path(source), model.channels, input_suffixes(model.reader))
    if len(cases) > 1:
        raise ConfigError(f"{source} holds {len(cases)} cases", f"Name one of them: -i {cases[0].files[0]}")
    return cases[0]


def check_outputs(options: argparse.Namespace, case: Case, model: Model) -> None:
    """Find out whether all that will be written can be.

    Raises:
        OutputError: If not, or if it would replace an input or another result.
    """
    files = [("-o", options.output)] + ([("--png", options.png)] if options.png else [])
    if options.output.name.endswith(TIFF_SUFFIXES):
        files.append(("-o", spacing_beside(options.output)))
    check_beside([case], files)
    taken = {file.resolve() for file in (*case.files, *([options.mask] if options.mask else []))}
    for option, file in files:
        if file.resolve() in taken:
            raise OutputError(
                f"{file} is an input or another result of this run", f"Choose another name with {option}."
            )
        taken.add(file.resolve())
    check_writable(options.output, options.overwrite, label_suffixes(model.reader))
    for _, file in files[1:]:
        check_writable(file, options.overwrite, (".png", ".json"))


def label_mask(path: Path, label: str, model: Model, volume: Volume[Any]) -> NDArray[np.bool_]:
    """The voxels that have a label in a file.

    Raises:
        VolumeError: If there are none, or the file does not fit.
    """
    values = sorted(model.labels.values_of[label])
    labels = read_labels(path, model, volume)
    mask: NDArray[np.bool_] = np.isin(labels, values)
    if not mask.any():
        raise VolumeError(
            f"no voxel of {path} has the label {label} ({', '.join(map(str, values))}); its values are "
            f"{', '.join(map(str, np.unique(labels)))}",
            "Give labels with the model's own numbers, or leave --mask out to explain what the model finds.",
        )
    return mask


def told(options: argparse.Namespace, case: Case, model: Model, found: Explanation) -> Iterator[str]:
    """A few lines that say what was done."""
    folds = f", fold{'s' if len(model.folds) > 1 else ''} {', '.join(model.folds)}" if model.folds else ""
    what = f"of {options.mask}" if options.mask else "in which the model finds it"
    count = f", {int(found.explained.sum())} voxels {what}" if found.dense else ""
    yield f"{case.name}: {options.label}{count}"
    yield f"{options.method} at layer {found.layer}{folds}"
    yield f"written: {options.output}"
