"""The main path: on the shipped CT with the shipped models, and on tiny models that cover every kind of setting."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import blobs, write_agent

from canvas import Box
from coarse2fine.config.reader import load_config
from coarse2fine.demo import IMAGE, REFERENCE, demo_pipeline
from coarse2fine.errors import ModelError
from coarse2fine.evaluation.masks import dice
from coarse2fine.fine import canvases as packing
from coarse2fine.fine.sizes import plan_sizes
from coarse2fine.io import Grid, LazyArray, Volume, read_volume
from coarse2fine.nnunet.instance_norm import NormStatistics, measure_statistics
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline, Result
from coarse2fine.selection.features import FeatureSettings

SPACING, SHAPE = (2.0, 1.0, 1.0), (24, 48, 48)
# The tiny models are untrained: their heatmap hovers around one half; this threshold cuts several regions out of it.
THRESHOLD = 0.55
SPLIT = ["rois.window_step=0.5", "assign.lambda=0.5", "canvas.packing=same_size"]


@pytest.fixture(scope="module")
def tiny(model_folder: Callable[..., Path]) -> tuple[Path, Path]:
    """A coarse and a fine model."""
    return model_folder(spacing=(4.0, 2.0, 2.0), seed=5), model_folder(seed=6)


def run(models: tuple[Path, Path], overrides: Sequence[str] = (), volume: Volume | None = None) -> Result:
    coarse, fine = models
    image = blobs(SHAPE)
    settings = ["fine.mirroring=false", f"rois.threshold={THRESHOLD}", "fine.grow=0", *overrides]
    config = load_config(None, [f"coarse.model={coarse}", f"fine.model={fine}", *settings])
    return Pipeline.from_config(config)(volume or Volume((image,), Grid(image.shape, SPACING), "blobs"))


@pytest.fixture(scope="module")
def plain(tiny: tuple[Path, Path]) -> Result:
    """A run with default settings."""
    return run(tiny)


@pytest.fixture(scope="module")
def split(tiny: tuple[Path, Path]) -> Result:
    """A run whose tree has large parents, of which the rule keeps some and splits others."""
    return run(tiny, SPLIT)


def test_demo__shipped_volume_and_models__finds_the_nodule() -> None:
    """A few canvases of the fine network find the real nodule, and nothing else anywhere in the chest."""
    result = demo_pipeline()(read_volume([IMAGE]))
    assert dice(result.labels > 0, read_volume([REFERENCE]).channels[0] > 0) > 0.8
    assert result.report.coverage.volume < 0.01
    assert result.report.canvases.count <= 3
    timing = dataclasses.asdict(result.report.timing_s)
    assert sum(seconds for stage, seconds in timing.items() if stage != "total") == pytest.approx(
        timing["total"], rel=0.1
    )


def test_two_stage__heatmap_everywhere__equals_one_stage(tiny: tuple[Path, Path]) -> None:
    """If everything is of interest, native tiles inside the one box are nnU-Net's own sliding window."""
    everywhere = run(tiny, ["mode=two-stage", "rois.threshold=0", "rois.window=[99, 199, 199]"])
    one_stage = run(tiny, ["mode=one-stage"])
    assert everywhere.report.boxes.selected == 1
    # Accumulation differs (nnU-Net adds up in half precision), so ties near label borders may fall either way.
    assert (everywhere.labels != one_stage.labels).mean() < 0.002
    assert 0.02 < (one_stage.labels != 0).mean() < 0.9


def test_run__default__labels_only_inside_selected_boxes(plain: Result) -> None:
    """Foreground appears in processed boxes only, in several of them, and the report counts what was done."""
    inside = np.zeros(plain.labels.shape, bool)
    offset = np.argwhere(blobs(SHAPE) != 0).min(0)
    for box in plain.boxes:
        inside[tuple(slice(a + o, b + o) for a, b, o in zip(box.start, box.stop, offset, strict=True))] = True
    assert (plain.labels[~inside] == 0).all()
    assert (plain.labels[inside] != 0).any()
    report = plain.report
    assert report.boxes.selected == len(plain.boxes) > 3
    assert 0 < report.coverage.volume < 0.9
    assert 0 < report.canvases.fill <= 1


