"""Where a run looked, in voxels of the file, whatever the model's axes are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs

from canvas import Box, share_of_volume
from coarse2fine.config.reader import load_config
from coarse2fine.io import Grid, Volume
from coarse2fine.pipeline import Pipeline, Result

SHAPE = (24, 48, 40)


def run(model_folder: Callable[..., Path], transpose: tuple[int, int, int], *overrides: str) -> Result:
    coarse = model_folder(spacing=(4.0, 2.0, 2.0), seed=5, transpose=transpose)
    fine = model_folder(seed=6, transpose=transpose)
    settings = ["fine.mirroring=false", "rois.threshold=0.55", "rois.window_step=0.5", *overrides]
    config = load_config(None, [f"coarse.model={coarse}", f"fine.model={fine}", *settings])
    return Pipeline.from_config(config)(Volume((blobs(SHAPE),), Grid(SHAPE, (2.0, 1.0, 1.0)), "blobs"))


@pytest.mark.long
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_look__any_transposition__boxes_hold_all_labels_and_cover_what_the_report_says(
    transpose: tuple[int, int, int], model_folder: Callable[..., Path]
) -> None:
    """No label lies outside; the share of the non-zero region in boxes is the report's but for rounded edges."""
    result = run(model_folder, transpose)
    look = result.look
    assert look is not None
    inside = np.zeros(SHAPE, bool)
    for box in look.boxes:
        inside[box.slices] = True
    assert result.labels.any()
    assert not result.labels[~inside].any()
    covered = [box.relative_to(look.within) for box in look.boxes]
    share = share_of_volume(covered, look.within.shape)
    assert share == pytest.approx(result.report.coverage.volume, abs=0.03)
    assert look.within == Box(*_nonzero(blobs(SHAPE)))


def _nonzero(voxels: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    where = np.argwhere(voxels)
    return tuple(where.min(0).tolist()), tuple((where.max(0) + 1).tolist())


def test_look__heatmap__has_the_axes_of_the_file(model_folder: Callable[..., Path]) -> None:
    """As many voxels as the non-zero region has coarse ones; each box holds some above the threshold."""
    look = run(model_folder, (2, 0, 1), "fine.grow=0").look
    assert look is not None
    expected = np.array(look.within.shape) * (2.0, 1.0, 1.0) / np.array((2.0, 2.0, 4.0))  # spacings: x comes first
    np.testing.assert_allclose(look.heatmap.shape, expected, atol=1.0)
    scale = np.array(look.heatmap.shape) / look.within.shape
    for box in look.boxes:
        start, stop = (np.array(corner) - look.within.start for corner in (box.start, box.stop))
        low, high = np.floor(start * scale).astype(int), np.ceil(stop * scale).astype(int)
        assert look.heatmap[tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))].max() > 0.55


def test_look__one_stage__is_none(model_folder: Callable[..., Path]) -> None:
    """Everything was looked at."""
    assert run(model_folder, (0, 1, 2), "mode=one-stage").look is None
