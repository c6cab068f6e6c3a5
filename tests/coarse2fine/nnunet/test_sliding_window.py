"""nnU-Net's sliding window, against nnU-Net's own predictor over the same networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from random_boxes import boxes_in
from torch import nn

from canvas import Box, Triple
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model, nnunet_predictor
from coarse2fine.nnunet.sliding_window import sliding_window, tiles_touching

PATCH: Triple = (8, 16, 16)


class Places(nn.Module):
    """A network whose outputs depend on where in the tile a voxel lies; products only, equal on every processor."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = np.random.default_rng(seed)
        self.register_buffer("factors", torch.from_numpy(random.normal(size=(2, *PATCH)).astype(np.float32)))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch * self.factors


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> dict[int, Model]:
    """Models of one fold and of three."""
    plain = load_model(model_folder())
    places = tuple(Places(seed) for seed in range(3))
    return {count: replace(plain, networks=places[:count], folds=("0", "1", "2")[:count]) for count in (1, 3)}


def voxels(shape: Triple) -> np.ndarray:
    return np.random.default_rng(7).normal(2, 1, (1, *shape)).astype(np.float32)


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize(
    ("shape", "step", "mirroring"),
    [
        ((8, 16, 16), 0.5, False),  # one tile
        ((5, 13, 16), 0.5, False),  # padded by odd numbers, so that one side gets more
        ((13, 40, 21), 0.5, False),
        ((11, 15, 30), 0.3, True),  # padded on one axis only
    ],
)
def test_sliding_window__any_volume__equals_nnunets_predictor(
    shape: Triple, step: float, mirroring: bool, folds: int, models: dict[int, Model]
) -> None:
    """Padding, places and order of tiles, their weights, rounding to half precision and the mean of folds are its."""
    model, data = models[folds], voxels(shape)
    expected = nnunet_predictor(model, tile_step=step, mirroring=mirroring).predict_logits_from_preprocessed_data(
        torch.from_numpy(data)
    )
    found = sliding_window(model, torch.from_numpy(data), tile_step=step, mirroring=mirroring)
    assert found.dtype == expected.dtype == torch.half
    assert torch.equal(found, expected)


def test_sliding_window__real_networks_of_two_folds__equal_nnunets_predictor(
    model_folder: Callable[..., Path],
) -> None:
    """The same with convolutions."""
    model, data = load_model(model_folder(folds=("0", "1"))), voxels((7, 21, 30))
    expected = nnunet_predictor(model, tile_step=0.5, mirroring=False).predict_logits_from_preprocessed_data(
        torch.from_numpy(data)
    )
    found = sliding_window(model, torch.from_numpy(data), tile_step=0.5, mirroring=False)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def test_sliding_window__progress_and_places__are_told_for_every_tile_of_every_fold(models: dict[int, Model]) -> None:
    """Places count from the data's first voxel, also where padding lies before it."""
    told: list[tuple[int, int]] = []
    places: list[Box] = []
    sliding_window(
        models[3],
        torch.from_numpy(voxels((5, 16, 24))),
        tile_step=0.5,
        mirroring=False,
        ticks=lambda done, total: told.append((done, total)),
        on_tile=places.append,
    )
    assert told == [(done, 6) for done in range(1, 7)]
    assert places == [Box.of((-1, 0, x), PATCH) for x in (0, 8)] * 3


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_tiles_touching__any_window__are_those_of_nnunets_tiles(data: st.DataObject) -> None:
    """In nnU-Net's order; where the volume is smaller than a tile, the tile sticks out as nnU-Net pads."""
    size = data.draw(st.tuples(*[st.integers(1, 20)] * 3))
    tile = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    step = data.draw(st.sampled_from([0.3, 0.5, 0.7, 1.0]))
    window = data.draw(boxes_in(size))
    padded = tuple(np.maximum(size, tile).tolist())
    before = [(edge - inner) // 2 for edge, inner in zip(padded, size, strict=True)]
    corners = product(*compute_steps_for_sliding_window(padded, tile, step))
    everything = [Box.of(corner, tile).shift(-gap for gap in before) for corner in corners]
    assert tiles_touching(window, size, tile, step) == [box for box in everything if box.intersection(window)]


def test_sliding_window__tiles_that_touch_a_window__give_there_what_all_tiles_give(models: dict[int, Model]) -> None:
    """Bit for bit: so cells of a large volume equal the whole."""
    data, window = voxels((16, 40, 44)), Box((3, 9, 20), (9, 17, 26))
    whole = sliding_window(models[3], torch.from_numpy(data), tile_step=0.5, mirroring=False)
    tiles = tiles_touching(window, (16, 40, 44), PATCH, 0.5)
    hull = Box(
        tuple(min(tile.start[axis] for tile in tiles) for axis in range(3)),
        tuple(max(tile.stop[axis] for tile in tiles) for axis in range(3)),
    )
    assert hull.volume < data.size
    part = sliding_window(
        models[3],
        torch.from_numpy(data[(slice(None), *hull.slices)]),
        tile_step=0.5,
        mirroring=False,
        corners=[tile.relative_to(hull).start for tile in tiles],
    )
    there = (slice(None), *window.relative_to(hull).slices)
    assert torch.equal(part[there], whole[(slice(None), *window.slices)])
