"""How coarsely to look: voxel size from the smallest objects, patch from the volumes, and a small network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from canvas import Triple, triple
from coarse2fine.coarse_training.job import CONFIGURATION, PLANS
from coarse2fine.errors import VolumeError
from coarse2fine.io import Volume
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.regions.components import label_components

Spacing = tuple[float, float, float]

LEAST_FACTOR, MOST_FACTOR = 2.0, 4.0
"""A coarse voxel is as long as so many fine ones: less gains too little, more leaves too little of most objects."""
ACROSS = 2.0
"""Coarse voxels that lie along the diameter of a small object, if its factor allows it."""
SMALL = 10
"""Percentile of objects' diameters that counts as the smallest: a few specks must not decide."""
LEAST_VOXELS = 8  # of an object that counts
MOST_PATCH = 32**3  # voxels; with more of them, few cores come to fewer steps, and small objects are learned later
_LEAST_MAP, _MOST_POOLS = 4, 3  # edge of the deepest feature map; how often an axis is halved: 4 stages
_LEAST_STAGES, _LEAST_PATCH = 3, 16  # nnU-Net's loss looks at all stages but the last two; patches are padded to that
_FEATURES, _MANY_FEATURES, _MOST_FEATURES = 8, 16, 64
_MANY_HEADS = 4


@dataclass(frozen=True, slots=True)
class Contents:
    """What of a case decides how it is looked at.

    Attributes:
        size: Edges of the part that is not zero, axes of the working grid, in the unit of the spacing.
        diameters: Of its objects, as if they were balls.
    """

    size: Spacing
    diameters: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CoarsePlan:
    """A small network and what it sees; all sizes (z, y, x) on the axes of the working grid.

    Attributes:
        spacing: Voxel size.
        patch: Input in voxels.
        strides, kernels, features: Of each stage.
        batch: Patches per step.
    """

    spacing: Spacing
    patch: Triple
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    features: tuple[int, ...]
    batch: int = 2


def look_at(volume: Volume[Any], labels: NDArray[np.unsignedinteger[Any]], fine: Model) -> Contents:
    """What a case contains; objects are the components of each foreground label.

    Args:
        volume: In memory.
        labels: True labels, shape (z, y, x) of the volume.
        fine: Says what the working grid is.
    """
    view = view_volume(volume, fine)
    inside = np.asarray(view.turn.array(labels))[view.crop.slices]
    counts = [
        np.bincount(label_components(inside == label).reshape(-1))[1:]
        for label in fine.labels.foreground
        if (inside == label).any()
    ]
    voxels = np.concatenate([np.zeros(0, int), *counts])
    volumes = voxels[voxels >= LEAST_VOXELS] * prod(view.spacing)
    z, y, x = (float(n * step) for n, step in zip(view.crop.shape, view.spacing, strict=True))
    return Contents((z, y, x), tuple(float(diameter) for diameter in (6 * volumes / np.pi) ** (1 / 3)))


def plan_coarse(cases: Sequence[Contents], fine: Model) -> CoarsePlan:
    """Plan a coarse network for cases like these.

    The voxel is as long on all axes, unless the fine model's is longer: half the diameter of small objects, but two to
    four of the fine model's shortest edges. The patch covers the median volume as far as it is not too large for it.

    Args:
        cases: What they contain.
        fine: The fine model.

    Raises:
        VolumeError: If no case has an object.
    """
    diameters = np.concatenate([case.diameters for case in cases])
    if not len(diameters):
        raise VolumeError(
            f"no case has an object of at least {LEAST_VOXELS} voxels", "Give cases with something to find."
        )
    shortest = min(fine.spacing)
    edge = np.clip(np.percentile(diameters, SMALL) / ACROSS, LEAST_FACTOR * shortest, MOST_FACTOR * shortest)
    z, y, x = (round(float(max(edge, step)), 4) for step in fine.spacing)
    whole = np.median([case.size for case in cases], axis=0) / (z, y, x)
    strides, kernels, patch = _topology((z, y, x), _cut(whole))
    if len(strides) < _LEAST_STAGES:
        strides, kernels, patch = _topology((z, y, x), [max(edge, _LEAST_PATCH) for edge in patch])
    first = _MANY_FEATURES if fine.labels.heads >= _MANY_HEADS else _FEATURES
    features = tuple(min(first << stage, _MOST_FEATURES) for stage in range(len(strides)))
    return CoarsePlan((z, y, x), triple(patch), tuple(map(triple, strides)), tuple(map(triple, kernels)), features)


def _topology(spacing: Spacing, patch: Sequence[int]) -> tuple[Any, Any, Any]:
    """nnU-Net's strides and kernels of all stages, and the patch rounded up to what they can halve."""
    _, strides, kernels, patch, _ = get_pool_and_conv_props(spacing, patch, _LEAST_MAP, _MOST_POOLS)
    return strides, kernels, patch


def _cut(whole: NDArray[np.floating]) -> list[int]:
    """The largest patch that may be: the longest edges go first."""
    patch = [max(ceil(edge), 1) for edge in whole]
    while prod(patch) > MOST_PATCH:
        longest = max(range(3), key=lambda axis: patch[axis])
        patch[longest] = ceil(patch[longest] * 0.95)
    return patch


def coarse_plans(plan: CoarsePlan, fine: Model, name: str) -> dict[str, Any]:
    """``plans.json`` of the coarse model: the fine model's, with one configuration.

    Args:
        plan: The network.
        fine: The fine model.
        name: Of the data set.
    """
    plans: dict[str, Any] = json.loads(json.dumps(dict(fine.plans)))
    configuration: dict[str, Any] = dict(PlansManager(plans).get_configuration(fine.configuration).configuration)
    for key in ("inherits_from", "previous_stage", "next_stage"):
        configuration.pop(key, None)
    configuration |= {
        "data_identifier": f"{PLANS}_{CONFIGURATION}",
        "batch_size": plan.batch,
        "patch_size": [*plan.patch],
        "spacing": [*plan.spacing],
        "batch_dice": True,
        "architecture": small_unet(plan.features, plan.strides, plan.kernels),
    }
    return plans | {"dataset_name": name, "plans_name": PLANS, "configurations": {CONFIGURATION: configuration}}


def small_unet(
    features: Sequence[int], strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """``architecture`` in plans: nnU-Net's 3D U-Net with a single convolution where there are most voxels.

    Args:
        features: Of each stage.
        strides: Of each stage, (z, y, x).
        kernels: Likewise.
    """
    stages = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [*features],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[*kernel] for kernel in kernels],
            "strides": [[*stride] for stride in strides],
            "n_conv_per_stage": [1, *[2] * (stages - 1)],  # most of the time goes into the finest stage
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def dataset_of(fine: Model, cases: int) -> Mapping[str, Any]:
    """``dataset.json`` of the coarse model: the fine model's labels and channels."""
    return {**fine.dataset, "numTraining": cases}
