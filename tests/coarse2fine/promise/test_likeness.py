"""What tells a case from those that a promise was measured on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import blobs

from coarse2fine.coarse.scene import Scene
from coarse2fine.config.reader import load_config
from coarse2fine.io import Grid, Volume
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.promise.likeness import Known, Likeness, likeness_of, unlike
from coarse2fine.system.timing import Run

CASES = [
    Likeness((2.0, 1.0, 1.0), (-10.0, 0.0), (100.0, 7.0), 30.0),
    Likeness((2.5, 1.0, 1.0), (-8.0, 0.0), (90.0, 9.0), 50.0),
]
KNOWN = Known.of(CASES)


def test_unlike__calibration_cases_themselves__are_like() -> None:
    """Nothing that is known is unusual, and a dictionary keeps it."""
    for case in CASES:
        assert not list(unlike(case, KNOWN))
        assert Likeness.from_dict(json.loads(json.dumps(case.to_dict()))) == case


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spacing": (2.62, 1.04, 0.96)}, ()),
        ({"spacing": (2.7, 1.0, 1.0)}, ("voxel size along z 2.7, there 2 to 2.5",)),
        ({"spacing": (2.0, 1.0, 0.9)}, ("voxel size along x 0.9, there 1 to 1",)),
        ({"low": (-12.0, 0.0)}, ()),
        (
            {"low": (-12.5, 0.5)},
            ("first percentile of channel 0 -12.5, there -10 to -8", "channel 1 0.5, there 0 to 0"),
        ),
        ({"high": (111.0, 11.0)}, ("99th percentile of channel 0 111, there 90 to 100",)),
        ({"mass": 9.0}, ("volume that the coarse model finds 9, there 30 to 50",)),
        ({"mass": 70.0}, ()),
    ],
)
def test_unlike__one_thing_differs__is_named_with_both_values(change: dict[str, Any], said: tuple[str, ...]) -> None:
    """Voxel sizes may lie outside by rounding, all else by as much as the known cases differ."""
    found = list(unlike(dataclasses.replace(CASES[0], **change), KNOWN))
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))


def test_likeness_of__cropped_volume__mass_is_the_integral_of_the_heatmap(model_folder: Callable[..., Path]) -> None:
    """In the file's own units; percentiles are NumPy's, of all voxels, those that are cropped away included."""
    overrides = [f"coarse.model={model_folder(spacing=(4.0, 2.0, 2.0))}", f"fine.model={model_folder()}"]
    segmenter = Pipeline.from_config(load_config(None, overrides)).segmenter
    assert segmenter is not None
    image = np.zeros((20, 40, 40), np.int16)
    image[2:18, 4:36, 8:40] = blobs((16, 32, 32)) + 1
    volume = Volume((image,), Grid(image.shape, (3.0, 1.5, 0.5)), "padded")
    seen = view_volume(volume, segmenter.coarse)
    looked = segmenter.heatmap(seen, Run())
    found = likeness_of(volume, Scene(view_volume(volume, segmenter.stage.model), looked))
    assert found.spacing == (3.0, 1.5, 0.5)
    assert (*found.low, *found.high) == pytest.approx(np.percentile(image, (1, 99)))
    inside = 16 * 32 * 32 * 3.0 * 1.5 * 0.5
    assert found.mass == pytest.approx(looked.heatmap.mean() * inside, rel=1e-4)
