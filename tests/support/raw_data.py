"""Volumes as files, and labelled cases in nnU-Net's raw layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

SPACING = (2.0, 1.0, 1.0)


def save_volume(path: Path, voxels: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Path:
    """Write a volume (z, y, x) in the format of the file's ending, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))
    return path


def save_case(folder: Path, split: str, name: str, voxels: np.ndarray, reference: np.ndarray) -> None:
    """Write an image of one channel and its labels; the split is ``Tr`` or ``Ts``."""
    save_volume(folder / f"images{split}" / f"{name}_0000.nii.gz", voxels)
    save_volume(folder / f"labels{split}" / f"{name}.nii.gz", reference.astype(np.uint8))
