"""Cell by cell against the whole volume in memory, and what cells read and leave to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import blobs, write_agent
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from large_volumes import (
    SPACING,
    TWO,
    bar,
    bright_pipeline,
    lazy_volume,
    merged,
    pipeline_of,
    scan_of,
    segment,
    side_by_side,
)
from scipy.ndimage import find_objects, label

from canvas import Box, Triple
from coarse2fine.counts import Tally
from coarse2fine.errors import ConfigError, VolumeError
from coarse2fine.io import Grid, Volume
from coarse2fine.large.cells import CellResult, open_volume, segment_cells
from coarse2fine.large.lattice import Lattice, plan_lattice
from coarse2fine.nnunet.model import Model
from coarse2fine.segmenter import Segmenter
from coarse2fine.selection.features import FeatureSettings
from coarse2fine.system.timing import Run

SHAPE = (16, 40, 36)
OTHER_SPACING = (2.5, 0.8, 1.3)
SPLIT = ["rois.window_step=0.5", "assign.lambda=0.5", "canvas.packing=same_size"]
Models = tuple[Path, Path]


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> dict[str, Models]:
    """Coarse and fine models of several kinds; those of kind ``turned`` have other axis orders than each other."""
    coarse = {"spacing": (4.0, 2.0, 2.0), "seed": 5}
    turned = {"spacing": (2.0, 2.0, 4.0), "patch": (16, 16, 8), "transpose": (1, 2, 0), "seed": 5}
    other = {"spacing": (1.0, 2.0, 1.0), "patch": (16, 8, 16), "transpose": (2, 0, 1), "seed": 6}
    scheme = {"scheme": "RescaleTo01Normalization"}
    plain = model_folder(**coarse)
    return {
        "plain": (plain, model_folder(seed=6)),
        "turned": (model_folder(**turned), model_folder(**other)),
        "rescaling": (model_folder(**coarse, **scheme), model_folder(seed=6, **scheme)),
        "flat": (model_folder(spacing=(9.0, 2.0, 2.0), seed=5), model_folder(spacing=(9.0, 1.0, 1.0), seed=6)),
        "cascade": (plain, model_folder(cascade=True, seed=7)),
        "splines": (
            plain,
            model_folder(
                mirror_axes=(2,), options={"order": 1, "order_z": 5, "force_separate_z": True}, spacing=(3.0, 1.0, 1.0)
            ),
        ),
        "other labels": (
            model_folder(**turned, labels={"background": 0, "x": 1, "y": 2}),
            model_folder(**other, labels={"background": 0, "a": 1, "b": 2, "c": 3}),
        ),
    }


@pytest.fixture(scope="module")
def bright(model_folder: Callable[..., Path]) -> Path:
    """A model folder for networks that see raw intensities on the volume's own grid."""
    return model_folder(scheme="NoNormalization", spacing=SPACING)


# --- the whole volume as one cell, and the same cells in other groups ------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "overrides", "spacing"),
    [
        ("plain", [], SPACING),
        ("plain", [*SPLIT, "coarse.spacing=[3, 3, 3]"], SPACING),
        pytest.param("plain", ["mode=two-stage"], OTHER_SPACING, marks=pytest.mark.long),
        pytest.param("plain", ["fine.outside=coarse"], OTHER_SPACING, marks=pytest.mark.long),
        ("turned", [], OTHER_SPACING),
        ("rescaling", ["rois.threshold=0.5"], SPACING),
        ("flat", [], (5.0, 0.8, 1.3)),
        pytest.param("cascade", ["fine.use_prior=true", "rois.threshold=0.62"], SPACING, marks=pytest.mark.long),
        ("plain", [], (1.0, 0.8, 1.3)),  # thinner than a patch: regions are not packed
        ("other labels", ["coarse.foreground=[y]", "rois.threshold=0.45", "fine.grow=0"], OTHER_SPACING),
    ],
    ids=str,
)
def test_segment_cells__one_cell_of_everything__equals_the_pipeline_in_memory(
    kind: str, overrides: list[str], spacing: tuple[float, float, float], models: dict[str, Models]
) -> None:
    """Voxel for voxel, with a zero border that is cropped, whatever the models do to the volume."""
    image, pipeline = blobs(SHAPE), pipeline_of(models[kind], overrides)
    whole = pipeline(Volume((image,), Grid(SHAPE, spacing), "whole"))
    lattice = plan_lattice(SHAPE, (99, 99, 99), (8, 16, 16))
    results = segment(pipeline, image, lattice, spacing=spacing)
    np.testing.assert_array_equal(side_by_side(results, lattice), whole.labels)
    counts = results[0, 0, 0].counts
    assert counts.selected == whole.report.boxes.selected > 3
    assert counts.boxes == whole.report.boxes
    assert counts.network_inputs == whole.report.canvases
    assert asdict(counts.coverage) == pytest.approx(asdict(whole.report.coverage))
    assert 0.001 < (whole.labels != 0).mean() < 0.9


