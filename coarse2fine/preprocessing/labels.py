"""Labels from files, as those of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import VolumeError
from coarse2fine.io.files.images import read_volume
from coarse2fine.io.files.readers import look_with
from coarse2fine.io.volume import Volume
from coarse2fine.nnunet.model import Model

Labels = NDArray[np.unsignedinteger[Any]]


def read_labels(path: Path, model: Model, image: Volume[Any]) -> Labels:
    """The labels of a file, in the voxel order of their image.

    Image and labels may be stored differently if the model's reader turns both; other readers take them as they are.

    Args:
        path: The file.
        model: Says which labels there are, and what reads the file.
        image: What they are the labels of.

    Raises:
        VolumeError: If they lie on another grid than the image, or a value is none of the model's labels, such as the
            number of an instance.
    """
    read = read_volume([path], [model.reader])
    turn = look_with(model.reader, read)[0].turn.then(look_with(model.reader, image)[0].turn.inverse)
    values = np.asarray(turn.array(read.channels[0]))
    if values.shape != image.grid.shape:
        raise VolumeError(
            f"{path}: labels of shape {values.shape} for an image of {image.grid.shape}",
            "Resample the labels to the image's grid, or give those that were drawn on it.",
        )
    labels: Labels = values.astype(model.labels.dtype)
    most = int(np.max(np.hstack(list(model.labels.names.values()))))
    if not np.array_equal(labels, values) or labels.max() > most:
        raise VolumeError(
            f"{path}: its values go from {values.min()} to {values.max()}, the model's labels are whole numbers from "
            f"0 to {most}",
            "Give the labels that the fine model was trained with, not numbers of instances or probabilities.",
        )
    return labels
