"""The share of a volume that boxes cover together, against painting them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_boxes import boxes, painted

from canvas import Box, share_of_volume

relaxed = settings(deadline=None)


@relaxed
@given(st.tuples(*[st.integers(1, 9)] * 3), st.lists(boxes(), max_size=8))
def test_share_of_volume__few_boxes__equals_painting(volume, boxes) -> None:
    """The share of painted voxels, for boxes that overlap, repeat and reach out of the volume."""
    assert share_of_volume(boxes, volume) == pytest.approx(painted(boxes, volume).mean(), rel=1e-12)


@pytest.mark.parametrize(("seed", "edge"), [(0, 4), (1, 12), (2, 40)])
def test_share_of_volume__hundreds_of_boxes__equals_painting(seed, edge) -> None:
    """The same for so many boxes that the volume is halved again and again."""
    random = np.random.default_rng(seed)
    starts, shapes = random.integers(-5, 60, (500, 3)), random.integers(1, edge, (500, 3))
    boxes = [Box.of(start, shape) for start, shape in zip(starts, shapes, strict=True)]
    assert share_of_volume(boxes, (50, 55, 60)) == painted(boxes, (50, 55, 60)).mean()


def test_share_of_volume__volume_too_large_to_allocate__is_exact() -> None:
    """A lattice of 1,000 cubes in a volume of 10^15 voxels, each present twice and once shifted by half."""
    cubes = [Box.of((1000 * z, 1000 * y, 1000 * x), (100, 100, 100)) for z, y, x in product(range(10), repeat=3)]
    shifted = [cube.shift((0, 0, 50)) for cube in cubes]
    assert share_of_volume(cubes + cubes + shifted, (100_000, 100_000, 100_000)) == 1000 * 1_500_000 / 10**15
