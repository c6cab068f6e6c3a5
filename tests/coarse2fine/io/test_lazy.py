"""Arrays that are read by region."""

from __future__ import annotations

import numpy as np
import pytest
from stored_volumes import SHAPE, VOXELS

from canvas import Box
from coarse2fine.io import LazyArray


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_lazy_array__any_order_and_region__is_numpys(axes: tuple[int, int, int]) -> None:
    """Slices with open, negative and outlying ends mean what they mean to NumPy; only the region is loaded."""
    loaded = []

    def load(box: Box) -> np.ndarray:
        loaded.append(box.volume)
        return VOXELS[box.slices]

    lazy, truth = LazyArray(SHAPE, VOXELS.dtype, load).transpose((1, 0, 2)).transpose(axes), VOXELS.transpose(1, 0, 2)
    truth = truth.transpose(axes)
    for key in [np.s_[1:5, -4:, :7], np.s_[:, 3:300, -2:], np.s_[5:2, :, :], np.s_[0:0, 4:9, 1:1]]:
        found = lazy[key]
        assert np.array_equal(found, truth[key])
        assert found.flags.c_contiguous
    assert max(loaded) < truth.size
    for key in [np.s_[::2, :, :], np.s_[1, :, :], np.s_[:, :]]:
        with pytest.raises(IndexError):
            lazy[key]
