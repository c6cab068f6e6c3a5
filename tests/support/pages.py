"""What pages are made of, without running networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import SimpleITK as sitk

from canvas import Box
from coarse2fine.io import Grid, Volume
from coarse2fine.look import Look
from coarse2fine.pipeline import Result
from coarse2fine.promise.statement import Promised
from coarse2fine.report import Boxes, Canvases, Coverage, NetworkTime, RunReport, Timing, count_labels

EVIL = "<script>document.title='owned'</script>"
"""A name that strangers gave."""


def scan(unit: str = "mm", direction: tuple[float, ...] | None = (1, 0, 0, 0, 1, 0, 0, 0, 1)) -> Volume:
    """An image of noise, 40 x 48 x 56 voxels."""
    voxels = np.random.default_rng(0).integers(20, 200, (40, 48, 56)).astype(np.int16)
    return Volume((voxels,), Grid(voxels.shape, (3.0, 2.0, 1.5), unit, direction=direction), "case 7")


def found() -> np.ndarray:
    """Two objects of label 1, one of label 2."""
    labels = np.zeros((40, 48, 56), np.uint8)
    labels[4:9, 10:16, 20:30] = 1
    labels[30:32, 30:33, 5:8] = 1
    labels[20:25, 36:40, 40:50] = 2
    return labels


def result(labels: np.ndarray | None = None, **changes: Any) -> Result:
    """What a run could have said."""
    labels = found() if labels is None else labels
    heatmap = np.zeros((10, 12, 14), np.float32)
    heatmap[1:3, 2:4, 5:8], heatmap[5, 9, 10:13] = 0.9, 0.4
    report = RunReport(
        case="case 7",
        mode="accelerated",
        timing_s=Timing(read=0.2, coarse=1.0, fine=2.0, total=3.5),
        network_s=NetworkTime(coarse=0.8, fine=1.5),
        boxes=Boxes(children=3, parents=3, selected=2, dropped=1),
        canvases=Canvases(1, 1000, 1000, 0.8),
        coverage=Coverage(0.05, 0.97),
        labels=count_labels(labels),
        warnings=(f"a warning with {EVIL}", "another one"),
        device="cpu",
        config={"mode": "accelerated", "rois": {"threshold": 0.3}},
        promise=Promised("of a new case, at most 1 % lies outside", covers=True),
        peak_memory_mb={"resident": 712.0},
        versions={"coarse2fine": "1.2.3"},
    )
    boxes = (Box((2, 8, 16), (12, 20, 32)), Box((18, 34, 38), (28, 44, 54)))
    look = Look(heatmap, Box.whole(labels.shape), boxes, dropped=(Box((28, 28, 2), (34, 36, 12)),))
    return Result(labels, replace(report, **changes), look=None if changes.get("mode") == "one-stage" else look)


def stored_as(volume: Volume, labels: np.ndarray, code: str) -> tuple[Volume, np.ndarray]:
    """The same scene, stored with other axes; SimpleITK turns it."""

    def turned(voxels: np.ndarray) -> sitk.Image:
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(volume.grid.spacing[::-1])
        return sitk.DICOMOrient(image, code)

    image, mask = turned(volume.channels[0]), sitk.GetArrayFromImage(turned(labels))
    z, y, x = image.GetSpacing()[::-1]
    place = {"origin": image.GetOrigin()[::-1], "direction": image.GetDirection()}
    grid = replace(volume.grid, shape=mask.shape, spacing=(z, y, x), **place)
    return replace(volume, channels=(sitk.GetArrayFromImage(image),), grid=grid), mask
