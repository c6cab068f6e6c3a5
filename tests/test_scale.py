"""The benchmark of large volumes, on small ones with tiny models: real runs of ``c2f-infer``, really killed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from conftest import blobs, import_benchmark
from rich.console import Console

from canvas import Box
from coarse2fine.io import open_store

SHAPES = {"imagesTs/b": (9, 130, 60), "imagesTr/a": (8, 128, 40)}
WORDS = ["--cell", "8,128,128", "--factors", "1", "--repeat", "1", "--picks", "1", "--gvoxels", "0.002"]
WORDS += ["--kills", "3", "--set", "rois.threshold=0.55", "--set", "canvas.size=[16, 32, 32]"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return import_benchmark("scale")


@pytest.fixture
def measured(
    script: ModuleType, model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Runs the script on two stacks and tiny models, and returns its JSON."""
    for variable in import_benchmark("machine").THREAD_VARIABLES:
        monkeypatch.setenv(variable, "1")  # else the script would start this process again
    write_stacks(tmp_path / "data")
    for role, folder in {"coarse": model_folder(spacing=(4.0, 2.0, 2.0), seed=3), "fine": model_folder(seed=6)}.items():
        shutil.copytree(folder, tmp_path / "models" / role)
    changes = {"config": None, "models": {"coarse": "coarse", "fine": "fine"}}
    dataset = import_benchmark("registry").load_dataset("em").model_copy(update=changes)
    monkeypatch.setattr(script, "load_dataset", lambda name: dataset)
    places = {"--out": "out.json", "--data": "data", "--models": "models", "--work": "work"}
    words = [word for option, name in places.items() for word in (option, str(tmp_path / name))]

    def run(*parts: str) -> dict[str, Any]:
        assert script.main([*words, *WORDS, "--parts", *parts]) == 0
        return json.loads((tmp_path / "out.json").read_text())

    return run


def write_stacks(folder: Path) -> None:
    for number, (name, shape) in enumerate(SHAPES.items()):
        for path, voxels in (
            (folder / f"{name}_0000.nii.gz", blobs(shape, seed=number, dtype=np.uint8)),
            (folder / f"{name.replace('images', 'labels')}.nii.gz", np.zeros(shape, np.uint8)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(voxels)
            image.SetSpacing((1.0, 1.0, 2.0))
            sitk.WriteImage(image, str(path))


def test_kills__worker_main_process_and_scheduler__end_with_the_same_voxels(measured: Callable[..., Any]) -> None:
    """Every kill is real, is survived by the same command, leaves no process, and changes nothing."""
    part = measured("kills")["kills"]
    assert (part["kills"], part["survived"], part["voxels_different"], part["left_behind"]) == (3, 3, 0, 0)
    assert part["undisturbed_objects"] > 10


def test_measure__other_parts__fill_table_and_are_not_measured_again(
    script: ModuleType, measured: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From options to JSON to Markdown."""
    results = measured("memory", "overhead", "workers", "gvoxel")
    print(json.dumps(results, indent=1)[:6000])