def regions(result: Result) -> tuple[int, ...]:
    """How many regions were found, chosen and dropped."""
    boxes = result.report.boxes
    return boxes.children, boxes.parents, boxes.selected, boxes.dropped


def seen(result: Result) -> tuple[Box, ...]:
    return tuple(sorted(result.boxes, key=lambda box: (box.start, box.stop)))


def foreground(result: Result) -> int:
    return int((result.labels != 0).sum())


CHANGES: dict[str, Callable[[Result, Result], bool]] = {
    # How the same boxes are shown to the network.
    "canvas.enabled=false": lambda now, was: now.report.canvases.count == len(was.boxes),
    "canvas.capacity=1": lambda now, was: now.report.canvases.count == len(was.boxes),
    "canvas.capacity=4": lambda now, was: now.report.canvases.count == math.ceil(len(was.boxes) / 4),
    "canvas.norm=canvas": lambda now, was: now.report.canvases.network_voxels == was.report.canvases.voxels,
    "canvas.norm=slot": lambda now, was: now.report.canvases.network_voxels == was.report.canvases.voxels,
    "fine.postprocess=resize_only": lambda now, was: now.report.canvases == was.report.canvases,
    "fine.crop_threshold=[2, 4, 4]": lambda now, was: now.report.canvases == was.report.canvases,
    "fine.mirroring=true": lambda now, was: now.report.canvases == was.report.canvases,
    "fine.outside=coarse": lambda now, was: foreground(now) > foreground(was),
    # Which boxes: `regions` differ, as each says.
    "canvas.packing=same_scale": lambda now, was: regions(now)[1] < regions(was)[1],  # windows are larger
    "fine.large_boxes=native": lambda now, was: all(box.fits((4, 8, 8)) for box in now.boxes),
    "fine.grow=2": lambda now, was: now.report.boxes.grown > 0 and set(regions(now)) == set(regions(was)),
    "assign.agent=all_children": lambda now, was: regions(now)[2] == regions(was)[0],
    "assign.agent=all_parents": lambda now, was: regions(now)[2] == regions(was)[1],
    "assign.agent=random": lambda now, was: regions(now)[3] > 0,
    "assign.agent=top_k": lambda now, was: regions(now)[2] + regions(now)[3] == regions(was)[1],
    "assign.drop=true": lambda now, was: 0 < regions(now)[3] < regions(was)[1] / 10,
    "rois.margin=[1, 2, 2]": lambda now, was: now.report.coverage.volume > 2 * was.report.coverage.volume,
    "rois.window=[4, 6, 6]": lambda now, was: regions(now)[0] > regions(was)[0],  # smaller than a slot
    "rois.heatmap_voxel=[2, 6, 6]": lambda now, was: now.report.coverage.volume > was.report.coverage.volume,
    "rois.min_edge=8": lambda now, was: regions(now)[1] < regions(was)[1] and set(now.boxes) < set(was.boxes),
    "rois.min_voxels=20": lambda now, was: regions(now)[1] < regions(was)[1] and set(now.boxes) < set(was.boxes),
    "coarse.mirroring=true": lambda now, was: regions(now)[1] < regions(was)[1],  # means are less extreme
    "coarse.tile_step=0.2": lambda now, was: regions(now)[1] < regions(was)[1],  # likewise
    "coarse.spacing=[3.0, 3.0, 3.0]": lambda now, was: regions(now)[0] != regions(was)[0],
    "coarse.patch_size=[4, 12, 12]": lambda now, was: regions(now)[0] != regions(was)[0],
    "coarse.body_crop={above: 120, margin_mm: 4}": lambda now, was: (
        now.report.coverage.volume < was.report.coverage.volume / 2
    ),
}
SAME_BOXES = (
    "canvas.enabled",
    "canvas.capacity",
    "canvas.norm",
    "fine.postprocess",
    "fine.crop",
    "fine.mirr",
    "fine.out",
)


