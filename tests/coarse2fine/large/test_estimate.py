"""What a run will take: as many blocks, bytes and levels as the run then has, and nothing is left behind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
import zarr
from infer_runs import snapshot
from large_volumes import write_image
from store_bench import IMAGE, SETTINGS, SHAPE, Bench

from coarse2fine.config.reader import load_config
from coarse2fine.large.estimate import Estimate, estimate_store
from coarse2fine.large.output import name_output
from coarse2fine.large.source import Source

pytestmark = pytest.mark.usefixtures("small_chunks", "bright_networks")


@pytest.fixture
def estimate(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Estimate]:
    """Estimates a run over bars, and sees to it that nothing is left behind."""

    def run(mask: Path | None = None, samples: int = 2, workers: int = 1, *overrides: str) -> Estimate:
        (tmp_path / "tmp").mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
        before = snapshot(tmp_path)
        source = Source(str(bench.image), mask=None if mask is None else str(mask))
        output = name_output(str(tmp_path / "out.zarr"), objects=False, overwrite=False)
        config = load_config(None, [*SETTINGS, *overrides])
        found = estimate_store(config, source, output, workers=workers, samples=samples)
        assert snapshot(tmp_path) == before
        return found

    return run


@pytest.mark.long
def test_estimate_store__some_blocks_measured__counts_are_those_of_the_run(
    estimate: Callable[..., Estimate], bench: Bench
) -> None:
    """Cells, blocks, warnings and the result's size; time grows with blocks and is shared by workers."""
    found = estimate()
    report = bench()
    assert found.cells == {"all": 8, "looked_at": 8}
    assert found.blocks == {"all": 4, "looked_at": 4}
    assert found.block == (8, 16, 80)
    assert found.warnings == report.warnings
    arrays = [array for _, array in zarr.open_group(bench.folder / "out.zarr", mode="r").arrays()]
    assert found.result["levels"] == len(arrays)
    assert found.result["bytes"] == sum(array.nbytes for array in arrays)
    assert found.voxels == IMAGE.size
    assert [block["where"][:6] for block in found.measured] == ["voxels"] * 2
    low, high = found.hours_range
    assert 0 < low <= found.hours <= high * 1.01
    assert found.hours == pytest.approx(sum(found.seconds.values()) / 3600)
    measured = sum(block["seconds"] for block in found.measured)
    assert found.seconds["segment"] > 1.99 * measured  # four blocks, of which two were done
    assert found.memory_mb["resident"] > 10


def test_estimate_store__one_block_of_everything__reads_what_it_says(estimate: Callable[..., Estimate]) -> None:
    """By hand: the volume is read for statistics, twice by the coarse network and once by the fine one."""
    assert estimate(None, 2, 1, "blocks.cell=[8, 32, 160]").bytes_to_read == 4 * prod(SHAPE)


def test_estimate_store__mask_of_one_block__knows_how_many_are_left_out(
    estimate: Callable[..., Estimate], tmp_path: Path
) -> None:
    """Only blocks in the mask are measured; three workers take a third of the time of one."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[:, 20:, 130:] = 1
    found = estimate(write_image(tmp_path / "mask.zarr", voxels), 3, 3)
    assert found.blocks == {"all": 4, "looked_at": 1}
    assert found.cells == {"all": 8, "looked_at": 1}
    assert found.in_mask == voxels.sum()
    assert [block["where"] for block in found.measured] == ["voxels 0:8,16:32,80:160 (z, y, x)"]
    assert found.hours == pytest.approx(sum(found.seconds.values()) / 3600 / 3)
