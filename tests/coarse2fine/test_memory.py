"""How memory grows with a volume in files: by its own voxels and labels, and little else."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import blobs

from coarse2fine.config.reader import load_config
from coarse2fine.pipeline import Pipeline

PLANE, FEW, MANY = (64, 64), 512, 1536
"""Voxels of a slice, and slices of the smaller and the larger volume: what takes a few slices is little beside."""
ELSE = 0.3
"""Bytes for each voxel beside those of volume and labels: heatmap and voxels of the coarse grid, packed labels, and
where a volume is not zero, a bit of each model's."""


def grown_by(pipeline: Pipeline, dtype: type[np.generic], folder: Path) -> float:
    """Bytes of the peak for each further voxel of a volume, from file to file."""
    peaks = []
    for depth in (MANY, FEW, MANY):  # first once to no effect: matrices of axes are kept for the next time
        image = np.full((depth, *PLANE), 10, dtype)
        image[:12, :28, :30] = blobs((12, 28, 30))
        stored = sitk.GetImageFromArray(image)
        stored.SetSpacing((1.0, 1.0, 2.0))
        sitk.WriteImage(stored, str(folder / f"{depth}.nii"))
        del image, stored
        tracemalloc.start()
        pipeline.run_files([folder / f"{depth}.nii"], folder / f"labels{depth}.nii.gz")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[2] - peaks[1]) / ((MANY - FEW) * PLANE[0] * PLANE[1])


@pytest.mark.alone
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (np.int16, {}),
        (np.float32, {"transpose": (0, 2, 1), "reader": "NibabelIOWithReorient"}),
        (np.int16, {"scheme": "ZScoreNormalization", "masked": True}),
        (np.int16, {"labels": {"background": 0, **{str(label): label for label in range(1, 17)}}}),
    ],
    ids=["int16", "float32, other axes", "normalised where it is not zero", "17 classes"],
)
def test_run_files__larger_volume__takes_more_memory_for_its_voxels_and_labels_only(
    dtype: type[np.generic], options: dict[str, Any], model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever type and axes: there is no second copy of either, and none in a wider type."""
    coarse = model_folder(**options, spacing=(8.0, 8.0, 8.0), seed=5, mirror_axes=None)
    fine = model_folder(**options, seed=6, mirror_axes=None)
    models = [f"coarse.model={coarse}", f"fine.model={fine}", "device=cpu", "fine.grow=0"]
    pipeline = Pipeline.from_config(load_config(None, [*models, "rois.threshold=0.999999"]))
    assert grown_by(pipeline, dtype, tmp_path) <= np.dtype(dtype).itemsize + 1 + ELSE
