"""The benchmark against nnU-Net, on a tiny model and volume, so that it keeps working; real data are never run here."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import benchmark_module, blobs, import_benchmark
from raw_data import save_volume
from rich.console import Console

from coarse2fine.config.reader import load_config

SPACING = (2.5, 0.8, 1.3)
KEYS = {
    "dataset", "case", "mode", "repeat", "load_s", "seconds", "seconds_nnunet", "ratio", "network_s",
    "network_s_nnunet", "runs", "runs_nnunet", "dice", "dice_nnunet", "iou", "iou_nnunet", "agreement",
    "different_voxels", "overhead", "overhead_s", "io_s", "canvases", "fill", "boxes", "coverage", "warnings",
    "peak_rss_mb", "peak_rss_mb_nnunet", "timing_s", "environment", "config", "models", "commands",
}  # fmt: skip


script = benchmark_module("compare_nnunet")


@pytest.fixture
def contest(script: ModuleType, model_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """Makes both sides for a tiny volume whose reference is its bright part."""
    voxels = blobs((18, 40, 36))
    files = {"image": tmp_path / "tiny_0000.nii.gz", "reference": tmp_path / "tiny.nii.gz"}
    for file, array in zip(files.values(), (voxels, (voxels > 130).astype(np.uint8)), strict=True):
        save_volume(file, array, SPACING)

    def make(*overrides: str, folds: tuple[str, ...] = ("all",), folder: Path = tmp_path / "results") -> Any:
        fine, coarse = model_folder(folds=folds), model_folder(spacing=(5.0, 2.0, 2.0), seed=3)
        models = [f"fine.model={fine}", f"coarse.model={coarse}", "fine.mirroring=false"]
        return script.Contest("tiny", **files, config=load_config(None, [*models, *overrides]), folder=folder)

    return make


def silent() -> Console:
    return Console(file=io.StringIO(), record=True, width=120)


@pytest.mark.long
@pytest.mark.parametrize("folds", [("all",), ("0", "1")])
def test_compare__one_stage__equals_nnunet(
    script: ModuleType, contest: Callable[..., Any], folds: tuple[str, ...]
) -> None:
    """Both sides write the same file, also in a second turn after nnU-Net has exchanged its own network's weights."""
    results = script.compare(contest("mode=one-stage", folds=folds), 2, silent())
    assert results["different_voxels"] <= 18 * 40 * 36 * 1e-4
    assert results["agreement"] > 0.999
    assert results["dice"] == pytest.approx(results["dice_nnunet"], abs=1e-3)
    assert results["iou"] == pytest.approx(results["dice"] / (2 - results["dice"]))
    assert results["network_s_nnunet"] <= results["seconds_nnunet"]


@pytest.mark.long
def test_compare__mirroring__is_on_for_both(script: ModuleType, contest: Callable[..., Any]) -> None:
    """Mirrored, both sides still agree, so neither ignores the setting."""
    results = script.compare(contest("mode=one-stage", "fine.mirroring=true"), 1, silent())
    assert results["different_voxels"] <= 18 * 40 * 36 * 1e-4
    assert "--disable_tta" not in results["commands"]["nnunet"]


@pytest.mark.long
def test_compare__accelerated__reports_every_figure(script: ModuleType, contest: Callable[..., Any]) -> None:
    """All keys are there and survive JSON; repetitions are listed, and the tables can be printed."""
    console = silent()
    results = script.compare(contest("rois.threshold=0.2"), 2, console)
    assert set(results) == KEYS
    assert json.loads(json.dumps(results, allow_nan=False))["case"] == "tiny"
    assert results["mode"] == "accelerated"
    assert results["canvases"] > 0
    assert results["ratio"] == pytest.approx(results["seconds_nnunet"] / results["seconds"])
    for suffix in ("", "_nnunet"):
        assert len(results[f"runs{suffix}"]["seconds"]) == 2
        assert results[f"seconds{suffix}"] == pytest.approx(np.median(results[f"runs{suffix}"]["seconds"]))
    assert 0 <= results["overhead"] <= 1
    assert results["io_s"] == pytest.approx(results["timing_s"]["read"] + results["timing_s"]["write"])

    console.print(script.results_table(results), script.effort_table(results))
    printed = console.export_text()
    assert f"{results['ratio']:.2f}" in printed
    assert "2/2 nnunet" in printed


@pytest.mark.long
def test_compare__results__hold_no_path_of_this_machine(script: ModuleType, contest: Callable[..., Any]) -> None:
    """Models are named as seen from the repository, so that results can be kept in it."""
    results = script.compare(contest(), 1, silent())
    root = import_benchmark("common.machine").ROOT
    assert str(root) not in json.dumps(results["config"] | results["models"])
    assert (root / results["models"]["fine"] / "plans.json").exists()


@pytest.mark.long
def test_profile__a_run__lists_ten_functions(script: ModuleType, contest: Callable[..., Any]) -> None:
    """Stages come first, then the functions with the most time of their own."""
    console = silent()
    script.profile(contest(), console)
    stages, _, functions = console.export_text().partition("tottime")
    assert "fine" in stages
    assert len(functions.strip().splitlines()) == 11


def test_main__no_data__exits_with_2_and_says_why(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing data are a message that says where to get them, not a traceback."""
    assert script.main(["--dataset", "lung", "--data", str(tmp_path)]) == 2
    assert "no test case of 'lung'" in (printed := capsys.readouterr().err)
    assert "LIDC-IDRI-0001" in printed


def test_main__wrong_setting__exits_with_1_and_says_why(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt setting is found before anything is loaded or run."""
    dataset = import_benchmark("common.registry").load_dataset("em")
    for name in (
        "imagesTs/x_0000.nii.gz",
        "labelsTs/x.nii.gz",
        *(f"{model}/plans.json" for model in dataset.models.values()),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    arguments = ["--dataset", "em", "--data", str(tmp_path), "--models", str(tmp_path), "--set", "rois.treshold=0.1"]
    assert script.main(arguments) == 1
    assert "did you mean" in capsys.readouterr().err
