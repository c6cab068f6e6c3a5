"""Axes permuted and reversed, of arrays and of tensors."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from coarse2fine.io.turn import Turn


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tensor__any_turn__is_what_arrays_become(dtype: str) -> None:
    """All 48, also of types for which PyTorch cannot reverse axes."""
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(dtype)
    for axes, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        turn = Turn(axes, flips)
        np.testing.assert_array_equal(turn.tensor(torch.from_numpy(values)), turn.last_axes(values))
