"""norm: case is settled once for a volume, whatever its cells are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import blobs
from large_volumes import SPACING, lazy_volume, merged, pipeline_of, scan_of, side_by_side, write_image
from large_volumes import segment as segment_volume

from canvas import Box
from coarse2fine.fine import inputs as fine_stage
from coarse2fine.io import Grid, LabelSpec, Volume
from coarse2fine.large.cells import OpenVolume, VolumeNorm, look_at_cell, open_volume
from coarse2fine.large.execution.engine import in_process
from coarse2fine.large.execution.work import WorkFolder
from coarse2fine.large.job import Job
from coarse2fine.large.lattice import plan_lattice
from coarse2fine.large.norm import FIRST_CELLS, LookAtCell, MeasureTile, settle, settle_norm, spread
from coarse2fine.large.output import plan_output
from coarse2fine.large.run import segment_store
from coarse2fine.large.source import Source
from coarse2fine.system.timing import Run

SHAPE = (16, 40, 36)
SETTINGS = ["rois.window_step=0.5", "rois.window=[4, 8, 8]", "canvas.packing=same_size", "canvas.norm_tiles=2"]


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> tuple[Path, Path]:
    """Coarse and fine."""
    return model_folder(spacing=(4.0, 2.0, 2.0), seed=5), model_folder(seed=6)


@pytest.mark.long
@pytest.mark.parametrize("cascade", [False, True])
def test_settle__regions_of_all_cells__are_measured_as_in_memory(
    cascade: bool, model_folder: Callable[..., Path], models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cell or many: the tiles and their statistics are those of the run in memory, and are measured once."""
    settings = [*SETTINGS, *(["fine.use_prior=true", "rois.threshold=0.62"] if cascade else [])]
    pipeline = pipeline_of((models[0], model_folder(cascade=True, seed=7)) if cascade else models, settings)
    image, measured = blobs(SHAPE), []

    def measure(*args: Any) -> Any:
        measured.append(original(*args))
        return measured[-1]

    original = fine_stage.measure_statistics
    monkeypatch.setattr(fine_stage, "measure_statistics", measure)
    whole = pipeline(Volume((image,), Grid(SHAPE, SPACING), "whole"))
    (expected,) = measured
    scene = open_volume(pipeline, [lazy_volume(image)], scan_of(image), 0)
    for cell in ((99, 99, 99), (8, 20, 18)):
        lattice = plan_lattice(SHAPE, cell, (4, 4, 4))
        known = [look_at_cell(scene, lattice.core(index), Run()) for index in lattice.cells()]
        regions, chosen = ([box for pair in known for box in pair[number]] for number in (0, 1))
        alone, statistics, voxels = settle(scene, regions, chosen, True, Run())
        assert not alone
        assert voxels == 2 * 8 * 16 * 16
        if len(known) == 1:
            assert statistics is not None
            assert statistics.to_json() == expected.to_json()
            results = segment_volume(pipeline, image, lattice, norm=VolumeNorm(statistics, alone))
            np.testing.assert_array_equal(side_by_side(results, lattice), whole.labels)
            assert results[0, 0, 0].counts.network_voxels + voxels == whole.report.canvases.network_voxels
        else:
            shared = segment_volume(pipeline, image, lattice, norm=VolumeNorm(statistics, alone))
            assert merged(shared, lattice).any()
    assert len(measured) == 1  # in no cell


def test_settle__no_regions_or_few__measures_nothing_and_counts_nothing(models: tuple[Path, Path]) -> None:
    """The report's network voxels are those that a network has seen."""
    scene = open_volume(pipeline_of(models, SETTINGS), [lazy_volume(blobs(SHAPE))], scan_of(blobs(SHAPE)), 0)
    box = Box((0, 0, 0), (4, 8, 8))
    run = Run()
    assert settle(scene, [], [], False, run) == (True, None, 0)
    assert settle(scene, [box], [box], True, run) == (True, None, 0)
    assert run.clock.rounded() == {}


