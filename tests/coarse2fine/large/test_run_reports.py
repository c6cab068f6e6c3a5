"""What a run over a store tells, and what only runs in memory can do."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from large_volumes import bright_models
from other_device import OtherDevice, moved
from store_bench import COARSE, FINE, IMAGE, SETTINGS, SHAPE, Bench

from canvas import Box
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.errors import ConfigError
from coarse2fine.io import Grid, Volume
from coarse2fine.large.execution.engine import in_process
from coarse2fine.large.output import plan_output
from coarse2fine.large.run import segment_store
from coarse2fine.large.source import Source
from coarse2fine.pipeline import Pipeline
from coarse2fine.report import NOTHING_FOUND
from coarse2fine.system import device as devices

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("role", ["coarse", "fine"])
def test_segment_store__doubts_about_a_model__are_told_as_in_memory(
    role: str, bench: Bench, plain_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of either model; whether a checkpoint is trusted is asked wherever models are loaded."""
    models = dict(zip(("coarse", "fine"), bright_models(plain_model, coarse=COARSE, fine=FINE), strict=True))
    models[role] = replace(models[role], trainer="MyTrainer")
    trusted: list[bool] = []

    def from_config(config: Config, *, trust_checkpoint: bool = False) -> Pipeline:
        trusted.append(trust_checkpoint)
        return Pipeline(config, **models)

    monkeypatch.setattr(Pipeline, "from_config", from_config)
    region = Box((0, 0, 0), (8, 16, 40))
    part = Volume((IMAGE[region.slices],), Grid(region.shape, (2.0, 1.0, 1.0)), "in")
    (doubt,) = Pipeline.from_config(load_config(None, SETTINGS))(part).report.warnings
    assert "MyTrainer" in doubt
    trusted.clear()
    assert bench(region=region, trust=True).warnings == (doubt,)
    assert trusted == [True] * 2


@pytest.mark.long
@pytest.mark.parametrize("mode", ["accelerated", "one-stage"])
def test_segment_store__device_without_room__is_told_once_in_the_words_of_a_run_in_memory(
    mode: str, bench: Bench, plain_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many blocks say so."""
    monkeypatch.setattr(devices, "free_bytes", lambda device: 0)
    models, region = bright_models(plain_model, coarse=COARSE, fine=FINE), Box((0, 0, 0), (8, 32, 40))
    overrides = [f"mode={mode}", "canvas.norm=canvas", "fine.grow=0"]
    monkeypatch.setattr(Pipeline, "from_config", lambda config, **_: Pipeline(config, *map(moved, models)))
    with OtherDevice():
        whole = Pipeline.from_config(load_config(None, [*SETTINGS, *overrides]))
        part = Volume((IMAGE[region.slices],), Grid(region.shape, (2.0, 1.0, 1.0)), "in")
        report = bench(region=region, overrides=overrides)
        assert len(report.layout["cells"][1]) - 1 == 2  # each a block
        assert report.warnings == whole(part).report.warnings
    assert ["too little free memory" in warning for warning in report.warnings] == [True]


@pytest.mark.long
def test_segment_store__coverage__is_exact_for_one_cell_and_called_an_estimate_for_many(
    bright_networks: None, bench: Bench
) -> None:
    """A region that is a single cell covers what the same voxels cover in memory."""
    assert bench().coverage_is.startswith("an estimate")
    region = Box((0, 4, 2), (8, 20, 42))
    report = bench("part.zarr", region=region)
    part = Volume((IMAGE[region.slices],), Grid(region.shape, (2.0, 1.0, 1.0)), "in")
    whole = Pipeline.from_config(load_config(None, SETTINGS))(part)
    assert report.coverage_is == "exact"
    assert asdict(report.coverage) == pytest.approx(asdict(whole.report.coverage))
    assert 0 < report.coverage.volume < 1


@pytest.mark.long
def test_segment_store__report__has_what_that_of_a_run_in_memory_has(bright_networks: None, bench: Bench) -> None:
    """The same fields and words; sums over cells are those of the result, or close to those of the whole volume."""
    report = bench()
    whole = Pipeline.from_config(load_config(None, SETTINGS))(Volume((IMAGE,), Grid(SHAPE, (2.0, 1.0, 1.0)), "in"))
    assert {field.name for field in fields(whole.report)} < {field.name for field in fields(report)}
    assert report.labels == {"1": int((bench.labels() == 1).sum())} == whole.report.labels
    for name in ("selected", "dropped", "cut"):
        assert getattr(report.boxes, name) >= getattr(whole.report.boxes, name)
    assert asdict(report.coverage) == pytest.approx(asdict(whole.report.coverage), abs=0.1)
    assert 0 < report.canvases.fill <= 1
    assert report.agent == whole.report.agent
    assert report.warnings == whole.report.warnings == ()
    nothing = ["rois.threshold=0.999", "rois.min_voxels=9999"]
    empty, none = bench("empty.zarr", overrides=nothing), load_config(None, [*SETTINGS, *nothing])
    in_memory = Pipeline.from_config(none)(Volume((IMAGE,), Grid(SHAPE, (2.0, 1.0, 1.0)), "in")).report
    assert empty.labels == {}
    assert empty.warnings == in_memory.warnings == (NOTHING_FOUND,)
    assert empty.coverage.heatmap_mass == in_memory.coverage.heatmap_mass == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [("deadline=3", "needs a volume that is held in memory"), ("fine.precision=auto", "would choose for itself")],
)
def test_segment_store__what_needs_a_whole_volume__is_refused_before_anything_is_opened(
    tmp_path: Path, setting: str, message: str
) -> None:
    """Whoever calls it from Python is told as well."""
    output = plan_output(
        str(tmp_path / "out.zarr"), objects=False, overwrite=False, inputs="in", work=tmp_path / "work"
    )
    with pytest.raises(ConfigError, match=message):
        segment_store(load_config(None, [setting]), Source("in"), output, tmp_path / "work", in_process())
