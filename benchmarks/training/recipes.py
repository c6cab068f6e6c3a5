"""Which small network is trained on which data set in which role: nnU-Net's plans, cut down."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.common.merging import Merged
from canvas import Triple, triple

PLANS = "smallPlans"
CONFIGURATIONS = {"fine": "3d_fullres", "coarse": "3d_lowres", "small": "3d_fullres", "mosaic": "3d_fullres"}
FLAT_FIRST = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
ISOTROPIC = ((3, 3, 3),) * 5
EM_STRIDES = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
LUNG_STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
EVEN_STRIDES = ((1, 1, 1),) + ((2, 2, 2),) * 4
NARROW, WIDE = (8, 16, 32, 64, 128), (16, 32, 64, 128, 128)


@dataclass(frozen=True, slots=True)
class Network:
    """What a small network has instead of what nnU-Net plans for a GPU; sizes are (z, y, x).

    Attributes:
        patch: Input size in voxels.
        features, kernels, strides: Of each stage.
        batch: Patches per step.
        spacing: Voxel size in the unit of the data; None takes nnU-Net's.
    """

    patch: Triple
    features: Sequence[int]
    kernels: Sequence[Triple]
    strides: Sequence[Triple]
    batch: int
    spacing: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A data set in nnU-Net's raw format, and its networks."""

    folder: str
    fine: Network
    coarse: Network
    mirror: tuple[int, ...] = (0, 1, 2)
    """Axes of the network's input along which it may be mirrored: not from left to right where labels tell sides."""
    source: str | None = None
    """The raw data set that this one is derived from; None if it is one that is there."""
    merged: Merged = field(default_factory=dict)
    """What its labels are then made of."""


RECIPES = {
    "em": Recipe(
        "Dataset101_VNCMito",
        Network((16, 256, 256), NARROW, FLAT_FIRST, EM_STRIDES, 2),
        Network((16, 128, 64), NARROW, FLAT_FIRST, EM_STRIDES, 4, spacing=(45.0, 18.4, 18.4)),
    ),
    "lung": Recipe(
        "Dataset104_LungLesion",
        Network((32, 96, 96), WIDE, ISOTROPIC, LUNG_STRIDES, 2, spacing=(2.0, 1.0, 1.0)),
        Network((64, 64, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2, spacing=(4.0, 4.0, 4.0)),
    ),
    "ms": Recipe(
        "Dataset102_MSLesion",
        Network((48, 64, 64), WIDE, ISOTROPIC, EVEN_STRIDES, 4),
        Network((64, 80, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2, spacing=(2.0, 2.0, 2.0)),
    ),
    "brain": Recipe(
        "Dataset501_BrainMALF",
        Network((64, 80, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2),
        Network((64, 80, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2, spacing=(2.0, 2.0, 2.0)),
        mirror=(0, 1),
    ),
    "brain_tiny": Recipe(
        "Dataset511_BrainTiny",
        Network((64, 64, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2),
        Network((64, 80, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2, spacing=(2.0, 2.0, 2.0)),
        source="Dataset501_BrainMALF",
        merged={"accumbens": (1, 2), "amygdala": (3, 4)},
    ),
    "head_neck": Recipe(
        "Dataset502_HeadNeckCT",
        Network((64, 64, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2),
        Network((64, 48, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2, spacing=(8.0, 5.0, 8.0)),
        mirror=(1, 2),  # nnU-Net's plans put the axis from left to right first, that of the slices second
    ),
}


def slot_of(patch: Triple, strides: Sequence[Triple]) -> Triple:
    """Half of a patch on every axis, rounded up to a multiple of all strides together."""
    total = np.prod(strides, axis=0)
    return triple(-(-np.array(patch) // (2 * total)) * total)


def small_plans(plans: Mapping[str, Any], recipe: Recipe, role: str) -> dict[str, Any]:
    """nnU-Net's own plans (left as they are), cut down to the one configuration of a role, with its small network."""
    name = CONFIGURATIONS[role]
    network = recipe.coarse if role == "coarse" else recipe.fine
    patch, batch = network.patch, network.batch
    if role == "small":
        patch = slot_of(patch, network.strides)
        batch = batch * math.prod(network.patch) // math.prod(patch)
    result: dict[str, Any] = json.loads(json.dumps(plans))
    configuration = result["configurations"]["3d_fullres"]
    spacing = network.spacing or configuration["spacing"]
    identifier = "small_" + name.removeprefix("3d_")
    configuration |= {"patch_size": [*patch], "batch_size": batch, "spacing": [*spacing], "data_identifier": identifier}
    # nnU-Net's rule for patches that hold a small part of an image: a small structure is not in every one. It would not
    # apply to the coarse ones, but holds for their structures, too
    configuration["batch_dice"] = True
    stages = len(network.features)
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": [*network.features],
        "kernel_sizes": [[*kernel] for kernel in network.kernels],
        "strides": [[*stride] for stride in network.strides],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    return result | {"plans_name": PLANS, "configurations": {name: configuration}}