@pytest.mark.long
def test_segment_store__norm_case__is_measured_once_and_counted(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks, however they are grouped, use the statistics that the job holds; none measures its own."""
    monkeypatch.setattr("coarse2fine.large.plan.chunk_of", lambda shape: (8, 20, 18))
    monkeypatch.setattr(fine_stage, "measure_statistics", lambda *args: pytest.fail("a cell measured its own"))
    write_image(tmp_path / "in.zarr", blobs(SHAPE))
    labels, counts = [], []
    for name, per_block in (("a", "[1, 1, 1]"), ("b", "[2, 2, 2]")):
        config = pipeline_of(models, [*SETTINGS, "blocks.cell=[8, 20, 18]", f"blocks.per_block={per_block}"]).config
        out, work = tmp_path / f"{name}.zarr", tmp_path / f"{name}.work"
        output = plan_output(str(out), objects=False, overwrite=False, inputs="", work=work)
        with in_process() as engine:
            report = segment_store(config, Source(str(tmp_path / "in.zarr")), output, work, engine)
        labels.append(zarr.open_group(out, mode="r")["0"][:])
        counts.append(report.counts["network_voxels"])
        assert report.counts["network_voxels"] >= 2 * 8 * 16 * 16
    np.testing.assert_array_equal(*labels)
    assert labels[0].any()
    assert counts[0] == counts[1]


@pytest.mark.long
def test_segment_store__thin_volume__is_not_looked_at_for_nothing(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where regions are not packed, nothing is settled, and the labels are what they were when it was."""
    monkeypatch.setattr("coarse2fine.large.plan.chunk_of", lambda shape: (6, 20, 18))
    write_image(tmp_path / "in.zarr", blobs((10, 40, 36))[2:8] + np.int16(1))
    pipeline = pipeline_of(models, [*SETTINGS, "blocks.cell=[6, 20, 18]"])
    labels, phases = [], []
    for name in ("a", "b"):
        out, work = tmp_path / f"{name}.zarr", tmp_path / f"{name}.work"
        output = plan_output(str(out), objects=False, overwrite=False, inputs="", work=work)
        with in_process() as engine:
            report = segment_store(pipeline.config, Source(str(tmp_path / "in.zarr")), output, work, engine)
        labels.append(zarr.open_group(out, mode="r")["0"][:])
        phases.append(set(report.seconds))
        assert "thinner than a patch" in report.warnings[0]
        monkeypatch.setattr(OpenVolume, "packs", True)
    assert phases[1] - phases[0] == {"look", "norm"}
    np.testing.assert_array_equal(*labels)
    assert labels[0].any()


def test_settle_norm__many_cells__looks_at_some_that_are_spread_until_there_are_enough_regions(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    """In the same order in every run; at all of them if there is little."""
    spec = LabelSpec("", "zarr", Grid((300, 1, 1), (1.0,) * 3), "uint8", (1, 1, 1), ((1, 1, 1),), "s")
    lattice, work = plan_lattice((300, 1, 1), (1, 1, 1), (1, 1, 1)), WorkFolder(tmp_path, "r")
    work.path("norm.json").parent.mkdir()
    job = Job(pipeline_of(models, SETTINGS).config, False, Source(""), lattice, (), 0, spec, None, spec, work)
    for found, looked in ((1, FIRST_CELLS), (0, 300)):
        asked: list[int] = []

        def phase(
            name: str, task: Any, keys: Sequence[Any], found: int = found, asked: list[int] = asked
        ) -> Mapping[Any, Mapping[str, Any]]:
            if name == "look":
                asked.append(len(keys))
            if isinstance(task, LookAtCell):
                return {key: {"regions": [[0, 0, 0, 1, 1, 1]] * found, "chosen": []} for key in keys}
            assert isinstance(task, MeasureTile)
            assert task.complete is (found == 0)
            return {(0,): {"alone": False, "statistics": None, "counts": {}}}

        settle_norm(job, phase)
        assert asked[-1] == looked
    for count in (10, 64):
        first = [cell[0] for cell in spread(job.lattice.cells())[:count]]
        assert max(np.diff(sorted([0, *first, 300]))) < 3 * 300 / count
