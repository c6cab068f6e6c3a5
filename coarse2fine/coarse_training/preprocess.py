"""Cases as nnU-Net's data loaders want them: images on the coarse grid, labels pooled onto it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from canvas import Box
from coarse2fine.coarse_training.job import CONFIGURATION, PLANS
from coarse2fine.coarse_training.plan import Spacing
from coarse2fine.coarse_training.targets import LabelArray, count_in, pool_labels
from coarse2fine.io import Volume
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.nonzero import nonzero_mask
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.system.device import to_host

Floats = NDArray[np.float32]
OUTSIDE = -1
"""nnU-Net's label of what was zero in the image, which augmentation must leave zero."""


def start_data(folder: Path, plans: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
    """Begin a folder of preprocessed data anew."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / f"{PLANS}_{CONFIGURATION}").mkdir(parents=True)
    for name, content in (("plans.json", plans), ("dataset.json", dataset), ("dataset_fingerprint.json", {})):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def coarse_case(
    volume: Volume[Any], labels: LabelArray, fine: Model, spacing: Spacing
) -> tuple[Floats, NDArray[np.int16]]:
    """A case on the coarse grid, normalised and resampled as the fine model's plans say.

    Args:
        volume: In memory.
        labels: Shape (z, y, x) of the volume.
        fine: The fine model.
        spacing: Of the coarse grid, axes of the working grid.

    Returns:
        Image of shape (channels, z, y, x), labels of shape (z, y, x): ``OUTSIDE`` where statistics of the image leave
        out what is zero, and nothing else is.
    """
    view = view_volume(volume, fine, spacing)
    inside = np.asarray(view.turn.array(labels))[view.crop.slices]
    target = pool_labels(inside, view.shape, fine.labels).astype(np.int16)
    if any(scheme.masked for scheme in fine.schemes):
        seen = nonzero_mask([np.asarray(channel)[view.crop.slices] for channel in view.channels]).whole()
        target[(count_in(seen, view.shape) == 0) & (target == 0)] = OUTSIDE
    return to_host(view.read(Box.whole(view.shape))), target


def write_case(folder: Path, name: str, image: Floats, labels: NDArray[np.int16]) -> None:
    """Write a case for nnU-Net's data loaders.

    Args:
        folder: Of the preprocessed data, see ``start_data``.
        name: Of the case.
        image: Shape (channels, z, y, x).
        labels: Shape (z, y, x).
    """
    manager = PlansManager(str(folder / "plans.json"))
    dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    known = manager.get_label_manager(dataset)
    classes = list(known.foreground_regions if known.has_regions else known.foreground_labels)
    if known.has_ignore_label:
        classes.append([OUTSIDE, *known.all_labels])
    target = labels[None]
    places = DefaultPreprocessor._sample_foreground_locations(target, classes)
    patch = tuple(manager.get_configuration(CONFIGURATION).patch_size)
    shapes = [comp_blosc2_params(array.shape, patch, array.itemsize) for array in (image, target)]
    (blocks, chunks), (label_blocks, label_chunks) = shapes
    nnUNetDatasetBlosc2.save_case(
        image,
        target,
        {"class_locations": places},
        str(folder / f"{PLANS}_{CONFIGURATION}" / name),
        chunks=chunks,
        blocks=blocks,
        chunks_seg=label_chunks,
        blocks_seg=label_blocks,
    )
