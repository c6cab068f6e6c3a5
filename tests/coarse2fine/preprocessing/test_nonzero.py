"""Where a volume is not zero, beside SciPy's function, which nnU-Net calls, and what it takes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_fill_holes

from canvas import Box
from coarse2fine.preprocessing.nonzero import nonzero_mask

shapes = st.tuples(*[st.integers(1, 9)] * 3)
volumes = shapes.flatmap(
    lambda shape: st.lists(arrays(np.int16, shape, elements=st.integers(-1, 1)), min_size=1, max_size=2)
)


@settings(max_examples=200, deadline=None)
@given(volumes, st.sampled_from([None, 1, 2, 4]))
def test_nonzero_mask__any_volume_and_slabs__is_scipys(channels: list[np.ndarray], depth: int | None) -> None:
    """Holes of one channel that another fills, through corners, over slabs; and any part of it."""
    expected = binary_fill_holes(np.any([channel != 0 for channel in channels], axis=0))
    mask = nonzero_mask(channels, depth)
    np.testing.assert_array_equal(mask.whole(), expected)
    inner = Box(tuple(edge // 3 for edge in expected.shape), expected.shape)
    np.testing.assert_array_equal(mask.part(inner), expected[inner.slices])


@pytest.mark.parametrize("closed", [True, False])
def test_nonzero_mask__cavity_over_many_slabs__is_a_hole_unless_a_channel_leads_out(closed: bool) -> None:
    """The way out leads through a slab in which the cavity itself is no region apart."""
    volume = np.ones((12, 9, 9), np.uint8)
    volume[1:11, 4, 4] = 0
    volume[1:10, 6, 6] = 0  # which meets the first at its end alone
    volume[9, 4:7, 6] = volume[9, 4, 4:7] = 0
    volume[1, 6, 6 if closed else slice(6, None)] = 0
    expected = binary_fill_holes(volume)
    assert expected.all() == closed
    for depth in (1, 2, 5, 12):
        np.testing.assert_array_equal(nonzero_mask([volume], depth).whole(), expected)


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 9, 9), (33, 31, 29)])
def test_nonzero_mask__as_many_holes_as_can_be__has_room_for_all(shape: tuple[int, int, int]) -> None:
    """Every other voxel is a region of its own."""
    volume = np.indices(shape).sum(0) % 2
    np.testing.assert_array_equal(nonzero_mask([volume]).whole(), binary_fill_holes(volume))


@pytest.mark.alone
def test_nonzero_mask__large_volume__takes_a_bit_for_each_voxel_and_some_slabs() -> None:
    """SciPy's function takes bytes; peaks of two sizes, as what a slab takes is there in both."""
    peaks = []
    for depth in (128, 512):
        volume = np.zeros((depth, 128, 128), np.uint8)
        volume[:, 20:100, 20:100] = 1
        volume[::2, 40, 40] = 0
        tracemalloc.start()
        nonzero_mask([volume])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (384 * 128 * 128) < 0.2
