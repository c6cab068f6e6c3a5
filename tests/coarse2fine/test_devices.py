"""Runs on a device that is not the host, from the volume to its labels: how often the host waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import blobs, write_agent
from other_device import THERE, OtherDevice, moved

from canvas import Triple
from coarse2fine.config.reader import load_config
from coarse2fine.io import Grid, Volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline, Result
from coarse2fine.selection.features import FeatureSettings, Source
from coarse2fine.system import device as devices
from coarse2fine.system.timing import Run

SPACING = (2.0, 1.0, 1.0)
SHAPES: tuple[Triple, Triple] = (10, 24, 24), (20, 40, 40)
BOTH = ["fine.mirroring=false", "coarse.mirroring=false"]
ACCELERATED = [*BOTH, "rois.threshold=0.55", "fine.grow=0"]
CASES: dict[str, tuple[list[str], Source, int]] = {
    # Whether sums are finite, the heatmap, statistics of normalisation, masks, labels.
    "accelerated": (ACCELERATED, "none", 5),
    # Without the statistics, but where coarse labels are not background.
    "coarse labels outside": ([*ACCELERATED, "canvas.norm=canvas", "fine.outside=coarse"], "none", 5),
    # And what agents see of all boxes.
    "features of the coarse model": ([*ACCELERATED, "canvas.norm=canvas"], "coarse", 5),
    "features of the fine model": ([*ACCELERATED, "canvas.norm=canvas"], "fine", 5),
    # Whether sums are finite, and labels.
    "one-stage": ([*BOTH, "mode=one-stage"], "none", 2),
}


@pytest.fixture(scope="module")
def folders(model_folder: Callable[..., Path]) -> tuple[Path, Path]:
    """A coarse and a fine model."""
    return model_folder(spacing=(4.0, 2.0, 2.0), seed=5), model_folder(seed=6)


@pytest.fixture(scope="module")
def models(folders: tuple[Path, Path]) -> tuple[Model, Model]:
    """Both, loaded."""
    coarse, fine = map(load_model, folders)
    return coarse, fine


def run(pipeline: Pipeline, shape: Triple) -> tuple[Result, Counter[str]]:
    """A run, and the steps of each of its stages."""
    steps = Counter[str]()

    def count(stage: str, done: int, total: int) -> None:
        steps[stage] = max(steps[stage], done)

    return pipeline(Volume((blobs(shape),), Grid(shape, SPACING), "blobs"), Run(progress=count)), steps


@pytest.mark.parametrize("case", CASES)
def test_pipeline__other_device__gives_the_hosts_labels_and_waits_no_more_for_more_tiles(
    case: str, models: tuple[Model, Model], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Of a larger volume there are more tiles, slabs, regions and canvases, but no more copies to the host."""
    settings, source, copies = CASES[case]
    if source != "none":
        agent = write_agent(tmp_path / "agent", folders, settings, features=FeatureSettings(source))
        settings = [*settings, f"assign.agent={agent}"]
    waits, steps, config = list[Counter[str]](), list[Counter[str]](), load_config(None, settings)
    for shape in SHAPES:
        expected, _ = run(Pipeline(config, *models), shape)
        with OtherDevice() as device:
            pipeline = Pipeline(config, *map(moved, models))  # agents look at weights
            device.waits.clear()
            found, done = run(pipeline, shape)
        assert (found.labels != expected.labels).mean() < 1e-3
        assert found.labels.any()
        assert found.report.warnings == expected.report.warnings
        waits.append(device.waits)
        steps.append(done)
    assert waits == [{"_to_copy": copies}] * 2
    assert all(steps[1][stage] > 2 * count for stage, count in steps[0].items() if stage in ("coarse", "fine"))


@pytest.mark.parametrize("case", ["accelerated", "one-stage"])
def test_pipeline__device_without_room__works_on_the_host_and_says_so(
    case: str, models: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has no room for sums and outputs, only networks run there; labels are the same."""
    config = load_config(None, CASES[case][0])
    expected, _ = run(Pipeline(config, *models), SHAPES[0])
    monkeypatch.setattr(devices, "free_bytes", lambda device: 0)
    with OtherDevice():
        found, _ = run(Pipeline(config, *map(moved, models)), SHAPES[0])
    assert (found.labels != expected.labels).mean() < 1e-3
    what = "coarse pass" if case == "accelerated" else "sliding window"
    note = f"{THERE} has too little free memory for the {what}: parts of it stayed on the host, which is slower"
    assert [warning for warning in found.report.warnings if warning not in expected.report.warnings] == [note]
