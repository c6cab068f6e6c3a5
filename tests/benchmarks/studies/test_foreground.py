"""Volumes with a chosen share of foreground, on tiny models."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs, import_benchmark
from raw_data import save_case
from rich.console import Console


def test_plan_blocks__any_share__takes_the_fullest_and_the_emptiest_block() -> None:
    """Blocks cover all that fits, the share is of blocks, and a smaller share keeps a subset of the places."""
    script = import_benchmark("studies.foreground")
    mask = np.zeros((4, 9, 8), bool)
    mask[:, 4:8, :4] = True
    mask[0, 0, 0] = True
    sources = {}
    for share in (0.0, 0.25, 0.5, 1.0):
        targets, sources[share] = script.plan_blocks(mask, (4, 4, 4), share)
        assert len(targets) == 4
        mixed = script.mix(mask, targets, sources[share])
        assert mixed[:, :8].mean() == share
        np.testing.assert_array_equal(mixed[:, 8:], mask[:, 8:])
    full = {
        share: {index for index, one in enumerate(found) if mask[one.slices].all()} for share, found in sources.items()
    }
    assert full[0.25] < full[0.5] < full[1.0]


@pytest.mark.long
def test_foreground_share__tiny_case__has_more_foreground_and_the_same_size(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Both methods run on every volume, and rows say how much foreground there is."""
    registry, script = import_benchmark("common.registry"), import_benchmark("studies.foreground")
    voxels = blobs((16, 32, 16))
    save_case(tmp_path, "Ts", "b", voxels, voxels > 140)
    models = {"coarse": model_folder(spacing=(4.0, 2.0, 2.0), seed=3), "fine": model_folder(seed=6)}
    roles = {role: str(folder.relative_to(folder.parents[1])) for role, folder in models.items()}
    source = {str(folder.parents[1]) for folder in models.values()}
    dataset = registry.load_dataset("em").model_copy(update={"config": None, "models": roles})
    case = registry.choose_case(dataset, data=tmp_path)
    bench = import_benchmark("common.bench").Bench(
        dataset, case, source=source.pop(), overrides=["rois.threshold=0.55"]
    )
    rows = script.foreground_share(bench, (0.0, 1.0), Console(file=io.StringIO()))
    runs = [row for row in rows if row["kind"] == "run"]
    assert [row["mode"] for row in runs] == ["accelerated", "nnunet"] * 2
    assert runs[0]["foreground_share"] < (bench.reference > 0).mean() < runs[2]["foreground_share"]
    assert runs[1]["canvases"] == runs[3]["canvases"]
    slopes = {row["mode"]: row["s_per_percent"] for row in rows if row["kind"] == "slope"}
    extra = 100 * (runs[2]["foreground_share"] - runs[0]["foreground_share"])
    assert slopes["accelerated"] == pytest.approx((runs[2]["total_s"] - runs[0]["total_s"]) / extra)
