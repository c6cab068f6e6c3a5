"""From a store to a store: any division gives the same result; what does not fit is refused."""

from __future__ import annotations

import importlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorstore as ts
import zarr
from conftest import blobs
from large_volumes import lazy_volume, merged, pipeline_of, segment, settled, write_image
from scipy.ndimage import label as label_with_scipy
from store_bench import CHUNK, EXPECTED, IMAGE, SETTINGS, SHAPE, Bench, assert_same_objects

from canvas import Box
from coarse2fine.errors import C2FError, ConfigError, ModelError, OutputError, VolumeError
from coarse2fine.io import LazyArray
from coarse2fine.large.cells import CellResult
from coarse2fine.large.lattice import plan_lattice
from coarse2fine.large.phases import UnfinishedError
from coarse2fine.large.plan import coarse_level_of, plan_cells
from coarse2fine.large.source import Source
from coarse2fine.preprocessing.statistics import Scan

pytestmark = pytest.mark.usefixtures("small_chunks")

# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_block", ["[1, 1, 1]", "[1, 2, 2]", "[9, 9, 9]"])
def test_segment_store__any_blocks__objects_over_borders_are_whole(
    per_block: str, bright_networks: None, bench: Bench
) -> None:
    """Voxel for voxel what the fine network sees of all that the coarse one knows of, on all levels of the result."""
    told: dict[str, tuple[int, int]] = {}
    bench.progress = lambda phase, *done: told.update({phase: done})
    report = bench(overrides=[f"blocks.per_block={per_block}"])
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)
    np.testing.assert_array_equal(bench.labels(level=1) != 0, EXPECTED[:, ::2, ::2])
    assert report.counts["voxels"] == IMAGE.size
    assert report.counts["network_voxels"] > 0
    assert report.failures == report.warnings == ()
    assert set(report.seconds) == {"scan", "look", "norm", "segment", "merge", "level-1", "publish", "total"}
    assert set(told) == set(report.seconds) - {"publish", "total"}
    assert all(done == total > 0 for done, total in told.values())
    assert report.layout["cells"] == [[0, 8], [0, 16, 32], [0, 40, 80, 120, 160]]
    assert json.dumps(report.config)


def test_segment_store__without_merge__objects_are_cut(
    bright_networks: None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is this phase that brings the parts beyond a cell."""
    module = importlib.import_module("coarse2fine.large.segment")
    monkeypatch.setattr(module.MergeCell, "__call__", lambda self, key, run: {"filled": 0, "labels": {}})
    bench()
    found = bench.labels() != 0
    assert not found[~EXPECTED].any()
    assert EXPECTED[2:6, 2:6, 40:60].all()
    assert not found[2:6, 2:6, 40:60].any()


@pytest.mark.long
def test_segment_store__trained_networks__any_blocks_give_the_same(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Resampling, noise in all cells, many boxes: what cells of their own find, merged as the rule says."""
    image = blobs((8, 32, 40))
    models = model_folder(spacing=(4.0, 2.0, 2.0), seed=5), model_folder(seed=6)
    settings = [
        f"coarse.model={models[0]}",
        f"fine.model={models[1]}",
        "rois.threshold=0.55",
        "fine.grow=1",
        "blocks.cell=[4, 16, 20]",
    ]
    bench = Bench(tmp_path, write_image(tmp_path / "in.zarr", image))
    results = []
    for per_block in ("[1, 1, 1]", "[2, 1, 2]"):
        name = f"{per_block[1]}.zarr"
        bench(name, overrides=[*settings, f"blocks.per_block={per_block}"])
        results.append(bench.labels(name))
    lattice = plan_lattice(image.shape, (4, 16, 20), CHUNK)
    assert lattice.size == (2, 2, 2)
    pipeline = pipeline_of(models, [*SETTINGS, *settings])
    expected = merged(segment(pipeline, image, lattice, norm=settled(pipeline, image, lattice)), lattice)
    for result in results:
        np.testing.assert_array_equal(result, expected)
    assert 0.01 < (expected != 0).mean() < 0.9


def test_segment_store__objects__are_those_of_the_whole_volume(bright_networks: None, bench: Bench) -> None:
    """Numbered across cells; the report counts them."""
    report = bench(objects=True)
    assert bench.labels().dtype == np.uint64
    assert_same_objects(bench.labels(), EXPECTED)
    assert report.counts["objects"] == label_with_scipy(EXPECTED, np.ones((3, 3, 3)))[1]


def test_segment_store__region__says_where_it_lies(bright_networks: None, bench: Bench) -> None:
    """Only the region is looked at; scale and translation of the result put it where it was."""
    region = Box((0, 4, 12), (8, 30, 150))
    bench(region=region)
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED[region.slices])
    multiscales = zarr.open_group(bench.folder / "out.zarr", mode="r").attrs["ome"]["multiscales"]
    axes = [axis["name"] for axis in multiscales[0]["axes"]]
    finest = multiscales[0]["datasets"][0]["coordinateTransformations"]
    assert axes == ["z", "y", "x"]
    assert [part["type"] for part in finest] == ["scale", "translation"]
    assert (finest[0]["scale"], finest[1]["translation"]) == ([2, 1, 1], [0, 4, 12])


