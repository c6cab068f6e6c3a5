"""The input: a region of all levels of a store that zarr-python wrote."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from large_volumes import write_image

from canvas import Box
from coarse2fine.errors import ConfigError
from coarse2fine.io import Grid
from coarse2fine.large.source import Source, chunk_of, identity_of, pick_level

IMAGE = np.random.default_rng(0).integers(0, 255, (10, 32, 24), dtype=np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Three levels, each half as fine in y and x."""
    return Source(str(write_image(tmp_path / "image.zarr", IMAGE, spacing=(40.0, 4.0, 4.0), levels=3)))


def test_open__region__is_cut_out_of_the_finest_level(source: Source) -> None:
    """Its origin says where it lies; other levels are whole, and theirs where they lie beside it."""
    region = Box((2, 5, 8), (7, 21, 20))
    _, (finest, *others) = replace(source, region=region).open()
    expected = IMAGE[region.slices]
    np.testing.assert_array_equal(finest.channels[0][:, :, :], expected)
    np.testing.assert_array_equal(finest.channels[0][1:3, -3:-1, 2:], expected[1:3, -3:-1, 2:])
    assert (finest.grid.shape, finest.grid.origin) == (region.shape, (80.0, 20.0, 32.0))
    for level, step in zip(others, (2, 4), strict=True):
        np.testing.assert_array_equal(level.channels[0][:, :, :], IMAGE[:, ::step, ::step])
        assert level.grid.origin == (0.0, 0.0, 0.0)


def test_open__without_region__is_everything_in_any_process(source: Source) -> None:
    """A source can be sent to another process and opened there."""
    _, levels = pickle.loads(pickle.dumps(source)).open()
    assert [level.grid.shape for level in levels] == [(10, 32, 24), (10, 16, 12), (10, 8, 6)]
    np.testing.assert_array_equal(levels[0].channels[0][:, :, :], IMAGE)
    assert source.attributes() == {}


def test_identity_of__another_region__is_another_input(source: Source) -> None:
    """A work folder of one region must not be taken for that of another."""
    scales, _ = source.open()
    regions = [None, Box((0, 0, 0), (5, 5, 5)), Box((0, 0, 1), (5, 5, 6))]
    identities = [identity_of(scales, region) for region in regions]
    assert len({str(identity) for identity in identities}) == 3


@pytest.mark.parametrize(
    ("wanted", "level", "picked"),
    [
        ((40, 8, 8), None, 1),
        ((45, 9.2, 9.2), None, 1),
        ((40, 7.9, 7.9), None, 1),  # spacings are rounded numbers
        ((40, 7.5, 8), None, 0),
        ((40, 99, 99), None, 2),
        ((20, 99, 99), None, 0),  # z is too coarse on all levels: the finest is all there is
        ((40, 8, 8), 2, 2),
        ((40, 8, 8), 0, 0),
    ],
)
def test_pick_level__coarsest_that_is_fine_enough(
    wanted: tuple[float, ...], level: int | None, picked: int, source: Source
) -> None:
    """Reading less is cheaper, but detail that the network wants must be there; a setting overrules both."""
    grids = [volume.grid for volume in source.open()[1]]
    assert pick_level(grids, wanted, level) == picked


@pytest.mark.parametrize("level", [1, 3])
def test_pick_level__level_that_is_not_there__is_refused(level: int) -> None:
    """Named, with what there is; levels are counted from 0."""
    grids = [Grid((4, 4, 4), (1.0, 1.0, 1.0))]
    with pytest.raises(ConfigError, match=rf"coarse_level is {level}.*1 scale level") as caught:
        pick_level(grids, (1, 1, 1), level)
    assert caught.value.remedy == "Name one of them, or leave it out."
    assert pick_level(grids, (1, 1, 1), 0) == pick_level(grids, (1, 1, 1), None) == 0


def test_chunk_of__is_never_longer_than_the_volume() -> None:
    """Small volumes have one chunk along an axis."""
    assert chunk_of((30, 500, 90)) == (30, 128, 90)