SLOW = {"rois.heatmap_voxel=[2, 6, 6]", "rois.margin=[1, 2, 2]", "canvas.capacity=1", "fine.grow=2"}


@pytest.mark.parametrize("override", [pytest.param(one, marks=[pytest.mark.long] * (one in SLOW)) for one in CHANGES])
def test_run__one_setting_changed__changes_what_it_is_for(
    override: str, tiny: tuple[Path, Path], split: Result
) -> None:
    """Every setting reaches the computation and changes what it names; labels follow, boxes only if they are meant."""
    result = run(tiny, [*SPLIT, override])
    assert result.labels.shape == split.labels.shape
    assert set(np.unique(result.labels)) <= {0, 1}
    assert (result.labels != split.labels).any()
    assert CHANGES[override](result, split)
    assert (seen(result) == seen(split)) == override.startswith(SAME_BOXES)


def test_run__few_boxes__get_canvases_of_their_own(tiny: tuple[Path, Path]) -> None:
    """Packing few boxes saves less than measuring statistics would cost, so each is shown alone; many are packed."""
    thresholds = [("0.65", 9), ("0.6", 1)]
    few, many = (run(tiny, [f"rois.threshold={level}", f"canvas.norm_tiles={n}"]).report for level, n in thresholds)
    assert few.canvases.count == few.boxes.selected > 1
    assert many.canvases.count < many.boxes.selected