@pytest.mark.parametrize(
    ("kind", "overrides", "cell"),
    [
        pytest.param("plain", [], (8, 20, 20), marks=pytest.mark.long),
        ("turned", [], (8, 20, 20)),
        ("splines", ["fine.mirroring=true", "fine.tile_step=0.9"], (8, 40, 36)),
    ],
    ids=str,
)
def test_segment_cells__one_stage__equals_the_pipeline_in_memory(
    kind: str, overrides: list[str], cell: Triple, models: dict[str, Models]
) -> None:
    """nnU-Net's sliding window has no seams: even many cells equal it, but for ties that rounding breaks."""
    image, pipeline = blobs(SHAPE), pipeline_of(models[kind], ["mode=one-stage", *overrides])
    whole = pipeline(Volume((image,), Grid(SHAPE, OTHER_SPACING), "whole")).labels
    assert 0.01 < (whole != 0).mean() < 0.5
    passes, working = [], []
    for edges in (SHAPE, cell):
        lattice = plan_lattice(SHAPE, edges, (4, 4, 4), (1, 2, 2))
        results = segment(pipeline, image, lattice, spacing=OTHER_SPACING)
        assert (side_by_side(results, lattice) != whole).mean() < 2e-4
        counts = sum((result.counts for result in results.values()), Tally())
        assert counts.covered == counts.working
        assert counts.canvas_voxels == counts.filled == counts.network_voxels
        passes.append(counts.network_voxels)
        working.append(counts.working)
    assert working[0] == working[1]
    assert passes[1] > passes[0] > working[0]  # tiles overlap, and neighbours run those that touch both


def same(one: dict[Triple, CellResult], other: dict[Triple, CellResult]) -> bool:
    """Whether all cells have the same labels, their own and those around them, and took the same effort."""
    return all(
        result.box == other[cell].box
        and result.counts == other[cell].counts
        and np.array_equal(result.labels, other[cell].labels)
        for cell, result in one.items()
    )


