"""The benchmark against nnU-Net, on a tiny model and volume, so that it keeps working; real data are never run here."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import blobs
from rich.console import Console

from coarse2fine.config import load_config

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "compare_nnunet.py"
SPACING = (2.5, 0.8, 1.3)
KEYS = {
    "dataset", "case", "mode", "repeat", "load_s", "seconds", "seconds_nnunet", "ratio", "network_s",
    "network_s_nnunet", "runs", "runs_nnunet", "dice", "dice_nnunet", "iou", "iou_nnunet", "agreement",
    "different_voxels", "overhead", "overhead_s", "io_s", "canvases", "fill", "boxes", "coverage", "warnings",
    "peak_rss_mb", "peak_rss_mb_nnunet", "timing_s", "environment", "config", "models", "commands",
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The benchmark as a module; scripts are in no package."""
    spec = importlib.util.spec_from_file_location("compare_nnunet", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def contest(script: ModuleType, model_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """Makes both sides for a tiny volume whose reference is its bright part."""
    voxels = blobs((18, 40, 36))
    files = {"image": tmp_path / "tiny_0000.nii.gz", "reference": tmp_path / "tiny.nii.gz"}
    for file, array in zip(files.values(), (voxels, (voxels > 130).astype(np.uint8)), strict=True):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING[::-1])
        sitk.WriteImage(image, str(file))

    def make(*overrides: str, folds: tuple[str, ...] = ("all",), folder: Path = tmp_path / "results") -> Any:
        fine, coarse = model_folder(folds=folds), model_folder(spacing=(5.0, 2.0, 2.0), seed=3)
        models = [f"fine.model={fine}", f"coarse.model={coarse}", "fine.mirroring=false"]
        return script.Contest("tiny", **files, config=load_config(None, [*models, *overrides]), folder=folder)

    return make


def silent() -> Console:
    return Console(file=io.StringIO(), record=True, width=120)


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


def test_compare__mirroring__is_on_for_both(script: ModuleType, contest: Callable[..., Any]) -> None:
    """Mirrored, both sides still agree, so neither ignores the setting."""
    results = script.compare(contest("mode=one-stage", "fine.mirroring=true"), 1, silent())
    assert results["different_voxels"] <= 18 * 40 * 36 * 1e-4
    assert "--disable_tta" not in results["commands"]["nnunet"]


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


def test_compare__results__hold_no_path_of_this_machine(script: ModuleType, contest: Callable[..., Any]) -> None:
    """Models are named as seen from the repository, so that results can be kept in it."""
    results = script.compare(contest(), 1, silent())
    assert str(script.ROOT) not in json.dumps(results["config"] | results["models"])
    assert (script.ROOT / results["models"]["fine"] / "plans.json").exists()


def test_profile__a_run__lists_ten_functions(script: ModuleType, contest: Callable[..., Any]) -> None:
    """Stages come first, then the functions with the most time of their own."""
    console = silent()
    script.profile(contest(), console)
    stages, _, functions = console.export_text().partition("tottime")
    assert "fine" in stages
    assert len(functions.strip().splitlines()) == 11


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset its memory peak")
def test_peak_memory__freed_array__counts_until_the_next_reset(script: ModuleType) -> None:
    """A run's peak holds what it has already freed, the next run's does not."""
    memory = script.PeakMemory()
    memory.reset()
    before = memory.read_mb()
    if before is None:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    array = np.ones(200_000_000, np.uint8)
    del array
    during = memory.read_mb()
    memory.reset()
    assert during - before > 150
    assert memory.read_mb() - before < 100


def test_peak_memory__elsewhere__is_unknown(script: ModuleType, tmp_path: Path) -> None:
    """Where there is no such file, there is no figure, and no error."""
    memory = script.PeakMemory(tmp_path / "no-proc")
    memory.reset()
    assert memory.read_mb() is None


def fake_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text("{}")
    return folder


def test_find_model__several_sources__takes_the_chosen_one(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own weights win over shared ones unless the shared ones or another folder are asked for."""
    monkeypatch.setattr(script, "ROOT", tmp_path / "repository")
    monkeypatch.setattr(script, "SHARED", tmp_path / "shared")
    ours = fake_model(tmp_path / "repository/benchmarks/models/D/both")
    shared = fake_model(tmp_path / "shared/models/D/both")
    only_shared = fake_model(tmp_path / "shared/models/D/single")
    other = fake_model(tmp_path / "mine/D/both")
    assert script.find_model("D/both", "ours") == ours
    assert script.find_model("D/both", "shared") == shared
    assert script.find_model("D/single", "ours") == only_shared
    assert script.find_model("D/both", str(tmp_path / "mine")) == other
    with pytest.raises(script.MissingDataError, match=r"no D/none in benchmarks/models or \.\./shared/models"):
        script.find_model("D/none", "ours")


def test_main__no_data__exits_with_2_and_says_why(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing data are a message, not a traceback."""
    monkeypatch.setattr(script, "SHARED", tmp_path / "shared")
    assert script.main(["--dataset", "lung"]) == 2
    assert "lidc0001_0000.nii.gz is missing" in capsys.readouterr().err


def test_main__wrong_setting__exits_with_1_and_says_why(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt setting is found before anything is loaded or run."""
    monkeypatch.setattr(script, "SHARED", tmp_path)
    dataset = script.DATASETS["em"]
    for name in (f"imagesTs/{dataset.case}_0000", f"labelsTs/{dataset.case}"):
        file = tmp_path / "data" / dataset.folder / f"{name}.nii.gz"
        file.parent.mkdir(parents=True)
        file.touch()
    for name in (dataset.coarse, dataset.fine):
        fake_model(tmp_path / "models" / dataset.folder / name)
    assert script.main(["--dataset", "em", "--models", "shared", "--set", "rois.treshold=0.1"]) == 1
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lung", "em", "ms"])
def test_configs__every_dataset__leaves_models_open_and_mirroring_off(script: ModuleType, name: str) -> None:
    """The settings fit the schema; the script fills in the models, and --mirroring is for both sides."""
    config = load_config(script.ROOT / "benchmarks" / "configs" / script.DATASETS[name].config)
    assert config.coarse.model is None
    assert config.fine.model is None
    assert not config.fine.mirroring


@pytest.mark.parametrize("name", ["lung", "em", "ms"])
def test_datasets__shared_data__are_where_the_table_says(script: ModuleType, name: str) -> None:
    """The table names files that exist; running them takes minutes and is not a test."""
    if not (script.SHARED / "data").is_dir():
        pytest.skip("the real data lie in ../shared, which is not here")
    dataset = script.DATASETS[name]
    folder = script.SHARED / "data" / dataset.folder
    assert (folder / "imagesTs" / f"{dataset.case}_0000.nii.gz").exists()
    assert (folder / "labelsTs" / f"{dataset.case}.nii.gz").exists()
