"""Mosaics of training patches, on arrays."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from conftest import import_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st

mosaics = import_benchmark("training.mosaics")


SHAPE, SLOT = (8, 32, 48), (4, 16, 24)
SCALES = [[1, 1, 1], [1, 0.5, 0.5], [0.5, 0.25, 0.25]]


def numbered(count: int, seed: int = 0) -> list[Any]:
    """Patches in which every voxel has a number of its own, with random labels, downsampled by nnU-Net's transform."""
    generator, patches = torch.Generator().manual_seed(seed), []
    for index in range(count):
        image = torch.arange(math.prod(SHAPE), dtype=torch.float64).reshape(1, *SHAPE) + index * math.prod(SHAPE)
        labels = (torch.rand((1, *SHAPE), generator=generator) < 0.1).to(torch.int16)
        targets = DownsampleSegForDSTransform(SCALES)(image=image, segmentation=labels)["segmentation"]
        patches.append(mosaics.Patch(image, targets))
    return patches


def cells(array: torch.Tensor) -> list[torch.Tensor]:
    """The eight slots of a patch."""
    halves = [array[0].split(SLOT[0], 0)]
    return [part for z in halves[0] for y in z.split(SLOT[1], 1) for part in y.split(SLOT[2], 2)]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), foreground=st.sampled_from([0.0, 0.5, 1.0]))
def test_make_mosaic__numbered_voxels__slots_are_crops_and_labels_share_their_place(
    seed: int, foreground: float
) -> None:
    """Each slot is a crop of one patch, found by its voxels' numbers; the labels there are that crop's labels."""
    patches = numbered(3, seed)
    mosaic = mosaics.make_mosaic(patches, SLOT, np.random.default_rng(seed), foreground)
    labels, total = torch.cat([patch.targets[0] for patch in patches]), math.prod(SHAPE)
    for slot, found in zip(cells(mosaic.image), cells(mosaic.targets[0]), strict=True):
        index, place = divmod(int(slot[0, 0, 0]), total)
        start = np.unravel_index(place, SHAPE)
        window = tuple(slice(low, low + size) for low, size in zip(start, SLOT, strict=True))
        assert torch.equal(slot, patches[index].image[0][window])
        assert torch.equal(found, labels[index][window])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_make_mosaic__deep_supervision__targets_are_those_of_the_mosaic(seed: int) -> None:
    """Labels mosaicked at each scale equal what nnU-Net makes of the mosaic at full resolution."""
    mosaic = mosaics.make_mosaic(numbered(2, seed), SLOT, np.random.default_rng(seed))
    expected = DownsampleSegForDSTransform(SCALES)(image=mosaic.image, segmentation=mosaic.targets[0])["segmentation"]
    assert len(mosaic.targets) == len(SCALES)
    for found, wanted in zip(mosaic.targets, expected, strict=True):
        assert found.dtype == torch.int16
        assert torch.equal(found, wanted)


def test_make_mosaic__share_of_foreground__decides_how_many_crops_hold_the_object() -> None:
    """With one labelled voxel per patch, all crops hold it at 1, about half at 0.5, and only chance ones at 0."""
    patches = numbered(2)
    for patch, place in zip(patches, ((0, 5, 3, 40), (0, 2, 30, 7)), strict=True):
        for target in patch.targets:
            target.zero_()
        patch.targets[0][place] = 1
    shares = []
    for foreground in (0.0, 0.5, 1.0):
        generator = np.random.default_rng(0)
        made = [mosaics.make_mosaic(patches, SLOT, generator, foreground) for _ in range(20)]
        shares.append(np.mean([bool(slot.any()) for mosaic in made for slot in cells(mosaic.targets[0])]))
    assert shares[2] == 1
    assert shares[0] < 0.4
    assert shares[0] + 0.1 < shares[1] < 0.9


@pytest.mark.parametrize("plain", [0.0, 0.5, 1.0])
def test_mix__probability__leaves_that_share_of_inputs_plain(plain: float) -> None:
    """Shapes and types stay; inputs are untouched with the given probability; the pool keeps the latest patches."""
    generator, pool, untouched = np.random.default_rng(1), deque(maxlen=3), []
    for turn in range(15):
        patches = numbered(2, turn)
        batch = {
            "data": torch.stack([patch.image for patch in patches]),
            "target": [torch.stack(scale) for scale in zip(*(patch.targets for patch in patches), strict=True)],
            "keys": ["a", "b"],
        }
        mixed = mosaics.mix(batch, pool, SLOT, plain, generator)
        assert mixed["keys"] == batch["keys"]
        assert mixed["data"].shape == batch["data"].shape
        assert [(t.shape, t.dtype) for t in mixed["target"]] == [(t.shape, t.dtype) for t in batch["target"]]
        untouched += [torch.equal(new, old) for new, old in zip(mixed["data"], batch["data"], strict=True)]
    assert np.mean(untouched) == plain or 0.2 < np.mean(untouched) < 0.8
    assert len(pool) == 3
