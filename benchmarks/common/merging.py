"""Labels of a data set that are made of another one's: some of them, merged, and background elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from coarse2fine.io import atomic_write

Merged = Mapping[str, Sequence[int]]
"""For each label, in the order of their values from 1 on, the labels of the original that it is made of."""


def merge_labels(labels: NDArray[Any], merged: Merged) -> NDArray[Any]:
    """Labels 1, 2, ... where those are that each is made of, of the same shape; everything else is background.

    Where nothing is merged, labels are returned as they are.
    """
    if not merged:
        return labels
    found = np.zeros(labels.shape, np.uint8)
    for value, parts in enumerate(merged.values(), 1):
        found[np.isin(labels, list(parts))] = value
    return found


def merged_file(file: Path, merged: Merged, folder: Path) -> Path:
    """A file of merged labels of the same name in a folder, unless it is there; itself where nothing is merged."""
    target = folder / file.name
    if not merged or target.exists():
        return target if merged else file
    original = sitk.ReadImage(str(file))
    found = sitk.GetImageFromArray(merge_labels(sitk.GetArrayFromImage(original), merged))
    found.CopyInformation(original)
    with atomic_write(target) as path:
        sitk.WriteImage(found, str(path), useCompression=True)
    return target
