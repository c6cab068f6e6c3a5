"""Volumes of a table with labels of each as a whole, seen as inference sees them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import ImageError
from coarse2fine.finetune.examples import Examples
from coarse2fine.finetune.gather import Asked, Chosen, choose
from coarse2fine.finetune.run import Labelled, Settings
from coarse2fine.io import Case, find_cases, input_suffixes
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.crops import Arrays, about_files, prepare
from coarse2fine.pretrain.table import Table, read_table
from coarse2fine.system.terminal import shown
from coarse2fine.system.timing import Ticks


@dataclass(frozen=True, slots=True)
class VolumeTable:
    """A table whose rows are volumes.

    Attributes:
        table: Its rows; each row's file is the first one of its volume.
        cases: All files of each.
        model: Of ``load_plans``, by which they are seen.
    """

    table: Table
    cases: tuple[Case, ...]
    model: Model


@dataclass(frozen=True, slots=True, eq=False)
class ChosenOfTable:
    """Volumes to learn from and those held out; they are not read yet.

    Attributes:
        volumes: All rows.
        rows: Their labels, and which are held out.
    """

    volumes: VolumeTable
    rows: Chosen

    @property
    def about(self) -> dict[str, Any]:
        """All that a result depends on, as JSON has it."""
        plans = json.dumps(dict(self.volumes.model.plans), sort_keys=True)
        return {
            **self.rows.about,
            "configuration": self.volumes.model.configuration,
            "plans": hashlib.sha256(plans.encode()).hexdigest(),
            "files": about_files(file for case in self.volumes.cases for file in case.files),
        }


def read_volume_table(path: Path, images: Path | None, model: Model) -> VolumeTable:
    """Read a table, and find its volumes.

    Args:
        path: CSV with the columns ``file`` and ``patient``. A file is that of a volume, or its name without ending and
            number of the channel; or a folder with all of its channels, or of a DICOM series.
        images: Folder that files are named from, see ``read_table``.
        model: Of ``load_plans``.

    Raises:
        ImageError: If the table cannot be read, or names what is not there or no volume.
        VolumeError: If a volume's channels are not those of the plans.
    """
    suffixes = input_suffixes(model.reader)
    table = read_table(path, images, find=partial(_first_file, suffixes=suffixes))
    return VolumeTable(table, tuple(_case(row.file, path, model, suffixes) for row in table.rows), model)


def choose_of_table(volumes: VolumeTable, asked: Asked, settings: Settings) -> ChosenOfTable:
    """Read labels, and hold some volumes out; errors as of ``choose``."""
    return ChosenOfTable(volumes, choose(volumes.table, asked, settings))


def load_of_table(
    chosen: ChosenOfTable,
    patch: tuple[int, ...],
    settings: Settings,
    folder: Path,
    progress: Ticks = lambda done, total: None,
) -> Labelled:
    """Prepare volumes, and take a share of those to learn from.

    Every crop of a volume has the volume's labels, and what is found in a volume is the mean over its windows.

    Args:
        chosen: Which.
        patch: Of the network.
        settings: Share and seed.
        folder: Where to keep them while they are needed.
        progress: Told of every volume.

    Raises:
        C2FError: If one cannot be read or does not fit the plans.
    """
    rows, cases = chosen.rows, chosen.volumes.cases
    if rows.known is None:
        raise TypeError("labels of whole volumes are needed")
    task, targets = rows.known
    files = []
    for number, case in enumerate(cases):
        files.append(prepare(case.files, chosen.volumes.model, folder / f"{number}.npy"))
        progress(number + 1, len(cases))

    def examples(numbers: NDArray[np.intp]) -> Examples:
        part = rows.table.take(numbers)
        images = Arrays([files[number] for number in numbers])
        return Examples(images, [targets[at] for at in numbers], part.patients, [row.name for row in part.rows])

    learn = rows.part(targets, settings)
    notes = tuple(rows.notes(learn, "volumes"))
    return Labelled(task, examples(learn), examples(rows.test), patch, notes=notes, model=chosen.volumes.model)


def _first_file(path: Path, suffixes: Sequence[str]) -> Path | None:
    """The path itself, or the first file of the volume of that name."""
    if path.exists():
        return path
    names = (path.with_name(f"{path.name}{mark}{suffix}") for mark in ("", "_0000") for suffix in suffixes)
    return next((name for name in names if name.is_file()), None)


def _case(file: Path, path: Path, model: Model, suffixes: Sequence[str]) -> Case:
    """The volume that a row names."""
    if file.is_file() and not file.name.endswith((*suffixes, ".zip")):
        raise ImageError(
            f"{path} names {shown(file.name)}, which is no volume, and the configuration {model.configuration} sees "
            "volumes",
            f"Name files that end in {', '.join(suffixes)}; of pictures take plans of a 2D configuration (-c 2d).",
        )
    cases = find_cases(file, model.channels, suffixes)
    if len(cases) > 1:
        raise ImageError(
            f"{path} names the folder {shown(file.name)}, which holds {len(cases)} volumes",
            f"Name each by itself, such as {shown(f'{file.name}/{cases[0].name}')}.",
        )
    return cases[0]