def test_run__canvases_with_unused_ends__are_trimmed(tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is spared what no crop reaches; with frozen statistics nearly every voxel stays the same."""
    settings = ["rois.window=[4, 8, 8]", "canvas.size=[8, 48, 48]", "canvas.norm_tiles=1"]
    trimmed = run(tiny, settings)
    monkeypatch.setattr(packing, "trim", lambda canvas, divisor: canvas)
    whole = run(tiny, settings)
    assert trimmed.report.canvases.count == whole.report.canvases.count
    assert trimmed.report.canvases.voxels < whole.report.canvases.voxels
    assert trimmed.report.canvases.fill > whole.report.canvases.fill
    assert np.mean(trimmed.labels != whole.labels) < 0.01


def test_plan_canvases__of_several_sizes__largest_first(tiny: tuple[Path, Path]) -> None:
    """The memory of its feature maps is then large enough for all others; as packed, it would come in between."""
    config = load_config(None, ["canvas.size=[8, 48, 48]", "canvas.context=[0, 0, 0]"])
    plan, volume = plan_sizes(config, load_model(tiny[1])), (64, 64, 64)
    edges = np.random.default_rng(0).integers([2, 4, 4], [9, 40, 40], (40, 3))
    boxes = [Box.of((0, 0, 0), edge) for edge in edges.tolist()]
    canvases = packing.plan_canvases(boxes, config, plan, volume)
    sizes = [prod(canvas.shape) for canvas in canvases]
    assert sizes[0] == max(sizes) > min(sizes)
    shown = sorted(placement.crop for canvas in canvases for placement in canvas.placements)
    assert shown == list(range(len(boxes)))


def test_run__outside_coarse__keeps_the_coarse_result_there(tiny: tuple[Path, Path], plain: Result) -> None:
    """Outside of all boxes the coarse labels stand; inside nothing changes."""
    coarse = run(tiny, ["fine.outside=coarse"]).labels
    only_coarse = run(tiny, ["fine.outside=coarse", "rois.min_voxels=1e9"]).labels
    np.testing.assert_array_equal(np.where(plain.labels != coarse, only_coarse, coarse), coarse)
    assert (coarse != plain.labels).any()


def test_run__empty_heatmap__does_what_the_configuration_says(tiny: tuple[Path, Path]) -> None:
    """Nothing above the threshold: background with a warning, or a one-stage run."""
    empty = run(tiny, ["rois.threshold=0.999"])
    assert not empty.labels.any()
    assert empty.report.warnings
    fallback = run(tiny, ["rois.threshold=0.999", "rois.empty=one-stage"])
    np.testing.assert_array_equal(fallback.labels, run(tiny, ["mode=one-stage"]).labels)
    assert fallback.report.mode == "one-stage"


def test_run__something_found__is_not_run_in_one_stage(tiny: tuple[Path, Path], plain: Result) -> None:
    """What is to happen where nothing is found changes nothing elsewhere."""
    result = run(tiny, ["rois.empty=one-stage"])
    np.testing.assert_array_equal(result.labels, plain.labels)
    assert (result.report.mode, result.report.warnings) == ("accelerated", ())


@pytest.mark.long
def test_run__models_with_other_axis_order__agree_with_the_plain_order(model_folder: Callable[..., Path]) -> None:
    """A coarse and a fine model may transpose axes differently: boxes still lie where the heatmap is."""
    coarse = model_folder(spacing=(2.0, 2.0, 4.0), patch=(16, 16, 8), transpose=(1, 2, 0), seed=5)
    fine = model_folder(spacing=(1.0, 2.0, 1.0), patch=(16, 8, 16), transpose=(2, 0, 1), seed=6)
    image = blobs((24, 48, 40))
    volume = Volume((image,), Grid(image.shape, SPACING), "blobs")
    result = run((coarse, fine), ["mode=two-stage", "rois.threshold=0", "rois.window=[199, 199, 199]"], volume)
    one_stage = run((coarse, fine), ["mode=one-stage"], volume)
    assert result.labels.shape == image.shape
    assert (result.labels != one_stage.labels).mean() < 0.002
    # The coarse result is laid out on the fine model's axes; painted, it must be what nnU-Net would paint.
    painted = run((coarse, fine), ["fine.outside=coarse", "rois.min_voxels=1e9"], volume).labels
    alone = run((fine, coarse), ["mode=one-stage"], volume).labels
    assert (painted != alone).mean() < 0.002
    assert 0.02 < (alone != 0).mean() < 0.9


@pytest.mark.long
def test_run__cascade__takes_the_coarse_labels_as_input(
    model_folder: Callable[..., Path], tiny: tuple[Path, Path]
) -> None:
    """A cascade's extra channels hold the coarse labels: another coarse model gives another result."""
    fine = model_folder(cascade=True, seed=7)
    assert run((tiny[0], fine), ["fine.use_prior=true"]).labels.any()
    with pytest.raises(ModelError, match="use_prior"):
        run((tiny[0], fine))
    with pytest.raises(ModelError, match="takes no previous result"):
        run(tiny, ["fine.use_prior=true"])
    settings = ["fine.use_prior=true", "mode=two-stage", "rois.threshold=0", "rois.window=[99, 199, 199]"]
    other = model_folder(spacing=(4.0, 2.0, 2.0), seed=8)
    assert (run((tiny[0], fine), settings).labels != run((other, fine), settings).labels).any()
    assert (
        run((tiny[0], fine), settings).labels != run((tiny[0], fine), ["mode=one-stage", *settings[:1]]).labels
    ).mean() < 0.002


def test_from_config__folds_and_checkpoints__are_those_of_each_section(model_folder: Callable[..., Path]) -> None:
    """A model is never loaded with what the other one's section says."""
    coarse, fine = model_folder(folds=("0", "1")), model_folder()
    for fold in ("0", "1"):
        folder = coarse / f"fold_{fold}"
        (folder / "checkpoint_final.pth").rename(folder / "checkpoint_best.pth")
    sections = ["coarse.folds=[1]", "coarse.checkpoint=checkpoint_best.pth", "fine.folds=[all]"]
    pipeline = Pipeline.from_config(load_config(None, [f"coarse.model={coarse}", f"fine.model={fine}", *sections]))
    assert [(model.folder, model.folds) for model in pipeline.models] == [(coarse, ("1",)), (fine, ("all",))]


def test_pipeline__models_of_other_channels__are_refused(
    model_folder: Callable[..., Path], tiny: tuple[Path, Path]
) -> None:
    """An error before anything runs."""
    with pytest.raises(ModelError, match="channel"):
        run((tiny[0], model_folder(channels=2)))


def test_run__several_channels_classes_regions_folds__work_together(model_folder: Callable[..., Path]) -> None:
    """Two channels, overlapping regions and two folds, accelerated and one-stage."""
    options = {
        "channels": 2,
        "labels": {"background": 0, "whole": [1, 2], "core": [2]},
        "regions_class_order": [1, 2],
        "folds": ("0", "1"),
    }
    models = model_folder(spacing=(4.0, 2.0, 2.0), seed=1, **options), model_folder(seed=2, **options)
    channels = tuple(blobs((16, 40, 40), seed=seed) for seed in (0, 1))
    volume = Volume(channels, Grid(channels[0].shape, SPACING), "two")
    everywhere = run(models, ["mode=two-stage", "rois.threshold=0", "rois.window=[99, 199, 199]"], volume)
    one_stage = run(models, ["mode=one-stage"], volume)
    assert {1, 2} <= set(np.unique(one_stage.labels))
    assert (everywhere.labels != one_stage.labels).mean() < 0.002


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("none", "policy"),
        ("coarse", "gains"),
        pytest.param("coarse", "policy", marks=pytest.mark.long),
        pytest.param("fine", "gains", marks=pytest.mark.long),
    ],
)
def test_run__trained_agent__chooses_and_is_named_in_the_report(
    source: Any, kind: str, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    """The boxes that are processed are those that the agent chose; what it looked at is booked where it belongs."""
    folder = write_agent(tmp_path / "agent", tiny, SPLIT, features=FeatureSettings(source), kind=kind)
    result = run(tiny, [*SPLIT, f"assign.agent={folder}"])
    assert result.report.agent == {"name": str(folder), "kind": kind}
    assert result.report.warnings == ()
    assert result.tree is not None
    assert result.labels.any()
    nodes = {roi.box for roi in result.tree.rois}
    assert set(result.boxes) <= nodes
    looked = result.report.network_s.assign
    assert (looked > 0) == (source == "fine")
    assert looked <= result.report.timing_s.assign
    again = run(tiny, [*SPLIT, f"assign.agent={folder}"])
    assert again.boxes == result.boxes
    np.testing.assert_array_equal(again.labels, result.labels)


@pytest.mark.long
def test_run__agent_with_a_budget__keeps_to_it_and_reports_what_it_dropped(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    """The budget caps the slots, families with nothing chosen are counted, and the heatmap's mass outside shows."""
    folder = write_agent(tmp_path / "agent", tiny, SPLIT, kind="policy")
    free, tight, nothing = (
        run(tiny, [*SPLIT, f"assign.agent={folder}", f"assign.budget={budget}"]) for budget in ("null", 3, 0)
    )
    assert len(free.boxes) > 3
    assert len(tight.boxes) == 3  # in same-size packing every box is one slot
    assert tight.tree is not None
    families = zip(tight.tree.parents, tight.tree.children, strict=True)
    empty = [not {parent.box, *(roi.box for roi in children)} & set(tight.boxes) for parent, children in families]
    assert tight.report.boxes.dropped == sum(empty) > 0
    assert nothing.report.boxes.dropped == nothing.report.boxes.parents
    assert not nothing.labels.any()
    masses = [result.report.coverage.heatmap_mass for result in (free, tight, nothing)]
    assert masses[0] > masses[1] > masses[2] == 0


def test_run__rule__is_named_and_drops_nothing(plain: Result, tiny: tuple[Path, Path]) -> None:
    """A rule is who chose, every parent stays covered, and two-stage mode has a rule of its own."""
    assert plain.report.agent == {"name": "greedy", "kind": "rule"}
    assert plain.report.boxes.dropped == 0
    two_stage = run(tiny, ["mode=two-stage", "assign.agent=./no/such/agent"]).report
    assert two_stage.agent == {"name": "all_parents", "kind": "rule"}
    one_stage = run(tiny, ["mode=one-stage", "assign.agent=./no/such/agent"]).report
    assert one_stage.agent == {}


def test_run__agent_beyond_its_experience__warns_in_the_report(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    """A lambda that the agent was not trained for is worth a warning, not an error."""
    folder = write_agent(tmp_path / "agent", tiny)
    (warning,) = run(tiny, [f"assign.agent={folder}", "assign.lambda=0.6"]).report.warnings
    assert "assign.lambda 0.6 is outside of 0.01 to 0.5" in warning


@pytest.mark.parametrize("source", ["coarse", "fine"])
@pytest.mark.parametrize("part", [(1, 1, 1), (1, 40, 40), (3, 5, 30), (22, 3, 3)], ids=str)
def test_run__agent_on_a_tiny_volume__works(
    source: Any, part: tuple[int, int, int], tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    """Volumes smaller than a tile, a slot or the network's stride have features too."""
    folder = write_agent(tmp_path / "agent", tiny, features=FeatureSettings(source, "resize", global_info=True))
    image = blobs(SHAPE)[Box.of((2, 3, 3), part).slices].copy()
    volume = Volume((image,), Grid(image.shape, SPACING), "part")
    result = run(tiny, [f"assign.agent={folder}", "rois.threshold=0.3"], volume)
    assert result.labels.shape == part
    assert result.report.boxes.parents > 0


@pytest.mark.parametrize("source", ["coarse", "fine"])
def test_run__agent_and_models_with_other_axis_order__work_together(
    source: Any, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Features are found where the regions are, with the body cropped, however the models turn their axes."""
    coarse = model_folder(spacing=(2.0, 2.0, 4.0), patch=(16, 16, 8), transpose=(1, 2, 0), seed=5, folds=("0", "1"))
    fine = model_folder(spacing=(1.0, 2.0, 1.0), patch=(16, 8, 16), transpose=(2, 0, 1), seed=6)
    folder = write_agent(tmp_path / "agent", (coarse, fine), features=FeatureSettings(source), kind="policy")
    image = blobs((24, 48, 40))
    settings = [f"assign.agent={folder}", "rois.threshold=0.5", "coarse.body_crop={above: 120, margin_mm: 4}"]
    result = run((coarse, fine), settings, Volume((image,), Grid(image.shape, SPACING), "blobs"))
    assert result.labels.shape == image.shape
    assert result.report.boxes.selected > 0


@pytest.mark.long
def test_run__norm_case__is_measured_on_the_same_tiles_whatever_is_chosen(
    tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a box yields does not depend on which others are chosen, so that an agent can count on it."""
    seen: list[list[np.ndarray]] = []

    def record(model: Model, tiles: Sequence[np.ndarray]) -> NormStatistics:
        seen.append(list(tiles))
        return measure_statistics(model, tiles)

    monkeypatch.setattr(importlib.import_module("coarse2fine.fine.inputs"), "measure_statistics", record)
    for rule in ("all_children", "all_parents"):
        assert run(tiny, [*SPLIT, f"assign.agent={rule}", "canvas.norm=case"]).report.canvases.count > 1
    first, second = seen
    assert len(first) == 3
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("mode", ["accelerated", "one-stage"])
def test_run__volume_that_is_read_by_region__is_read_once_with_the_same_labels(
    mode: str, tiny: tuple[Path, Path]
) -> None:
    """Volumes of stores are taken like those in memory."""
    image = blobs(SHAPE)
    reads: list[Box] = []

    def load(box: Box) -> np.ndarray:
        reads.append(box)
        return image[box.slices]

    grid = Grid(SHAPE, SPACING)
    lazy = run(tiny, [f"mode={mode}"], Volume((LazyArray(SHAPE, image.dtype, load),), grid, "lazy"))
    np.testing.assert_array_equal(lazy.labels, run(tiny, [f"mode={mode}"]).labels)
    assert lazy.labels.any()
    assert reads == [Box.whole(SHAPE)]
    assert lazy.report.timing_s.read > 0 == lazy.report.timing_s.write
