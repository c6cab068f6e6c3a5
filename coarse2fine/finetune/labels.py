"""Labels of whole images from the columns of a table, and which rows are to be learned from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import ConfigError, ImageError
from coarse2fine.finetune.shares import Numbers, hold_out
from coarse2fine.finetune.tasks import Classification
from coarse2fine.pretrain.table import Table, check_splits
from coarse2fine.system.terminal import plain, shown

Rows = NDArray[np.float32]

SPLIT = "split"
TRAIN, TEST = ("train", "training"), ("test", "testing")
LEFT_OUT = ("val", "valid", "validation")
_TRUTH = {"0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0}
_MOST_CLASSES = 1000


def read_labels(table: Table, columns: Sequence[str]) -> tuple[Classification, Rows]:
    """Several labels, each of which an image has or has not.

    Args:
        table: Of the images.
        columns: One for each label, with 0 and 1.

    Returns:
        What is to be learned, and a row of 0 and 1 for each image.

    Raises:
        ImageError: If a column is missing, or holds something else, or the same of all images.
        ConfigError: If a column is named twice.
    """
    if len(set(columns)) < len(columns) or not all(columns):
        raise ConfigError(
            f"--labels {shown(','.join(columns))} names one twice or none", "Name each once: --labels a,b."
        )
    values = []
    for name in columns:
        column = table.column(name)
        for row, text in zip(table.rows, column, strict=True):
            if text.strip().lower() not in _TRUTH:
                raise ImageError(
                    f"{table.where}: {shown(name)} of {shown(row.name)} is {shown(text)}",
                    "Write 0 or 1, or name a column of classes by --classes instead.",
                )
        values.append([_TRUTH[text.strip().lower()] for text in column])
        if len(set(values[-1])) < 2:
            raise ImageError(
                f"{table.where}: {shown(name)} is {values[-1][0]:g} for all {len(table)} images",
                "Leave it out, or add images for which it is different.",
            )
    return Classification(tuple(columns)), np.array(values, np.float32).T.copy()


def read_classes(table: Table, column: str) -> tuple[Classification, Rows]:
    """Classes of which each image has exactly one; arguments and results as of ``read_labels``.

    Raises:
        ImageError: If the column is missing, has empty cells, or one class only, or a class for nearly every image.
    """
    texts = [text.strip() for text in table.column(column)]
    for row, text in zip(table.rows, texts, strict=True):
        if not text:
            raise ImageError(
                f"{table.where}: {shown(row.name)} has no {shown(column)}", "Fill it in, or remove the row."
            )
    names = tuple(sorted(set(texts)))
    if len(names) < 2:
        raise ImageError(
            f"{table.where}: {shown(column)} is {shown(names[0])} for all {len(table)} images",
            "Name another column, or add images of another class.",
        )
    if len(names) > _MOST_CLASSES:
        raise ImageError(
            f"{table.where}: {shown(column)} has {len(names)} different values", "Name a column of classes (--classes)."
        )
    rows = np.zeros((len(texts), len(names)), np.float32)
    rows[np.arange(len(texts)), [names.index(text) for text in texts]] = 1
    return Classification(names, exclusive=True), rows


def split(table: Table, test_share: float, seed: int) -> tuple[Numbers, Numbers]:
    """Which rows to learn from, and which to test on.

    As the table's column ``split`` says, whose rows for validation are left out; without it a share of the patients is
    held out at random.

    Args:
        table: Of the images.
        test_share: Of patients, if the table has no such column.
        seed: Of the choice.

    Raises:
        ImageError: If a patient is in two splits, a value is unknown, or one of the two is empty.
        ConfigError: If one of them would be empty because of the share.
    """
    if SPLIT not in table.rows[0].columns:
        return hold_out(table.patients, test_share, seed)
    values = [text.strip().lower() for text in table.column(SPLIT)]
    for row, value in zip(table.rows, values, strict=True):
        if value not in (*TRAIN, *TEST, *LEFT_OUT):
            raise ImageError(
                f"{table.where}: the split of {shown(row.name)} is {shown(value)}", "Write train, val or test."
            )
    parts = [np.array([at for at, one in enumerate(values) if one in names], np.intp) for names in (TRAIN, TEST)]
    for name, part in zip(("train", "test"), parts, strict=True):
        if not len(part):
            raise ImageError(
                f"{table.where}: no row has the split {name}",
                f"Write {name} for some patients, or remove the column {SPLIT}: then patients are held out at random.",
            )
    kinds = {"train": TRAIN, "val": LEFT_OUT, "test": TEST}
    check_splits(
        {kind: table.take([at for at, one in enumerate(values) if one in names]) for kind, names in kinds.items()}
    )
    return parts[0], parts[1]


def check_share(task: Classification, targets: Rows, patients: int) -> tuple[str, ...]:
    """Notes on what the chosen part of the training images lacks.

    Raises:
        ConfigError: If it has nothing but one class, so that there is nothing to tell apart.
    """
    constant = [name for name, column in zip(task.labels, targets.T, strict=True) if len(set(column.tolist())) < 2]
    several = [name for name, column in zip(task.labels, targets.T, strict=True) if column.any()]
    if len(several) < 2 if task.exclusive else len(constant) == len(task.labels):
        what = plain(", ".join(several if task.exclusive else task.labels))[:200]
        raise ConfigError(
            f"the {patients} patient(s) to learn from are of one class only: {what}"
            if task.exclusive
            else f"the {patients} patient(s) to learn from are all alike in {what}",
            "Use a larger --share.",
        )
    missing = [name for name in task.labels if name not in several] if task.exclusive else constant
    return tuple(f"the {patients} patients to learn from say nothing of {plain(name)[:100]}" for name in missing)