@pytest.mark.parametrize(
    ("kind", "overrides", "spacing"),
    [
        pytest.param(
            *("plain", [*SPLIT, "coarse.patch_size=[2, 8, 4]", "coarse.tile_step=0.7"], SPACING), marks=pytest.mark.long
        ),
        pytest.param("turned", ["fine.outside=coarse"], OTHER_SPACING, marks=pytest.mark.long),
        pytest.param("plain", ["mode=one-stage"], OTHER_SPACING, marks=pytest.mark.long),
        pytest.param("plain", "agent", SPACING, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_segment_cells__other_groups_and_order__the_same_voxel_for_voxel(
    kind: str, overrides: Any, spacing: tuple[float, float, float], models: dict[str, Models], tmp_path: Path
) -> None:
    """What comes of a cell depends on the cell alone, and not on which others are done with it or before it."""
    if overrides == "agent":
        agent = write_agent(
            tmp_path / "agent", models[kind], SPLIT, features=FeatureSettings("coarse", global_info=True), kind="policy"
        )
        overrides = [*SPLIT, f"assign.agent={agent}", "assign.budget=20"]
    image, pipeline = blobs(SHAPE), pipeline_of(models[kind], overrides)
    groups: list[dict[Triple, CellResult]] = []
    for per_block, order in (((1, 1, 1), 1), ((1, 2, 2), -1), ((2, 1, 2), 1), ((9, 9, 9), -1)):
        lattice = plan_lattice(SHAPE, (8, 20, 18), (4, 4, 4), per_block)
        assert lattice.size == (2, 2, 2)
        groups.append(segment(pipeline, image, lattice, spacing=spacing, order=order))
    assert merged(groups[0], lattice).any()
    assert [same(groups[0], group) for group in groups] == [True] * 4


# --- objects across borders of cells ---------------------------------------------------------------------------------

GROWING = ["fine.grow=9", "fine.grow_step=[2, 8, 8]", "blocks.halo=[4, 16, 24]"]


def test_segment_cells__object_seen_coarsely_on_one_side_only__is_found_whole_around_the_cell(bright: Path) -> None:
    """Its mask is followed out of the cell; side by side cells cut it, merged they have all of it."""
    image = bar(20, 50, ((0, 200), (30, 120)))
    results = segment(bright_pipeline(bright, GROWING, coarse=150, fine=60), image, TWO)
    expected = image > 60
    np.testing.assert_array_equal(merged(results, TWO) != 0, expected)
    cut = side_by_side(results, TWO) != 0
    np.testing.assert_array_equal(cut[..., :32], expected[..., :32])
    assert not cut[..., 32:].any()


def test_segment_cells__halo__is_how_far_a_mask_is_followed(bright: Path) -> None:
    """Beyond the halo nobody looks; by default it is a slot, here 4 x 8 x 8."""
    image = bar(20, 60, ((0, 200), (30, 120)))
    for halo, end in (("[4, 16, 12]", 44), ("[0, 0, 0]", 32), ("null", 40)):
        pipeline = bright_pipeline(bright, [*GROWING[:2], f"blocks.halo={halo}"], coarse=150, fine=60)
        found = np.flatnonzero(merged(segment(pipeline, image, TWO), TWO).any(axis=(0, 1)))
        assert (found[0], found[-1] + 1) == (20, end)


@pytest.mark.parametrize(("spacing", "halo"), [(SPACING, (4, 8, 8)), ((1.0, 0.5, 2.0), (8, 16, 4))])
def test_open_scene__no_halo_given__is_a_slot_in_voxels_of_the_file(
    spacing: tuple[float, float, float], halo: Triple, bright: Path
) -> None:
    """The slot of 4 x 8 x 8 voxels is the network's; a file of other voxel size has as much space around a cell."""
    image = np.ones((16, 32, 32), np.uint8)
    pipeline = bright_pipeline(bright, coarse=150, fine=60)
    assert open_volume(pipeline, [lazy_volume(image, spacing)], scan_of(image), 0).halo == halo


def test_segment_cells__model_with_other_axis_order__follows_as_far(model_folder: Callable[..., Path]) -> None:
    """Halo and cells are in the file's axis order, whatever the network's is."""
    options = {"spacing": (1.0, 1.0, 2.0), "patch": (16, 16, 8), "transpose": (2, 1, 0)}
    folder = model_folder(scheme="NoNormalization", **options)
    settings = ["fine.grow=9", "fine.grow_step=[8, 8, 2]", "blocks.halo=[1, 4, 24]"]
    image = bar(20, 50, ((0, 200), (30, 120)))
    results = segment(bright_pipeline(folder, settings, coarse=150, fine=60), image, TWO)
    np.testing.assert_array_equal(merged(results, TWO) != 0, image > 60)


def test_segment_cells__boxes_of_the_neighbour__are_not_followed_into(
    bright: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both cells know of the object: each segments its side of it, and what the other one does is not done twice."""
    image, pipeline = bar(20, 50), bright_pipeline(bright, GROWING, coarse=150, fine=60)
    shared = segment(pipeline, image, TWO)
    segment_all, left = Segmenter.segment, []

    def segment_alone(*args: Any, elsewhere: list[Box], **more: Any) -> Any:
        left.append(elsewhere)
        return segment_all(*args, **more)

    monkeypatch.setattr(Segmenter, "segment", segment_alone)
    alone = segment(pipeline, image, TWO)
    # Counted from the start of each window; the second begins a halo before its cell.
    assert min(box.start[2] for box in left[0]) == 32
    assert max(box.stop[2] for box in left[1]) == 24
    for results in (shared, alone):
        np.testing.assert_array_equal(merged(results, TWO) != 0, image > 60)
    counts = [
        {name: sum(getattr(r.counts, name) for r in results.values()) for name in ("grown", "canvases")}
        for results in (shared, alone)
    ]
    assert counts[0]["grown"] == 0 < counts[1]["grown"]
    assert counts[0]["canvases"] < counts[1]["canvases"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Lattice, list[str]]:
    """A volume with some bright objects, cells, and settings, among them a halo that holds each object."""
    shape = draw(st.tuples(st.integers(4, 12), st.integers(12, 30), st.integers(12, 30)))
    image = np.ones(shape, np.uint8)
    for _ in range(draw(st.integers(1, 5))):
        start = [draw(st.integers(0, edge - 1)) for edge in shape]
        image[Box.of(start, draw(st.tuples(*[st.integers(1, 6)] * 3))).clip(Box.whole(shape)).slices] = 200
    edges = tuple(tuple(sorted({0, size, *draw(st.lists(st.integers(1, size), max_size=2))})) for size in shape)
    names, _ = label(image > 1, np.ones((3, 3, 3)))
    longest = [max((s[axis].stop - s[axis].start for s in find_objects(names)), default=1) for axis in range(3)]
    return (
        image,
        Lattice(edges, draw(st.tuples(*[st.integers(1, 3)] * 3))),
        [
            # Coarse voxels that overlap an object a little belong to it, and may join two objects.
            f"blocks.halo={[edge + 12 for edge in longest]}",
            f"coarse.spacing={draw(st.sampled_from(['[2, 1, 1]', '[4, 2, 2]', '[3, 1.7, 2.3]']))}",
            f"rois.heatmap_voxel={draw(st.sampled_from(['null', '[2, 3, 5]']))}",
            f"rois.min_edge={draw(st.sampled_from([0, 4]))}",
            f"rois.min_voxels={draw(st.sampled_from([0, 9]))}",
            f"fine.outside={draw(st.sampled_from(['background', 'coarse']))}",
        ],
    )


@pytest.mark.long
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(cases())
def test_segment_cells__objects_that_the_halo_holds__are_those_of_the_run_in_memory(
    bright: Path, case: tuple[np.ndarray, Lattice, list[str]]
) -> None:
    """Wherever cells' borders run: what is too small is so for all of them, and the rest is found once and whole."""
    image, lattice, overrides = case
    fixed = ["fine.grow=0", "assign.agent=all_children", "fine.large_boxes=native", "canvas.norm=canvas"]
    pipeline = bright_pipeline(bright, [*fixed, *overrides], coarse=100, fine=60)
    whole = pipeline(Volume((image,), Grid(image.shape, SPACING), "whole"))
    results = segment(pipeline, image, lattice)
    np.testing.assert_array_equal(merged(results, lattice), whole.labels)
    assert sum(result.counts.selected for result in results.values()) == whole.report.boxes.selected


# --- what is read and run -------------------------------------------------------------------------------------------


def test_open_volume__axes_turned__halo_is_a_slot_along_the_files_axes(models: dict[str, Models]) -> None:
    """Rounded up: a slot is 8 x 4 x 8 mm, 2 mm and 1 mm voxels of axes x, z, y; the file has 2.5, 0.8 and 1.3 mm."""
    image = blobs(SHAPE, seed=3) + 1  # nothing is cropped
    opened = open_volume(
        pipeline_of(models["turned"]), [lazy_volume(image, OTHER_SPACING)], scan_of(image, (2, 0, 1)), 0
    )
    assert opened.halo == (4, 10, 7)


def test_segment_cells__nothing_in_a_cell__neither_network_nor_finest_level_are_touched(
    bright: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty cell costs a look at the coarse level; one with an object also reads around the object."""
    image, pipeline = bar(36, 50), bright_pipeline(bright, ["coarse.spacing=[2, 2, 2]"], coarse=150, fine=60)
    fine_reads: list[Box] = []
    coarse_reads: list[Box] = []
    levels = [
        lazy_volume(image, SPACING, fine_reads),
        lazy_volume(image[:, ::2, ::2].copy(), (2.0, 2.0, 2.0), coarse_reads),
    ]
    scene = open_volume(pipeline, levels, scan_of(image), 1)
    assert scene.coarse_shape == (8, 16, 32)  # of coarse.spacing, not of the model's
    assert not fine_reads + coarse_reads
    passes: list[Model] = []
    forward = Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, *a, **k: passes.append(self) or forward(self, *a, **k))
    empty, full = (
        (next(segment_cells(scene, [TWO.core(cell)], Run())), len(fine_reads), {m.networks[0].level for m in passes})
        for cell in TWO.cells()
    )
    assert (empty[1], empty[2], empty[0].counts.canvases, empty[0].labels.any()) == (0, {150}, 0, False)
    assert full[1] > 0
    assert full[2] == {150, 60}
    assert full[0].labels.any()
    assert coarse_reads
    for cell, (found, *_) in zip(TWO.cells(), (empty, full), strict=True):
        assert found.counts.working == TWO.core(cell).volume
    # The first cell sees some of the object around it, which is the other's.
    assert empty[0].counts.mass == pytest.approx(0, abs=1e-3)
    assert full[0].counts.mass > 10


def test_segment_cells__coarse_labels_outside__give_way_in_the_neighbour_to_what_the_fine_network_decided(
    bright: Path,
) -> None:
    """What the fine network takes back is taken back on both sides of a border, as it is in memory."""
    image = bar(20, 50, ((0, 200), (30, 120)))
    settings = ["fine.outside=coarse", "fine.grow=0", "blocks.halo=[4, 16, 24]"]
    pipeline = bright_pipeline(bright, settings, coarse=60, fine=150)
    whole = pipeline(Volume((image,), Grid(image.shape, SPACING), "whole")).labels
    np.testing.assert_array_equal(whole != 0, image > 150)
    np.testing.assert_array_equal(merged(segment(pipeline, image, TWO), TWO), whole)


def test_segment_cells__coarse_labels_outside__stay_where_no_region_is_found(bright: Path) -> None:
    """What is too small for a region is still what the coarse network saw."""
    image = bar(10, 16)
    pipeline = bright_pipeline(bright, ["fine.outside=coarse", "rois.min_voxels=9999"], coarse=150, fine=60)
    np.testing.assert_array_equal(merged(segment(pipeline, image, TWO), TWO) != 0, image > 150)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["accelerated", "one-stage"])
def test_segment_cells__larger_volume__is_not_read_in_larger_pieces(mode: str, bright: Path) -> None:
    """What a block holds in memory depends on its cells, never on the volume."""
    pipeline = bright_pipeline(bright, [f"mode={mode}"], coarse=150, fine=60)
    largest = []
    for count in (3, 6):
        image = np.tile(bar(4, 20, shape=(8, 32, 24)), (1, count, count))
        reads: list[Box] = []
        scene = open_volume(pipeline, [lazy_volume(image, SPACING, reads)], scan_of(image), 0)
        lattice = plan_lattice(image.shape, (8, 32, 24), (8, 8, 8))
        for cell in lattice.cells():
            assert next(segment_cells(scene, [lattice.core(cell)], Run())).labels.any()
        largest.append(max(box.volume for box in reads))
    assert largest[0] == largest[1] < 3 * image.size / 4


# --- what cannot be done this way ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("coarse.body_crop={}", "coarse.body_crop"),
        ("rois.empty=one-stage", "rois.empty: one-stage"),
        ("cascade", "one-stage, with a cascade"),
    ],
)
def test_open_scene__settings_that_need_the_whole_volume__are_refused(
    override: str, name: str, models: dict[str, Models]
) -> None:
    """Named, with the remedy."""
    if override == "cascade":
        pipeline = pipeline_of(models["cascade"], ["fine.use_prior=true", "mode=one-stage"])
    else:
        pipeline = pipeline_of(models["plain"], [override])
    image = blobs(SHAPE)
    with pytest.raises(ConfigError, match=name):
        open_volume(pipeline, [lazy_volume(image)], scan_of(image), 0)


def test_open_scene__model_that_normalises_inside_of_a_mask__is_refused(model_folder: Callable[..., Path]) -> None:
    """The mask of the whole volume is not known here."""
    image = blobs(SHAPE)
    for masked in ("coarse", "fine"):
        folders = (model_folder(masked=masked == "coarse"), model_folder(masked=masked == "fine"))
        with pytest.raises(VolumeError, match="use_mask_for_norm"):
            open_volume(pipeline_of(folders), [lazy_volume(image)], scan_of(image), 0)