def test_segment_store__precomputed__is_read_by_tensorstore(bright_networks: None, bench: Bench) -> None:
    """The same labels in neuroglancer's format."""
    bench("precomputed://out")
    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{bench.folder}/out/"}}
    array = ts.open(spec).result()
    np.testing.assert_array_equal(array[ts.d["channel"][0]].read().result().T != 0, EXPECTED)


@pytest.mark.long
def test_segment_store__cremi__keeps_resolution_offset_and_comment(bright_networks: None, tmp_path: Path) -> None:
    """HDF5 in, HDF5 out: objects as clefts, with the attributes of the raw volume; a region moves the offset."""
    path = tmp_path / "sample.hdf"
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("volumes/raw", data=IMAGE)
        raw.attrs.update({"resolution": (2.0, 1.0, 1.0), "offset": (10.0, 20.0, 30.0), "comment": "left half"})
    bench, region = Bench(tmp_path, path), Box((0, 0, 12), (8, 32, 160))
    report = bench("out.hdf", region=region)
    assert "level-1" not in report.seconds  # the format has one level
    with h5py.File(tmp_path / "out.hdf") as file:
        clefts = file["volumes/labels/clefts"]
        labels = clefts[:]
        assert clefts.attrs["comment"] == "left half"
        assert clefts.attrs["resolution"].tolist() == [2, 1, 1]
        assert clefts.attrs["offset"].tolist() == [10, 20, 42]
    labels[labels == 0xFFFF_FFFF_FFFF_FFFF] = 0
    assert_same_objects(labels, EXPECTED[region.slices])


def test_segment_store__one_value_among_zeros__is_an_image(bright_networks: None, bench: Bench) -> None:
    """The zeros around it are cropped away, and what is left has one value; cells in the zeros are empty."""
    image = np.zeros(SHAPE, np.uint8)
    image[2:6, 10:20, 60:130] = 200
    bench.image = write_image(bench.folder / "box.zarr", image)
    bench()
    np.testing.assert_array_equal(bench.labels() != 0, image != 0)


