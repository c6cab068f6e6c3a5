"""Small networks in nnU-Net's plans, and the data sets' cases as these see them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.registry import MissingDataError
from canvas import Box, Triple
from coarse2fine.coarse_training.plan import small_unet
from coarse2fine.coarse_training.targets import pool_labels
from coarse2fine.finetune.examples import Examples
from coarse2fine.io import atomic_write, read_volume
from coarse2fine.nnunet.checkpoint import read_json
from coarse2fine.nnunet.labels import Labels
from coarse2fine.nnunet.loading import load_plans
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import WorkingView, view_volume
from coarse2fine.system.device import to_host

CONFIGURATION = "3d_fullres"
Image = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Network:
    """A small network; all sizes (z, y, x).

    Attributes:
        spacing: Of voxels, in the unit of the data.
        patch: Input in voxels.
        features: Of each stage.
        flat: How many stages at first see and halve only the plane, as nnU-Net plans where slices are thick.
        batch: Patches in a step.
    """

    spacing: tuple[float, float, float]
    patch: Triple
    features: tuple[int, ...]
    flat: int = 0
    batch: int = 2


def plans_of(network: Network, name: str, channels: int) -> dict[str, Any]:
    """``plans.json`` of one configuration: nnU-Net's, with a network of one convolution in each stage."""
    stages = len(network.features)
    plane, all_axes = [1, 2, 2], [2, 2, 2]
    strides = [[1, 1, 1], *(plane if stage <= network.flat else all_axes for stage in range(1, stages))]
    kernels = [[1, 3, 3] if stage < network.flat else [3, 3, 3] for stage in range(stages)]
    configuration: dict[str, Any] = {
        "data_identifier": "small",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": network.batch,
        "patch_size": [*network.patch],
        "spacing": [*network.spacing],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "batch_dice": False,
        "architecture": small_unet(network.features, strides, kernels),
    }
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        options = {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{what}_kwargs"] = options
    return {
        "dataset_name": name,
        "plans_name": "smallPlans",
        "configurations": {CONFIGURATION: configuration},
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "experiment_planner_used": "none",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {},
    }


def small_model(data: Path, network: Network, folder: Path) -> Model:
    """A model that is yet to be trained, for a data set in nnU-Net's raw layout; its plans are written to a folder.

    Raises:
        MissingDataError: If the data set is not there.
    """
    if not (data / "dataset.json").is_file():
        raise MissingDataError(f"{data} holds no data set", "Name the folder of the data sets (--data).")
    dataset = read_json(data / "dataset.json")
    plans = plans_of(network, data.name, len(dataset["channel_names"]))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "plans.json") as path:
        path.write_text(json.dumps(plans), encoding="utf-8")
    values = sorted(int(value) for value in dataset["labels"].values() if value)
    labels = Labels(dict(dataset["labels"]), len(values) + 1, tuple(values), ())
    return replace(load_plans(folder / "plans.json", CONFIGURATION), labels=labels, dataset=dataset)


def case_names(data: Path, split: str) -> list[str]:
    """Cases of a split, ``Tr`` or ``Ts``, by name.

    Raises:
        MissingDataError: If there are none.
    """
    found = sorted(path.name.removesuffix(".nii.gz") for path in (data / f"labels{split}").glob("*.nii.gz"))
    if not found:
        raise MissingDataError(f"{data}/labels{split} holds no case", "Name the folder of the data sets (--data).")
    return found


def read_examples(data: Path, split: str, names: Sequence[str], model: Model) -> Examples:
    """Cases in memory, as inference would see them; labels are pooled where the network sees larger voxels."""
    images, targets = [], []
    for name in names:
        view = view_volume(read_volume([data / f"images{split}" / f"{name}_0000.nii.gz"]), model)
        labels = read_volume([data / f"labels{split}" / f"{name}.nii.gz"]).channels[0]
        images.append(whole(view))
        targets.append(pool_labels(np.asarray(view.turn.array(labels))[view.crop.slices], view.shape, model.labels))
    return Examples(images, targets, list(names), list(names))


def whole(view: WorkingView) -> Image:
    """All voxels of a view; shape (channels, z, y, x)."""
    return to_host(view.read(Box.whole(view.shape)))


def classes_of(model: Model) -> tuple[str, ...]:
    """Names of classes by number, the background's first."""
    known: Mapping[str, Any] = model.labels.names
    return tuple(sorted(known, key=lambda name: int(known[name])))
