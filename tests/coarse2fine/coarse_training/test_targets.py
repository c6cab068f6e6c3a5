"""Labels on larger voxels."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from canvas import triple
from coarse2fine.coarse_training.targets import pool_labels
from coarse2fine.nnunet.labels import Labels

KNOWN = Labels({"background": 0, "a": 1, "b": 2, "ignore": 3}, 3, (1, 2), ())


def slow_pool(labels: np.ndarray, shape: tuple[int, int, int], ignore: int | None) -> np.ndarray:
    """The same, voxel by voxel."""
    result = np.zeros(shape, labels.dtype)
    for index in np.ndindex(shape):
        starts = [i * before // after for i, before, after in zip(index, labels.shape, shape, strict=True)]
        stops = [
            max((i + 1) * before // after, i * before // after + 1)
            for i, before, after in zip(index, labels.shape, shape, strict=True)
        ]
        block = labels[tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))]
        counts = Counter(int(value) for value in block.reshape(-1))
        found = [(-counts[label], label) for label in (1, 2) if counts[label]]
        if found:
            result[index] = min(found)[1]
        elif ignore is not None and counts[ignore]:
            result[index] = ignore
    return result


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pool_labels__any_sizes__is_what_most_of_each_voxel_is(data: st.DataObject) -> None:
    """Every label voxel of a block counts, foreground wins over background and what is ignored."""
    before, after = (triple(data.draw(st.integers(1, 9)) for _ in range(3)) for _ in range(2))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    labels = rng.choice(4, before, p=[0.7, 0.1, 0.1, 0.1]).astype(np.uint8)

    pooled = pool_labels(labels, after, KNOWN)

    assert np.array_equal(pooled, slow_pool(labels, after, 3))
    if all(small <= large for small, large in zip(after, before, strict=True)):
        assert np.isin(labels, (1, 2)).any() == np.isin(pooled, (1, 2)).any()  # nothing vanishes
