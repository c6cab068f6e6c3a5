"""Deadlines kept and areas by order, on a tiny data set with tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import benchmark_module, blobs, import_benchmark
from raw_data import save_case

script = benchmark_module("deadlines")
SETTINGS = ["rois.threshold=0.55", "canvas.norm=canvas", "fine.grow=0"]


@pytest.fixture(scope="module")
def bench(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> object:
    """A case of a data set whose models and data are tiny."""
    data, registry = tmp_path_factory.mktemp("data"), import_benchmark("common.registry")
    voxels = blobs((12, 40, 36))
    save_case(data, "Ts", "a", voxels, voxels > 130)
    models = {"coarse": str(model_folder(spacing=(4.0, 2.0, 2.0), seed=3)), "fine": str(model_folder(seed=6))}
    changes = {"config": None, "data": str(data), "models": models}
    dataset = registry.load_dataset("em").model_copy(update=changes)
    case = registry.find_case_files(dataset, data)[0]
    return import_benchmark("common.bench").Bench(dataset, case, overrides=SETTINGS)


def test_anytime_areas__tiny_case__best_order_in_hindsight_leads_and_all_end_alike(
    script: ModuleType, bench: object
) -> None:
    """Orders differ in their area, not in what they come to; before anything runs the coarse labels stand."""
    pipeline = bench.pipeline()  # type: ignore[attr-defined]
    areas, curves = script.anytime_areas(bench, pipeline, {"again": pipeline})
    assert set(areas) == {*script.ORDERS, "best", "again"}
    assert max(areas.values()) == areas["best"]
    assert len({round(curve.qualities[-1], 9) for curve in curves.values()}) == 1
    assert len({curve.qualities[0] for curve in curves.values()}) == 1
    assert all(curve.times[-1] == pytest.approx(1) for curve in curves.values())
    coarse = bench.pipeline("rois.min_voxels=1e9", "fine.outside=coarse")  # type: ignore[attr-defined]
    everywhere = script._timed(bench, coarse, None)["quality"]
    assert curves["mass"].qualities[0] == pytest.approx(everywhere, abs=0.1)


def test_anytime_areas__crops_of_one_run__come_to_what_that_run_gives(script: ModuleType, bench: object) -> None:
    """But for voxels that overlapping crops dispute, of which each gets its share."""
    pipeline = bench.pipeline()  # type: ignore[attr-defined]
    _, curves = script.anytime_areas(bench, pipeline)
    assert curves["mass"].qualities[-1] == pytest.approx(script._timed(bench, pipeline, None)["quality"], abs=0.02)


def test_main__tiny_data_set__writes_deadlines_and_areas(
    script: ModuleType, bench: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each deadline with what it took and came to."""
    dataset = bench.dataset  # type: ignore[attr-defined]
    monkeypatch.setattr(script, "load_dataset", lambda name: dataset)
    options = [f"--set={setting}" for setting in SETTINGS]
    data = str(bench.dataset.data)  # type: ignore[attr-defined]
    out = tmp_path / "out.json"
    assert script.main(["--dataset", "em", "--out", str(out), "--data", data, "--shares", "50", *options]) == 0
    (case,) = json.loads(out.read_text())["cases"]
    (row,) = case["deadlines"]
    assert row["asked_s"] > row["taken_s"] > 0
    assert row["left"] == 0
    assert 0 <= row["quality"] <= 1
    assert np.diff(case["curves"]["mass"][0]).min() > 0
    assert set(case["anytime_area"]) == {*script.ORDERS, "best"}
