"""Volumes as radiologists look at them, whatever the order in which a file stores its voxels."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Triple, triple
from coarse2fine.io import Grid
from coarse2fine.io.turn import Turn

_ANATOMICAL = "mm"
_OBLIQUE = 0.9  # cosine of the angle from which on users are told that slices are not the patient's own planes


def display_axes(grid: Grid) -> tuple[Triple, Triple]:
    """How a volume's axes have to be put so that pictures follow the field's convention.

    Then z runs from the patient's feet to the head, y from front to back, x from right to left: an axial slice that is
    drawn with its first row on top has the patient's front on top and the patient's right on the viewer's left; coronal
    and sagittal slices are drawn with their last row on top. An oblique volume is shown along its own axes, each of
    which stands for the nearest of the patient's. Volumes in nm have no patient, and stay as they are stored.

    Args:
        grid: Says where the volume lies. Its direction cosines refer to the patient's left, back and head.

    Returns:
        Which of the stored axes (z, y, x) comes at each place, and the step, 1 or -1, with which it is read.

    >>> display_axes(Grid((9, 9, 9), (1.0, 1.0, 1.0), direction=(1, 0, 0, 0, -1, 0, 0, 0, 1)))
    ((0, 1, 2), (1, -1, 1))
    >>> display_axes(Grid((9, 9, 9), (1.0, 1.0, 1.0), direction=(0, 0, 1, 1, 0, 0, 0, -1, 0)))
    ((1, 2, 0), (-1, 1, 1))
    """
    if grid.unit != _ANATOMICAL:
        return (0, 1, 2), (1, 1, 1)
    cosines = _cosines(grid)
    order = max(permutations(range(3)), key=lambda axes: abs(cosines[range(3), axes]).sum())
    return triple(order), triple(-1 if cosines[place, axis] < 0 else 1 for place, axis in enumerate(order))


def display_turn(grid: Grid) -> Turn:
    """The same as a turn, which boxes and spacings can go through, too."""
    order, steps = display_axes(grid)
    z, y, x = (step < 0 for step in steps)
    return Turn(order, (z, y, x))


def as_displayed(voxels: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """The same voxels, not copied, with their axes put as ``display_axes`` tells.

    Args:
        voxels: (z, y, x) as stored; also a smaller or larger array that covers the same box.
        grid: Of the volume.
    """
    return display_turn(grid).last_axes(voxels)


def shows_patient(grid: Grid) -> bool:
    """Whether it is known where the patient's front and right are."""
    return grid.unit == _ANATOMICAL and grid.direction is not None


def is_oblique(grid: Grid) -> bool:
    """Whether slices along the volume's own axes are far from the patient's planes."""
    if not shows_patient(grid):
        return False
    return bool(abs(_cosines(grid)[range(3), display_axes(grid)[0]]).min() < _OBLIQUE)


def _cosines(grid: Grid) -> NDArray[np.float64]:
    """Rows x, y, z of the patient and columns x, y, z of the file become z, y, x of both."""
    return np.reshape(np.asarray(grid.cosines, np.float64), (3, 3))[::-1, ::-1]
