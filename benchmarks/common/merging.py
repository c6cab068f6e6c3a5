"""Labels of a data set that are made of another one's: some of them, merged, and background elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Merged = Mapping[str, Sequence[int]]
"""For each label, in the order of their values from 1 on, the labels of the original that it is made of."""


def merge_labels(labels: NDArray[Any], merged: Merged) -> NDArray[np.uint8]:
    """Labels 1, 2, ... where those are that each is made of, of the same shape; everything else is background."""
    found = np.zeros(labels.shape, np.uint8)
    for value, parts in enumerate(merged.values(), 1):
        found[np.isin(labels, list(parts))] = value
    return found
