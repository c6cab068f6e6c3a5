"""The coarse stage: the body crop, what lies outside of it, and looking up places of finer grids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import find_objects, label

from canvas import Box
from coarse2fine.clock import Clock
from coarse2fine.coarse import CoarseResult, body_box, look_coarsely
from coarse2fine.config import BodyCrop, load_config
from coarse2fine.heatmap import Place
from coarse2fine.nnunet import Model, load_model
from coarse2fine.sliding import sliding_window
from coarse2fine.view import open_view

SPACING = (2.0, 1.0, 1.0)
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., Path]) -> Model:
    return load_model(model_folder())


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("margin", [0.0, 3.0, 5.0])
def test_body_box__margin__is_kept_around_the_largest_bright_object(step: int, margin: float, model: Model) -> None:
    """In millimetres, rounded up to voxels of the coarse grid; smaller objects do not count."""
    image = np.ones((24, 40, 44), np.int16)
    image[8:16, 12:24, 16:28] = image[2:4, 36:38, 2:4] = 100
    view = open_view([image], SPACING, model, [edge * step for edge in SPACING])
    names, _ = label(image[step // 2 :: step, step // 2 :: step, step // 2 :: step] > 50)
    largest = find_objects(names)[np.bincount(names.ravel())[1:].argmax()]
    sides = [int(np.ceil(margin / (edge * step))) for edge in SPACING]
    expected = Box(tuple(s.start for s in largest), tuple(s.stop for s in largest)).grow(sides)
    assert body_box(view, BodyCrop(above=50, margin_mm=margin)) == expected


@pytest.mark.parametrize("options", [{}, REGIONS], ids=["classes", "regions"])
def test_look_coarsely__outside_of_the_body__is_certain_background(
    options: dict[str, object], model_folder: Callable[..., Path]
) -> None:
    """Whatever the labels; inside of the body are the outputs of a sliding window over it."""
    coarse = load_model(model_folder(**options))
    image = blobs((16, 32, 32))
    image[:, 20:] = image[:2] = 1
    view = open_view([image], SPACING, coarse)
    crop = {"above": 40.0, "margin_mm": 1.0}
    config = load_config(None, [f"coarse.body_crop={crop}"]).coarse
    result = look_coarsely(view, coarse, coarse, config, Clock(), lambda done, total: None)
    body = body_box(view, BodyCrop(**crop))
    inside = np.zeros(view.shape, bool)
    inside[body.slices] = True
    assert 0 < inside.mean() < 0.9
    assert result.heatmap[~inside].max() < 1e-6
    assert not coarse.labels.from_logits(result.logits)[~inside].any()
    expected = sliding_window(coarse, view.read(body), tile_step=config.tile_step, mirroring=config.mirroring).float()
    np.testing.assert_allclose(result.logits[(slice(None), *body.slices)], expected.numpy(), atol=2e-3)
    assert result.heatmap[inside].max() > 0.3


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_peak_in__any_box_of_a_finer_grid__is_the_highest_of_all_voxels_it_touches(
    model: Model, data: st.DataObject
) -> None:
    """Also where only a part of the coarse grid is held; 0 where the box touches nothing of it."""
    whole = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    grid = tuple(data.draw(st.integers(edge, 4 * edge)) for edge in whole)
    start = tuple(data.draw(st.integers(0, edge - 1)) for edge in whole)
    shape = tuple(data.draw(st.integers(1, edge - low)) for low, edge in zip(start, whole, strict=True))
    heatmap = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.float32) + 1
    coarse = CoarseResult(np.zeros((2, *shape), np.float32), heatmap, model, None, Place(start, whole))
    low = tuple(data.draw(st.integers(0, edge - 1)) for edge in grid)
    box = Box(low, tuple(data.draw(st.integers(a + 1, edge)) for a, edge in zip(low, grid, strict=True)))
    touched = [
        float(heatmap[index])
        for index in np.ndindex(shape)
        if all(
            (i + s) * g < b * w and (i + s + 1) * g > a * w
            for i, s, g, w, a, b in zip(index, start, grid, whole, box.start, box.stop, strict=True)
        )
    ]
    assert coarse.peak_in(box, grid) == max(touched, default=0.0)