@pytest.mark.long
def test_segment_store__memory_is_full__smaller_cells_are_told_and_work(
    bright_networks: None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that cannot hold a cell of the size that was asked for can hold smaller ones."""
    module = importlib.import_module("coarse2fine.large.segment")
    real = module.segment_cells

    def segment_cells(opened: Any, cores: Sequence[Box], *more: Any) -> Iterator[CellResult]:
        if max(core.volume for core in cores) > 8 * 16 * 20:
            raise MemoryError
        return real(opened, cores, *more)

    monkeypatch.setattr(module, "segment_cells", segment_cells)
    with pytest.raises(UnfinishedError, match=r"out of memory; .* smaller cells \(blocks.cell, with --restart\) take"):
        bench()
    bench(overrides=["blocks.cell=[8, 16, 20]"], restart=True)
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_segment_store__other_settings__are_refused_with_the_difference(
    bright_networks: None, bench: Bench, calls: dict[str, Any]
) -> None:
    """A work folder belongs to one run; how it is done may change, what it gives may not."""
    calls["crash"] = ("segment", 2)
    with pytest.raises(KeyboardInterrupt):
        bench()
    for changes, line in [
        ({"overrides": ["rois.threshold=0.4"]}, r"config\.rois\.threshold: 0\.3 before, 0\.4 now"),
        ({"overrides": ["coarse.foreground=[lesion]"]}, r'config\.coarse\.foreground: null before, \["lesion"\] now'),
        ({"region": Box((0, 0, 0), SHAPE)}, r"volume\.region"),
        ({"objects": True}, r"layout\.output\.objects: false before, true now"),
    ]:
        with pytest.raises(OutputError, match=line):
            bench(**changes)
    calls |= {"crash": None, "count": Counter()}
    bench(objects=True, restart=True)
    assert calls["count"]["segment"] == 4
    assert_same_objects(bench.labels(), EXPECTED)


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("coarse.body_crop={}", ConfigError, "coarse.body_crop"),
        ("rois.empty=one-stage", ConfigError, "rois.empty"),
        ("blocks.coarse_level=5", ConfigError, "coarse_level is 5"),
        ("masked", VolumeError, "use_mask_for_norm"),
        ("channels", VolumeError, "1 channel.*needs 2"),
        ("agent", ModelError, "agent"),
    ],
)
def test_segment_store__what_does_not_fit__is_refused_before_anything_is_read(
    override: str,
    error: type[C2FError],
    message: str,
    bench: Bench,
    model_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A brain takes hours to stream; what its metadata and the models say is known at once."""
    reads: list[Box] = []
    monkeypatch.setattr(LazyArray, "__getitem__", lambda self, key: reads.append(key))
    options: dict[str, Any] = {"masked": {"masked": True}, "channels": {"channels": 2}}.get(override, {})
    folder = model_folder(**options)
    settings = [f"coarse.model={folder}", f"fine.model={folder}"]
    if override == "agent":
        (tmp_path / "agent").mkdir()
        override = f"assign.agent={tmp_path / 'agent'}"
    with pytest.raises(error, match=message):
        bench(overrides=[*settings, *([override] if "=" in override else [])])
    assert not reads
    assert not bench.work("out.zarr").exists()


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(("override", "level"), [("null", 1), ("0", 0)])
def test_segment_store__pyramid__the_coarse_network_reads_the_level_that_fits(
    override: str, level: int, bright_networks: None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coarsest that is fine enough for it, unless a setting names another."""
    bench.image = write_image(bench.folder / "pyramid.zarr", IMAGE, levels=2, chunk=20)
    opened, reads = Source.open, dict[int, list[Box]]({0: [], 1: []})

    def recorded(source: Source) -> Any:
        scales, volumes = opened(source)
        held = zip(volumes, reads.values(), strict=True)
        return scales, tuple(lazy_volume(v.channels[0][:, :, :], v.grid.spacing, here) for v, here in held)

    monkeypatch.setattr(Source, "open", recorded)
    report = bench(overrides=["coarse.spacing=[2, 2, 2]", f"blocks.coarse_level={override}"])
    assert report.layout["coarse_level"] == level
    assert bool(reads[1]) == (level == 1)
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)


@pytest.mark.long
def test_segment_store__share_for_statistics__scans_so_many_blocks(
    bright_networks: None, bench: Bench, calls: dict[str, Any]
) -> None:
    """From one end of the volume to the other, at least one; the rest is only read where something is segmented."""
    bench(overrides=["blocks.statistics=0.5"])
    assert calls["count"]["scan"] == 2
    assert calls["count"]["segment"] == 4
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)
    scanned = Scan.from_dict(json.loads((bench.work("out.zarr") / "data" / "scan.json").read_text()))
    assert scanned.channels[0].total == IMAGE[:, :16, :80].sum() + IMAGE[:, 16:, 80:].sum()
    calls["count"].clear()
    bench("one.zarr", overrides=["blocks.statistics=0.01"])
    assert calls["count"]["scan"] == 1


@pytest.mark.usefixtures("bright_networks")
def test_segment_store__cells_of_an_odd_size__are_told_as_they_are(bench: Bench) -> None:
    """Once, however many cells there are; the result is that of those cells."""
    report = bench(overrides=["blocks.cell=[8, 16, 30]"])
    assert report.warnings == (
        "blocks.cell is [8, 16, 30], but cells end where chunks of the result do, of [4, 8, 20] voxels: they have up "
        "to [8, 16, 40]",
    )
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)


def test_plan_cells__by_default__are_patches_of_the_fine_network_in_the_files_axes(
    model_folder: Callable[..., Path],
) -> None:
    """Four patches of 16 x 8 x 16 at 1 x 2 x 1, turned back and in voxels of the volume, at edges of chunks."""
    turned = {"patch": (16, 8, 16), "spacing": (1.0, 2.0, 1.0), "transpose": (2, 0, 1)}
    models = model_folder(seed=5), model_folder(**turned)
    volume = lazy_volume(np.zeros((64, 640, 640), np.uint8), (1.0, 0.5, 1.0))
    lattice = plan_cells(pipeline_of(models), volume)
    assert lattice.size == (1, 5, 10)
    assert pipeline_of(models).fine.untranspose == (1, 2, 0)
    settings = ["blocks.cell=[32, 320, 64]", "blocks.per_block=[2, 1, 3]"]
    assert plan_cells(pipeline_of(models, settings), volume).size == (2, 2, 10)
    assert plan_cells(pipeline_of(models, settings), volume).per_block == (2, 1, 3)


def test_coarse_level_of__network_with_other_axis_order__wants_voxels_in_the_files_axes(
    model_folder: Callable[..., Path],
) -> None:
    """Spacings of a network and of its setting are in its own axes; without a coarse network the finest level is it."""
    fine, coarse = model_folder(), model_folder(spacing=(2.0, 2.0, 40.0), patch=(16, 16, 8), transpose=(1, 2, 0))
    image = np.zeros((4, 8, 8), np.uint8)
    levels = [lazy_volume(image[:, ::n, ::n].copy(), (40.0, float(n), float(n))) for n in (1, 2, 4)]
    for settings, level in ([], 1), (["coarse.spacing=[5, 4, 40]"], 2), (["mode=one-stage"], 0):
        assert coarse_level_of(pipeline_of((coarse, fine), settings), levels) == level


def test_segment_store__model_that_treats_an_axis_apart__has_the_extremes_of_its_slices(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Overshoot is clipped slice by slice there; nothing is kept along axes that no model treats so."""
    bench, kept = Bench(tmp_path, write_image(tmp_path / "in.zarr", blobs((8, 24, 24)))), []
    flat = model_folder(spacing=(1.0, 9.0, 1.0), patch=(16, 8, 16), transpose=(2, 0, 1))
    plain = model_folder(seed=5), model_folder(seed=6)
    for models, spacing in (((flat, flat), "null"), (plain, "null"), (plain, "[2, 9, 1]")):
        names = [f"coarse.model={models[0]}", f"fine.model={models[1]}", "rois.threshold=0.9", "fine.grow=0"]
        names.append(f"coarse.spacing={spacing}")
        bench(overrides=names, restart=True, overwrite=True)
        scan = json.loads((bench.work("out.zarr") / "data" / "scan.json").read_text())
        kept.append({axis: len(lows) for axis, lows in scan["channels"][0]["lows"].items()})
    assert kept == [{"0": 8}, {}, {"1": 24}]


@pytest.mark.long
def test_segment_store__coarse_level_without_chunks__is_passed_over(
    bright_networks: None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is that of the finest level alone, with a warning; asked for, the level is refused with a remedy."""
    module = importlib.import_module("coarse2fine.large.plan")
    monkeypatch.setattr(module, "coarse_level_of", lambda pipeline, levels: len(levels) - 1)
    bench.image = write_image(bench.folder / "levels.zarr", IMAGE, levels=3, chunk=20)
    for level in ("1", "2"):
        shutil.rmtree(bench.image / level / "c")
    report = bench()
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)
    assert report.layout["coarse_level"] == 0
    assert len(report.warnings) == 2
    assert all("none of its chunks is stored" in warning for warning in report.warnings)
    with pytest.raises(VolumeError, match=r"levels\.zarr/2, scale level 2: none of its chunks") as info:
        bench("asked.zarr", overrides=["blocks.coarse_level=2"])
    assert info.value.remedy == "Leave blocks.coarse_level out, or name another level (below 2)."
    monkeypatch.setattr(module, "coarse_level_of", lambda pipeline, levels: pipeline.config.blocks.coarse_level or 0)
    bench("named.zarr", overrides=["blocks.coarse_level=0"])
    np.testing.assert_array_equal(bench.labels("named.zarr") != 0, EXPECTED)
    shutil.rmtree(bench.image / "0/c")
    with pytest.raises(VolumeError, match=r"none of the .* chunks that were looked for is stored"):
        bench("nothing.zarr")


@pytest.mark.long
def test_segment_store__chunks_missing__matter_to_a_region_that_needs_them_only(
    bright_networks: None, bench: Bench
) -> None:
    """Whoever works on the whole volume is told of each level; whoever works beside the gaps is not bothered."""
    bench.image = write_image(bench.folder / "gaps.zarr", IMAGE, levels=2, chunk=20)
    for chunk in ("0/c/0/0/5", "1/c/0/0/3"):
        (bench.image / chunk).unlink()
    settings, region = ["coarse.spacing=[2, 2, 2]"], Box((0, 0, 0), (8, 32, 80))
    report = bench("part.zarr", overrides=settings, region=region)
    assert report.warnings == ()
    assert report.layout["coarse_level"] == 1
    np.testing.assert_array_equal(bench.labels("part.zarr") != 0, EXPECTED[region.slices])
    report = bench(overrides=settings)
    assert ["1 of 16 chunks" in warning for warning in report.warnings] == [True, False]
    assert "reads level 0 instead" in report.warnings[1]
