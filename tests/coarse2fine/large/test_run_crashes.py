"""Runs over stores that crash or read damaged chunks: the same command goes on, and ends with the same result."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import blobs
from large_volumes import bright_models, write_image
from store_bench import CHUNK, COARSE, EXPECTED, FINE, IMAGE, PHASES, SETTINGS, SHAPE, Bench

from canvas import Box
from coarse2fine.config.reader import load_config
from coarse2fine.errors import C2FError, OutputError, VolumeError
from coarse2fine.io import LabelStore
from coarse2fine.large.phases import UnfinishedError
from coarse2fine.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture(scope="module")
def undisturbed(plain_model: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Objects of a run in one go."""
    bench = Bench(tmp_path_factory.mktemp("undisturbed"), Path())
    bench.image = write_image(bench.folder / "in.zarr", IMAGE, chunk=20)
    with pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module("coarse2fine.large.plan")
        patch.setattr(module, "chunk_of", lambda shape: CHUNK)
        models = bright_models(plain_model, coarse=COARSE, fine=FINE)
        patch.setattr(Pipeline, "from_config", lambda config, *, trust_checkpoint=False: Pipeline(config, *models))
        bench(objects=True)
    return bench.labels()


@pytest.mark.alone
@pytest.mark.parametrize("phase", PHASES)
def test_segment_store__killed_in_any_phase__goes_on_where_it_was(
    phase: str, bright_networks: None, bench: Bench, calls: dict[str, Any], undisturbed: np.ndarray
) -> None:
    """The same command again gives the same result; only the block that was cut short is done twice."""
    calls["crash"] = phase, min(2, PHASES[phase][-1])
    with pytest.raises(KeyboardInterrupt):
        bench(objects=True)
    assert not (bench.folder / "out.zarr").exists()
    calls["crash"] = None
    report = bench(objects=True)
    np.testing.assert_array_equal(bench.labels(), undisturbed)
    assert dict(calls["count"]) == {name: count + (name == phase) for name, (*_, count) in PHASES.items()}
    assert report.counts["voxels"] == IMAGE.size


@pytest.mark.alone
def test_segment_store__again_after_the_end__leaves_the_result_as_it_is(
    bright_networks: None, bench: Bench, calls: dict[str, Any]
) -> None:
    """A crash after the last step finds everything done, and does not begin an empty result."""
    for name in ("out.zarr", "out.hdf", "precomputed://out"):
        bench(name)
        files = {path: path.stat().st_mtime_ns for path in bench.folder.rglob("out*/**/c*/*")}
        calls["count"].clear()
        bench(name, overwrite=True)
        assert not calls["count"]
        assert {path: path.stat().st_mtime_ns for path in bench.folder.rglob("out*/**/c*/*")} == files
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)


@pytest.mark.alone
def test_segment_store__block_that_fails_once__is_tried_again(
    bright_networks: None, bench: Bench, calls: dict[str, Any]
) -> None:
    """Each block is, if retries are left; else all others are done, and the message says where it is in the input."""
    calls |= {"crash": ("segment", 2), "error": ValueError("bad luck")}
    with pytest.raises(UnfinishedError, match=r"1 of 4 .*segment:\n    voxels 0:8,4:20,82:160 .*bad luck"):
        bench(region=Box((0, 4, 2), (8, 36, 162)).clip(Box.whole(SHAPE)))
    assert calls["count"]["segment"] == 4
    assert not calls["count"]["merge"]
    calls["count"].clear()
    assert bench("other.zarr", retries=1).failures == ()
    assert calls["count"]["segment"] == 5
    np.testing.assert_array_equal(bench.labels("other.zarr") != 0, EXPECTED)


def test_segment_store__disk_full__stops_at_once_and_resumes(
    bright_networks: None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further block is begun when results cannot be written."""
    write, begun = LabelStore.write, []

    def full(store: LabelStore, box: Box, data: np.ndarray, level: int = 0) -> None:
        begun.append(box)
        if len(begun) > 3:
            raise OutputError("cannot write: no space left", "Free some.")
        write(store, box, data, level)

    with monkeypatch.context() as patch:
        patch.setattr(LabelStore, "write", full)
        with pytest.raises(OutputError, match="no space left"):
            bench(retries=5)
    assert len(begun) == 4
    bench()
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)


def test_segment_store__damaged_chunk__is_reported_and_can_be_skipped(bright_networks: None, bench: Bench) -> None:
    """The blocks that read it fail, with their place in the input; the others are done, and stand in the result."""
    chunk = bench.image / "0" / "c" / "0" / "1" / "7"
    intact = chunk.read_bytes()
    chunk.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(UnfinishedError, match=r"phase scan:\n    voxels 0:8,16:32,80:160 \(z, y, x\).*in\.zarr"):
        bench()
    assert not (bench.folder / "out.zarr").exists()
    report = bench(skip_failed=True)
    assert [(failure.phase, failure.key) for failure in report.failures] == [
        ("scan", (0, 1, 1)),
        ("segment", (0, 0, 1)),  # its halo
        ("segment", (0, 1, 1)),
    ]
    assert "voxels 0:8,0:16,80:160" in report.failures[1].where
    found = bench.labels() != 0
    np.testing.assert_array_equal(found[..., :80], EXPECTED[..., :80])
    assert not found[..., 80:].any()
    assert EXPECTED[..., 80:].any()


@pytest.mark.parametrize(("width", "blocks"), [(100, 10), (120, 12)])
def test_segment_store__many_blocks_fail__ten_are_named(
    width: int, blocks: int, bright_networks: None, bench: Bench, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their place in the input; and how many more there are, if there are."""
    module = importlib.import_module("coarse2fine.large.segment")
    monkeypatch.setattr(module.ScanBlock, "__call__", lambda self, key, run: int("bad luck"))
    cells = ["blocks.cell=[8, 16, 20]", "blocks.per_block=[1, 1, 1]"]
    with pytest.raises(UnfinishedError, match=f"{blocks} of {blocks} blocks failed") as caught:
        bench(overrides=cells, region=Box((0, 0, 10), (8, 32, 10 + width)))
    lines = caught.value.problem.splitlines()
    assert "voxels 0:8,0:16,10:30 (z, y, x)" in lines[1]
    assert sum("bad luck" in line for line in lines) == 10
    assert [line.strip() for line in lines[11:]] == ["and 2 more"] * (blocks > 10)


@pytest.mark.long
def test_segment_store__merging_fails__is_never_skipped(
    bright_networks: None, bench: Bench, calls: dict[str, Any]
) -> None:
    """Only what cannot be read may be left out: parts of objects that were found must not get lost."""
    calls |= {"crash": ("merge", 1), "error": ValueError}
    with pytest.raises(UnfinishedError, match="phase merge") as caught:
        bench(skip_failed=True)
    assert caught.value.remedy.endswith("to try these again.")
    assert not (bench.folder / "out.zarr").exists()
    assert bench(skip_failed=True).failures == ()
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)


