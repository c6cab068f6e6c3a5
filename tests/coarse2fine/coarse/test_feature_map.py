"""The stitched bottleneck against the encoder's own output, tile by tile and voxel by voxel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from math import floor
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs
from hypothesis import given, settings
from hypothesis import strategies as st

from canvas import Box
from coarse2fine.coarse.feature_map import BottleneckMap, encoder_of, feature_channels, record_bottleneck
from coarse2fine.coarse.heatmap import CoarseResult, CoarseStage, body_box, predict_heatmap
from coarse2fine.config.schema import BodyCrop, CoarseConfig
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model, tile_starts
from coarse2fine.nnunet.sliding_window import sliding_window
from coarse2fine.preprocessing.working_grid import WorkingView, open_view

SPACING = (2.0, 1.0, 1.0)
STRIDE = (2, 4, 4)  # of the tiny models: the product of their strides


def look(
    coarse: Model, fine: Model, shape: tuple[int, int, int], **options: Any
) -> tuple[WorkingView, CoarseResult, BottleneckMap]:
    """A coarse stage over blobs that keeps its bottleneck."""
    view = open_view((blobs(shape),), SPACING, coarse)
    config = CoarseConfig(**options)
    result = predict_heatmap(CoarseStage(coarse, fine, config, keep_features=True), view)
    assert result.bottleneck is not None
    return view, result, result.bottleneck


def encode(model: Model, data: np.ndarray) -> np.ndarray:
    """The first network's encoder on one input (channels, z, y, x)."""
    with torch.inference_mode():
        return encoder_of(model)(torch.from_numpy(data)[None])[-1][0].numpy()


