"""Parts of a set of images by patient: what is held out, and subsets of the rest that lie in each other."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coarse2fine.errors import ConfigError

Numbers = NDArray[np.intp]


def hold_out(patients: Sequence[str], share: float, seed: int) -> tuple[Numbers, Numbers]:
    """Numbers of images to learn from and of those held out; all of a patient are in the same part.

    Args:
        patients: Whose each image is.
        share: Of patients that are held out, between 0 and 1.
        seed: Fixes which.

    Raises:
        ConfigError: If one of the parts would be empty.
    """
    order, members = _shuffled(patients, seed)
    count = floor(share * len(order) + 0.5)
    if not 0 < count < len(order):
        raise ConfigError(
            f"a test share of {share:g} of {len(order)} patient(s) leaves nothing to "
            f"{'test on' if count <= 0 else 'learn from'}",
            "Use --test-share 0.2, or more patients (at least 3)."
            if len(order) < 3
            else "Use a share from 0.2 to 0.5, such as --test-share 0.2.",
        )
    chosen = np.isin(members, order[:count])
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def take_share(patients: Sequence[str], targets: ArrayLike, share: float, seed: int) -> Numbers:
    """Numbers of the images of some patients.

    Patients come in a random order, but those come first who have a class that nobody before them has. A share takes
    the first ones, so that smaller shares lie in larger ones and have all classes as soon as they can.

    Args:
        patients: Whose each image is.
        targets: Shape (images, labels): of each image, which of the labels it has.
        share: Of patients, above 0 and at most 1.
        seed: Fixes the order.

    Raises:
        ConfigError: If no patient would be left.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"the share of labels is {share:g}", "It must be above 0 and at most 1: --share 0.1.")
    order, members = _shuffled(patients, seed)
    count = floor(share * len(order) + 0.5)
    if count == 0:
        least = ceil(500 / len(order)) / 1000  # half a patient is rounded up
        raise ConfigError(
            f"a share of {share:g} of {len(order)} patients leaves none", f"Use --share {least:g} or more."
        )
    rows = np.asarray(targets)
    known: set[tuple[int, Any]] = set()
    first: list[int] = []
    later: list[int] = []
    for patient in order.tolist():
        new = {(label, value) for row in rows[members == patient] for label, value in enumerate(row.tolist())} - known
        (first if new else later).append(patient)
        known |= new
    return np.flatnonzero(np.isin(members, [*first, *later][:count]))


def missing_classes(targets: ArrayLike, names: Sequence[str]) -> tuple[str, ...]:
    """Labels of which images have no example, or nothing else."""
    rows = np.asarray(targets, bool)
    return tuple(name for name, column in zip(names, rows.T, strict=True) if column.all() or not column.any())


def _shuffled(patients: Sequence[str], seed: int) -> tuple[Numbers, Numbers]:
    """Numbers of the patients in a random order, and whose each image is."""
    known, members = np.unique(np.asarray(patients), return_inverse=True)
    return np.random.default_rng((seed, 0)).permutation(len(known)), members