def test_segment_store__failed_block_is_mended__is_done_by_the_next_command(
    bright_networks: None, bench: Bench
) -> None:
    """Without skipping nothing is published, and the same command does what is missing."""
    chunk = bench.image / "0" / "c" / "0" / "1" / "7"
    intact = chunk.read_bytes()
    chunk.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(UnfinishedError):
        bench()
    chunk.write_bytes(intact)
    bench()
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)


@pytest.mark.long
def test_segment_store__mended_after_the_scan__statistics_stay(
    bright_networks: None, bench: Bench, calls: dict[str, Any]
) -> None:
    """What some blocks were normalised by must not change for the others; the block itself is done."""
    chunk, scan = bench.image / "0" / "c" / "0" / "1" / "7", bench.work("out.zarr") / "data" / "scan.json"
    intact = chunk.read_bytes()
    chunk.write_bytes(intact[: len(intact) // 2])
    calls["crash"] = ("segment", 1)
    with pytest.raises(KeyboardInterrupt):
        bench(skip_failed=True)
    chunk.write_bytes(intact)
    kept = scan.read_bytes()
    calls["crash"] = None
    assert bench(skip_failed=True).failures == ()
    assert scan.read_bytes() == kept
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)


@pytest.mark.parametrize("name", ["nothing", "damaged"])
def test_segment_store__nothing_to_see__is_an_error(name: str, bright_networks: None, bench: Bench) -> None:
    """One value everywhere, or no block that can be read: more likely a wrong path than a result."""
    if name == "nothing":
        bench.image = write_image(bench.folder / "flat.zarr", np.full(SHAPE, 7, np.uint8))
    else:
        for chunk in (path for path in (bench.image / "0" / "c").rglob("*") if path.is_file()):
            chunk.write_bytes(chunk.read_bytes()[:10])
    with pytest.raises(VolumeError, match="is 7" if name == "nothing" else "cannot be read") as caught:
        bench(skip_failed=True)
    whole = write_image(bench.folder / "whole.zarr", IMAGE, chunk=20)
    if name == "nothing":
        assert caught.value.remedy.endswith("or another store, with --restart.")
        bench.image = whole
        bench(restart=True)
    else:
        assert caught.value.remedy.endswith("and run the same command again with --restart.")
        shutil.copytree(whole, bench.image, dirs_exist_ok=True)
        bench(skip_failed=True, restart=True)
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)


@pytest.mark.usefixtures("bright_networks")
def test_segment_store__region_of_one_value__another_region_works(bench: Bench) -> None:
    """The rest of the message's remedy: a part of the volume that shows something."""
    with pytest.raises(VolumeError, match="every voxel of channel 0 that was read is 1") as caught:
        bench(region=Box((0, 28, 100), (8, 32, 160)))
    assert caught.value.remedy.startswith("Name another part of the volume (--region)")
    region = Box((0, 0, 0), (8, 32, 80))
    bench(region=region, restart=True)
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED[region.slices])


@pytest.mark.alone
@pytest.mark.parametrize(
    ("override", "fine"),
    [
        ("coarse.body_crop={}", {}),
        ("rois.empty=one-stage", {}),
        ("mode=one-stage", {"cascade": True}),
        ("device=cpu", {"masked": True}),
    ],
)
def test_segment_store__what_needs_the_whole_volume__remedies_work(
    override: str, fine: dict[str, Any], bench: Bench, model_folder: Callable[..., Path]
) -> None:
    """In a file of .nrrd it runs; the setting left out, the store is segmented."""
    models = [f"coarse.model={model_folder(spacing=(4.0, 2.0, 2.0))}", f"fine.model={model_folder(**fine)}"]
    settings = [*models, "rois.threshold=0.55", f"fine.use_prior={str('cascade' in fine).lower()}"]
    bench.image = write_image(bench.folder / "blobs.zarr", image := blobs((8, 24, 40)))
    with pytest.raises(C2FError) as caught:
        bench(overrides=[*settings, override])
    assert "onvert the volume to NIfTI or .nrrd" in caught.value.remedy
    sitk.WriteImage(sitk.GetImageFromArray(image), str(bench.folder / "a.nrrd"))
    config = load_config(None, [*SETTINGS, *settings, override])
    Pipeline.from_config(config).run_files([bench.folder / "a.nrrd"], bench.folder / "b.nrrd")
    if "Leave it out" in caught.value.remedy:
        bench(overrides=settings)
