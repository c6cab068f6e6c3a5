"""Runs over a store that look only where a mask is set."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from large_volumes import SPACING, write_image
from scipy.ndimage import label as label_with_scipy
from store_bench import EXPECTED, FINE, IMAGE, SHAPE, Bench, assert_same_objects

from canvas import Box
from coarse2fine.errors import OutputError, VolumeError
from coarse2fine.io import LazyArray, Scales, Volume

pytestmark = pytest.mark.usefixtures("small_chunks", "bright_networks")

LEFT = np.zeros(SHAPE, bool)
LEFT[:, :, :80] = True  # two of four cells along x; objects lie on either side of their border


@pytest.fixture
def mask(tmp_path: Path) -> Callable[..., Path]:
    """Writes a mask."""

    def write(set_voxels: np.ndarray, name: str = "mask.zarr", **options: Any) -> Path:
        return write_image(tmp_path / name, set_voxels.astype(np.uint8), **options)

    return write


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Box]:
    """Boxes of the image that are read."""
    found: list[Box] = []
    module = importlib.import_module("coarse2fine.large.source")
    original = module.open_store

    def noting(array: LazyArray) -> LazyArray:
        def load(box: Box) -> np.ndarray:
            found.append(box)
            return array[box.slices]

        return LazyArray(array.shape, array.dtype, load)

    def open_noting(where: str, **options: Any) -> Scales:
        scales = original(where, **options)
        levels = [Volume(tuple(map(noting, level.channels)), level.grid, level.name) for level in scales.levels]
        return replace(scales, levels=tuple(levels))

    monkeypatch.setattr(module, "open_store", open_noting)
    return found


@pytest.mark.long
@pytest.mark.parametrize("mode", ["accelerated", "one-stage"])
def test_segment_store__mask_of_everything__changes_nothing(mode: str, bench: Bench, mask: Callable[..., Path]) -> None:
    """Every label is the same, and the report counts the mask's voxels."""
    bench("plain.zarr", overrides=[f"mode={mode}"])
    report = bench(overrides=[f"mode={mode}"], mask=mask(np.ones(SHAPE)))
    np.testing.assert_array_equal(bench.labels(), bench.labels("plain.zarr"))
    assert bench.labels().any()
    assert report.in_mask == IMAGE.size


@pytest.mark.long
@pytest.mark.parametrize("mode", ["accelerated", "one-stage"])
def test_segment_store__mask_of_half__reads_and_segments_only_there(
    mode: str, bench: Bench, mask: Callable[..., Path], reads: list[Box]
) -> None:
    """What lies in it is found, the rest is background that nobody looked at: halos aside, no voxel was read."""
    every = bench("plain.zarr", overrides=[f"mode={mode}"])
    reads.clear()
    report = bench(overrides=[f"mode={mode}"], mask=mask(LEFT))
    np.testing.assert_array_equal(bench.labels(), np.where(LEFT, bench.labels("plain.zarr"), 0))
    assert bench.labels()[..., 70:78].any()
    assert max(box.stop[2] for box in reads) <= 80 + 24 + 16, "the cells, their halo, and half a patch of the network"
    assert report.counts["network_voxels"] < 0.7 * every.counts["network_voxels"]
    assert report.in_mask == LEFT.sum()
    assert report.volume["mask"]["where"].endswith("mask.zarr")


def test_segment_store__mask_within_cells__cuts_there(bench: Bench, mask: Callable[..., Path]) -> None:
    """Nothing outside of the mask, also not where a neighbour's finding or a mask that is followed would reach."""
    cut = np.zeros(SHAPE, bool)
    cut[:, 1:20, 12:112] = True
    bench(objects=True, mask=mask(cut))
    assert_same_objects(bench.labels(), EXPECTED & cut)


@pytest.mark.parametrize("per_block", ["[1, 1, 1]", pytest.param("[9, 9, 9]", marks=pytest.mark.long)])
def test_segment_store__middle_of_a_region_in_a_cell_that_is_not_set__is_found(
    per_block: str, tmp_path: Path, mask: Callable[..., Path]
) -> None:
    """The mask leaves an L of an object; the cell that holds its middle is not looked at, so another one finds it."""
    image = np.ones(SHAPE, np.uint8)
    image[2:6, 10:26, 28:50] = 200
    kept = np.ones(SHAPE, bool)
    kept[:, 16:, :40] = False
    bench = Bench(tmp_path, write_image(tmp_path / "in.zarr", image, chunk=20))
    report = bench(mask=mask(kept), overrides=[f"blocks.per_block={per_block}"])
    np.testing.assert_array_equal(bench.labels() != 0, (image > FINE) & kept)
    assert report.counts["covered"] <= report.counts["working"]


def test_segment_store__coarse_mask_and_region__both_hold(bench: Bench, mask: Callable[..., Path]) -> None:
    """A mask of larger voxels than the image's, mapped by its spacing, in a part of the volume."""
    coarse = np.zeros((8, 8, 40))
    coarse[:, :, 3:25] = 1
    path = mask(coarse, spacing=(2, 4, 4))
    region = Box((0, 2, 6), (8, 32, 130))
    shifted = np.zeros(SHAPE, bool)  # without an offset the first voxels' centres lie on each other
    shifted[:, :, 10:98] = True
    bench(mask=path, region=region)
    np.testing.assert_array_equal(bench.labels() != 0, (EXPECTED & shifted)[region.slices])


def test_segment_store__mask_set_nowhere__is_refused_and_another_one_taken(
    bench: Bench, mask: Callable[..., Path]
) -> None:
    """Before anything is read; the remedy, another mask with --restart, works."""
    with pytest.raises(VolumeError, match=r"mask .* is set nowhere in voxels 0:8,0:32,0:160") as refused:
        bench(mask=mask(np.zeros(SHAPE)))
    assert "--restart" in refused.value.remedy
    assert not (bench.folder / "out.zarr").exists()
    bench(mask=mask(LEFT, "other.zarr"), restart=True)
    assert bench.labels().any()


def test_segment_store__another_mask_on_the_way__is_not_gone_on_with(
    bench: Bench, mask: Callable[..., Path], calls: dict[str, Any]
) -> None:
    """What was done with one mask says nothing of another; with the same one the run goes on."""
    calls["crash"] = ("segment", 1)
    with pytest.raises(KeyboardInterrupt):
        bench(mask=mask(LEFT))
    calls["crash"] = None
    with pytest.raises(OutputError, match=r"volume\.mask\."):
        bench(mask=mask(np.ones(SHAPE), "other.zarr"))
    with pytest.raises(OutputError, match=r"volume\.mask: .* absent now"):
        bench()
    bench(mask=bench.folder / "mask.zarr")
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED & LEFT)
    assert calls["count"]["scan"] == 2


def test_segment_store__objects_in_a_mask__are_counted(bench: Bench, mask: Callable[..., Path]) -> None:
    """Cells that nobody looked at have no numbers."""
    report = bench(objects=True, mask=mask(LEFT, spacing=SPACING))
    assert report.counts["objects"] == label_with_scipy(EXPECTED & LEFT, np.ones((3, 3, 3)))[1]
