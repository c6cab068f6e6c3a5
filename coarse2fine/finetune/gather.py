"""From a table of images to what is learned from and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import ConfigError
from coarse2fine.finetune.labels import check_share, read_classes, read_labels, split
from coarse2fine.finetune.pictures import find_masks, load_masks, of_pictures
from coarse2fine.finetune.run import Labelled, Settings
from coarse2fine.finetune.shares import take_share
from coarse2fine.finetune.tasks import Classification, Segmentation
from coarse2fine.pretrain.pictures import Intensities, load_pictures
from coarse2fine.pretrain.table import Table
from coarse2fine.system.timing import Ticks


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a table is to be learned: one of the three.

    Attributes:
        labels: Columns of 0 and 1.
        classes: Column of classes.
        masks: Folder of masks.
    """

    labels: tuple[str, ...] = ()
    classes: str | None = None
    masks: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Rows of a table with what is to be learned of them; images are not read yet.

    Attributes:
        asked: What users asked for.
        table: Rows that have it.
        masks: Of each, if that is it.
        known: Otherwise: the task, and a row of labels for each image.
        train: Numbers of the rows to learn from, of which a share is used.
        test: Numbers of those held out.
    """

    asked: Asked
    table: Table
    masks: tuple[Path, ...]
    known: tuple[Classification, NDArray[np.float32]] | None
    train: NDArray[np.intp]
    test: NDArray[np.intp]

    @property
    def about(self) -> dict[str, Any]:
        """All that a result depends on, as JSON has it."""
        files = [*self.table.files, *self.masks]
        return {
            "labels": list(self.asked.labels),
            "classes": self.asked.classes,
            "patients": self.table.patients,
            "files": [[path.name, path.stat().st_size, int(path.stat().st_mtime)] for path in files],
        }

    def part(self, there: NDArray[Any], settings: Settings) -> NDArray[np.intp]:
        """Numbers of the rows whose labels are used.

        Args:
            there: Which labels each row has, shape (rows, labels).
            settings: Share and seed.

        Raises:
            ConfigError: If the share leaves no patient.
        """
        patients = [self.table.patients[at] for at in self.train]
        return self.train[take_share(patients, there[self.train], settings.share, settings.schedule.seed)]

    def notes(self, part: NDArray[np.intp], what: str) -> list[str]:
        """How many images are learned from, and of labels of whole ones what their part lacks.

        Raises:
            ConfigError: If the part has nothing to tell apart.
        """
        patients = len(set(self.table.take(part).patients))
        notes = [f"labels of {len(part)} {what} of {patients} patients, of {len(self.train)} {what} to learn from"]
        return notes if self.known is None else [*notes, *check_share(self.known[0], self.known[1][part], patients)]


def choose(table: Table, asked: Asked, settings: Settings) -> Chosen:
    """Read labels, and hold some images out; of labels of whole images, see that the share has both kinds.

    Raises:
        C2FError: If something is missing or does not fit.
    """
    masks: list[Path] = []
    known = None
    if asked.masks is not None:
        table, masks = find_masks(table, asked.masks)
    else:
        known = read_labels(table, asked.labels) if asked.labels else read_classes(table, asked.classes or "")
    train, test = split(table, settings.test_share, settings.schedule.seed)
    chosen = Chosen(asked, table, tuple(masks), known, train, test)
    if known is not None:
        chosen.notes(chosen.part(known[1], settings), "images")
    return chosen


def load(
    chosen: Chosen,
    size: tuple[int, int],
    channels: int,
    settings: Settings,
    folder: Path,
    intensities: Intensities | None = None,
    progress: Ticks = lambda done, total: None,
) -> Labelled:
    """Read pictures, and take a share of those to learn from.

    Args:
        chosen: Which.
        size: Height and width that they are brought to.
        channels: That the network takes.
        settings: Share and seed.
        folder: Where pictures are kept while they are needed.
        intensities: How the pretraining's pictures were normalised; None: as those to learn from tell.
        progress: Told of every picture.

    Raises:
        C2FError: If a picture cannot be read or is of another kind than the network takes.
    """
    table = chosen.table
    pixels = load_pictures(table.files, size, cache=folder / "pictures.npy", progress=progress)
    _check_channels(pixels.shape[1], channels, table)
    if chosen.known is None:
        masks, count = load_masks(chosen.masks, size, cache=folder / "masks.npy")
        task: Classification | Segmentation = Segmentation(("background", *_names(count)))
        there = np.array([[(mask == number).any() for number in range(1, count)] for mask in masks])
        targets = list(masks)
    else:
        task, there = chosen.known
        targets = list(there)
    part = chosen.part(there, settings)
    seen = intensities or Intensities.of(pixels[chosen.train])
    learn, held = (of_pictures(pixels, targets, table, numbers, seen) for numbers in (part, chosen.test))
    return Labelled(task, learn, held, size, seen, tuple(chosen.notes(part, "pictures")))


def _names(count: int) -> tuple[str, ...]:
    return ("foreground",) if count == 2 else tuple(f"class {number}" for number in range(1, count))


def _check_channels(found: int, expected: int, table: Table) -> None:
    if found != expected:
        raise ConfigError(
            f"{table.rows[0].file} has {found} channel(s), the network takes {expected}",
            "Use pictures like those of the pretraining, or a network for these (leave out --weights).",
        )