@pytest.mark.parametrize("transposes", [((0, 1, 2), (0, 1, 2)), ((1, 2, 0), (2, 0, 1))], ids=["plain", "turned"])
def test_predict_heatmap__one_tile_covers_the_volume__bottleneck_is_the_encoders_output(
    transposes: tuple[tuple[int, int, int], tuple[int, int, int]], model_folder: Callable[..., Path]
) -> None:
    """Exactly the unflipped output of the first of several networks, on the fine model's axes, padding included."""
    of_coarse, of_fine = transposes
    patch, spacing = [(16, 24, 24)[axis] for axis in of_coarse], [SPACING[axis] * 2 for axis in of_coarse]
    coarse = load_model(model_folder(patch=patch, spacing=spacing, transpose=of_coarse, folds=("0", "1")))
    fine = load_model(model_folder(transpose=of_fine))
    view, result, kept = look(coarse, fine, (24, 44, 40), mirroring=True)
    assert all(a < b for a, b in zip(view.shape, coarse.patch, strict=True))

    before = [(tile - edge) // 2 for tile, edge in zip(coarse.patch, view.shape, strict=True)]
    padded = np.zeros((1, *coarse.patch), np.float32)
    inside = tuple(slice(a, a + b) for a, b in zip(before, view.shape, strict=True))
    padded[(0, *inside)] = view.read(Box.whole(view.shape))[0]
    expected = encode(coarse, padded)
    turn = [of_coarse.index(axis) for axis in of_fine]
    np.testing.assert_array_equal(kept.values, expected.transpose(0, *(axis + 1 for axis in turn)))
    assert kept.values.shape[0] == feature_channels(coarse) == 8
    assert kept.grid == result.heatmap.shape == tuple(view.shape[axis] for axis in turn)
    assert kept.origin == tuple(-before[axis] for axis in turn)
    assert kept.stride == tuple(STRIDE[axis] for axis in turn)


@pytest.mark.parametrize("tile_step", [0.5, 0.3, 1.0])
def test_predict_heatmap__many_tiles__are_averaged_where_their_rounded_corners_put_them(
    tile_step: float, model_folder: Callable[..., Path]
) -> None:
    """Every map voxel is the mean of what the tiles that lie on it say, tiles off the stride's multiples included."""
    coarse = load_model(model_folder(spacing=(3.0, 1.3, 1.7)))
    view, _, kept = look(coarse, coarse, (32, 52, 49), tile_step=tile_step)
    data = view.read(Box.whole(view.shape))
    corners = list(tile_starts(view.shape, coarse.patch, tile_step))
    assert len(corners) > 8
    assert any(c % s for corner in corners for c, s in zip(corner, STRIDE, strict=True))

    said: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
    for corner in corners:
        tile = tuple(slice(c, c + edge) for c, edge in zip(corner, coarse.patch, strict=True))
        deep = encode(coarse, np.ascontiguousarray(data[(slice(None), *tile)]))
        offset = [floor(Fraction(c, s) + Fraction(1, 2)) for c, s in zip(corner, STRIDE, strict=True)]
        for index in np.ndindex(*deep.shape[1:]):
            said[tuple(o + i for o, i in zip(offset, index, strict=True))].append(deep[(slice(None), *index)])
    shape = tuple(max(index[axis] for index in said) + 1 for axis in range(3))
    assert kept.values.shape[1:] == shape
    assert len(said) == np.prod(shape)
    for index, values in said.items():
        np.testing.assert_allclose(kept.values[(slice(None), *index)], np.mean(values, axis=0), atol=1e-5)
    assert kept.origin == (0, 0, 0)


@pytest.mark.parametrize("mirroring", [False, True])
def test_predict_heatmap__bottleneck_kept_or_not__gives_the_same_bits(
    mirroring: bool, model_folder: Callable[..., Path]
) -> None:
    """Recording changes no output, and leaves no hook behind."""
    coarse = load_model(model_folder(spacing=(4.0, 2.0, 2.0)))
    view, recorded, _ = look(coarse, coarse, (30, 50, 46), mirroring=mirroring)
    config = CoarseConfig(mirroring=mirroring)
    plain = predict_heatmap(CoarseStage(coarse, coarse, config), view)
    np.testing.assert_array_equal(recorded.logits, plain.logits)
    np.testing.assert_array_equal(recorded.heatmap, plain.heatmap)
    assert plain.bottleneck is None
    assert not any(module._forward_hooks for module in coarse.networks[0].modules())


def test_predict_heatmap__body_crop__map_begins_where_the_body_does(model_folder: Callable[..., Path]) -> None:
    """Cropped to the body, the map is that of the body alone, and knows where it lies."""
    coarse = load_model(model_folder(spacing=(2.0, 1.0, 1.0)))
    crop = {"above": 120.0, "margin_mm": 2.0}
    view, _, kept = look(coarse, coarse, (30, 60, 56), body_crop=crop)
    body = body_box(view, BodyCrop(**crop))
    assert body.volume < view.shape[0] * view.shape[1] * view.shape[2] / 2
    with record_bottleneck(coarse, body.shape) as recorder:
        sliding_window(coarse, view.read(body), tile_step=0.5, mirroring=False, on_tile=recorder.on_tile)
    alone = recorder.finish((0, 0, 0), body.shape)
    np.testing.assert_array_equal(kept.values, alone.values)
    assert kept.origin == tuple(a + b for a, b in zip(body.start, alone.origin, strict=True))
    assert kept.grid == view.shape


def test_record_bottleneck__run_fails__removes_its_hook(model_folder: Callable[..., Path]) -> None:
    """An interrupted coarse stage does not leave a recorder in the network."""
    coarse = load_model(model_folder())
    with pytest.raises(KeyboardInterrupt), record_bottleneck(coarse, (8, 16, 16)):
        raise KeyboardInterrupt
    assert not any(module._forward_hooks for module in coarse.networks[0].modules())


def test_record_bottleneck__network_shared_by_threads__keeps_to_its_own_tiles(
    model_folder: Callable[..., Path],
) -> None:
    """Between the announcement of a tile and its pass another thread's pass on the same network is not taken for it."""
    coarse = load_model(model_folder())
    mine, other = (np.random.default_rng(seed).normal(size=(1, 8, 16, 16)).astype(np.float32) for seed in (0, 1))

    def intrude(box: Box) -> None:
        recorder.on_tile(box)
        stranger = Thread(target=encode, args=(coarse, other))
        stranger.start()
        stranger.join()

    with record_bottleneck(coarse, (8, 16, 16)) as recorder:
        sliding_window(coarse, torch.from_numpy(mine), tile_step=0.5, mirroring=False, on_tile=intrude)
    np.testing.assert_array_equal(recorder.finish((0, 0, 0), (8, 16, 16)).values, encode(coarse, mine))


@settings(deadline=None)
@given(data=st.data())
def test_touched__any_box__gives_the_map_voxels_that_it_overlaps(data: st.DataObject) -> None:
    """On each axis, by exact fractions: all map voxels that share an interval with the box, or else the nearest."""
    cells, stride, fine, coarse = (data.draw(st.integers(1, most)) for most in (6, 5, 40, 20))
    origin = data.draw(st.integers(-4, 6))
    start = data.draw(st.integers(-10, 2 * fine + 10))
    stop = data.draw(st.integers(start, 2 * fine + 20))
    kept = BottleneckMap(
        np.zeros((1, cells, cells, cells), np.float32), (stride,) * 3, (origin,) * 3, (coarse, coarse, coarse)
    )
    first, last = kept.touched(np.full((1, 3), start), np.full((1, 3), stop), (fine, fine, fine))
    low, high = (Fraction(edge * coarse, 2 * fine) for edge in (start, stop))
    shared = [i for i in range(cells) if max(low, origin + i * stride) < min(high, origin + (i + 1) * stride)]
    if not shared:
        nearest = floor((low - origin) / stride)
        shared = [min(max(nearest, 0), cells - 1)]
    assert first.tolist() == [[min(shared)] * 3]
    assert last.tolist() == [[max(shared) + 1] * 3]
