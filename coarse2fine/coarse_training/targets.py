"""What a coarse network is to find: of every coarse voxel, whether there is anything in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Triple
from coarse2fine.nnunet.labels import Labels

LabelArray = NDArray[np.unsignedinteger[Any]]


def pool_labels(labels: LabelArray, shape: Triple, known: Labels) -> LabelArray:
    """Labels on larger voxels, over the same region of space: the smallest object survives.

    A voxel of which any part is foreground takes the foreground label that most of it has. Where there is none, a
    voxel that is partly to be ignored is ignored.

    Args:
        labels: Shape (z, y, x).
        shape: Of the result; on an axis that has more voxels than before, the nearest ones are taken.
        known: The labels that there are.

    Returns:
        Of the given shape and the labels' type.
    """
    most = np.zeros(shape, np.uint32)
    result = np.zeros(shape, labels.dtype)
    if known.ignore is not None:
        result[count_in(labels == known.ignore, shape) > 0] = known.ignore
    for label in known.foreground:
        count = count_in(labels == label, shape)
        result[count > most] = label
        np.maximum(most, count, out=most)
    return result


def count_in(mask: NDArray[np.bool_], shape: Triple) -> NDArray[np.uint32]:
    """How many voxels of a mask lie in each larger voxel."""
    count = mask.astype(np.uint32)
    for axis, (before, after) in enumerate(zip(mask.shape, shape, strict=True)):
        starts = np.arange(after) * before // after
        count = np.add.reduceat(count, starts, axis=axis)  # where starts repeat, it takes the voxel itself
    return count
