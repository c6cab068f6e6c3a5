"""Small plans of all roles and data sets."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from conftest import import_benchmark

recipes = import_benchmark("training.recipes")


def nnunet_plans() -> dict[str, Any]:
    """As much of nnU-Net's plans as the small ones are made from."""
    configuration = {
        "patch_size": [1, 2, 3],
        "spacing": [45.0, 4.6, 4.6],
        "batch_size": 9,
        "data_identifier": "x",
        "architecture": {"arch_kwargs": {"conv_bias": True}},
    }
    return {"plans_name": "nnUNetPlans", "configurations": {"2d": {}, "3d_fullres": configuration}}


@pytest.mark.parametrize("role", ["fine", "coarse", "small", "mosaic"])
@pytest.mark.parametrize("dataset", ["em", "lung", "ms", "brain", "brain_tiny", "head_neck"])
def test_small_plans__all_roles__patch_fits_the_network(dataset: str, role: str) -> None:
    """Patches can be halved by all strides; the small role has half of the fine patch, and no more voxels per step."""
    plans, recipe = nnunet_plans(), recipes.RECIPES[dataset]
    before = json.dumps(plans)
    small = recipes.small_plans(plans, recipe, role)
    assert json.dumps(plans) == before
    assert small["plans_name"] == "smallPlans"
    assert [*small["configurations"]] == ["3d_lowres" if role == "coarse" else "3d_fullres"]
    (configuration,) = small["configurations"].values()
    network = configuration["architecture"]["arch_kwargs"]
    assert network["conv_bias"] is True
    assert configuration["batch_dice"]  # whose nnU-Net's own plan has none here
    assert {len(network[key]) for key in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage")} == {5}
    patch, strides = configuration["patch_size"], np.prod(network["strides"], axis=0)
    assert not np.mod(patch, strides).any()
    if role == "small":
        for edge, whole, stride in zip(patch, recipe.fine.patch, strides, strict=True):
            assert whole / 2 <= edge < whole / 2 + stride
        voxels = math.prod(patch) * configuration["batch_size"]
        assert 0.7 < voxels / (math.prod(recipe.fine.patch) * recipe.fine.batch) <= 1
    if role == "mosaic":  # slots begin where the voxels of the coarsest labels begin
        slot = np.array(patch) // 2
        assert not np.mod(slot, np.prod(network["strides"][:-1], axis=0)).any()


@pytest.mark.parametrize(("dataset", "factors"), [("em", (1, 4, 4)), ("lung", (2, 4, 4)), ("ms", (2, 2, 2))])
def test_small_plans__coarse__voxels_are_larger_than_fine_ones(dataset: str, factors: tuple[int, ...]) -> None:
    """The coarse network sees several fine voxels as one; in the EM data only those of one section."""
    plans = nnunet_plans()
    planned = {"em": [45.0, 4.6, 4.6], "lung": [3.0, 0.7, 0.7], "ms": [1.0, 1.0, 1.0]}[dataset]
    plans["configurations"]["3d_fullres"]["spacing"] = planned
    fine, coarse = (recipes.small_plans(plans, recipes.RECIPES[dataset], role) for role in ("fine", "coarse"))
    spacings = [next(iter(found["configurations"].values()))["spacing"] for found in (fine, coarse)]
    assert np.divide(spacings[1], spacings[0]) == pytest.approx(factors)
    assert (spacings[0] == planned) == (dataset != "lung")  # lung CTs differ too much for nnU-Net's choice
