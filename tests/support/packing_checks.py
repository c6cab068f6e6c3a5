"""What every packing promises."""

from math import prod

import numpy as np
from hypothesis import strategies as st


def triples(low, high):
    return st.tuples(*[st.integers(low, high)] * 3)


def assert_disjoint_and_inside(regions, shape):
    """Paint the regions into an array: no voxel twice, and none painted outside of it."""
    painted = np.zeros(shape, dtype=int)
    for region in regions:
        painted[region.slices] += 1
    assert painted.max(initial=0) <= 1
    assert painted.sum() == sum(prod(region.shape) for region in regions)
