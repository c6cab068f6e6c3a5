"""What nnU-Net knows of an image beside its voxels, and what its own commands want back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from coarse2fine.nnunet.model import Model


def image_properties(files: Sequence[Path], model: Model) -> dict[str, Any]:
    """The properties of an image as nnU-Net's preprocessing leaves them, found by its own functions.

    Args:
        files: One for each channel.
        model: Its plans name the reader.
    """
    reader = PlansManager(dict(model.plans)).image_reader_writer_class()
    voxels, found = reader.read_images([os.fspath(file) for file in files])
    voxels = voxels.transpose([0, *(axis + 1 for axis in model.transpose)])
    cropped, _, box = crop_to_nonzero(voxels)
    properties: dict[str, Any] = {
        **found,
        "shape_before_cropping": voxels.shape[1:],
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": cropped.shape[1:],
    }
    return properties
