"""Segmenting cells of a volume that is read by region: the main path, within a window around each cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assignnet import Roi, RoiTree
from canvas import Box, Triple, triple
from coarse2fine.coarse.heatmap import CoarseResult
from coarse2fine.coarse.scene import Scene
from coarse2fine.counts import Share, Tally, tally
from coarse2fine.errors import ConfigError
from coarse2fine.fine.inputs import UNSETTLED, VolumeNorm
from coarse2fine.fine.writeback import LabelWriter, export_labels
from coarse2fine.io import Volume
from coarse2fine.large.levels import open_level
from coarse2fine.large.shown import Shown, heatmap_within, held_by
from coarse2fine.large.territory import divide
from coarse2fine.large.window import Window, outwards, window_of
from coarse2fine.nnunet.cpu_layers import lean
from coarse2fine.nnunet.sliding_window import sliding_window, tiles_touching
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.mask import Mask, unset_outside
from coarse2fine.preprocessing.statistics import Scan
from coarse2fine.preprocessing.working_grid import WorkingView, view_volume
from coarse2fine.regions.detect import candidates, find_components, search_grid
from coarse2fine.resampling.operators import REACH
from coarse2fine.segmenter import Segmenter
from coarse2fine.selection.selector import grow_tree, roi_settings
from coarse2fine.system.device import outgrown
from coarse2fine.system.timing import Run, Stage

RIM = 4
"""Voxels of the working grid around a cell that linear resampling of its outputs needs; splines need ``REACH``."""

Labels = NDArray[np.unsignedinteger[Any]]
Looked = tuple[CoarseResult, Shown | None]
"""What the coarse network says around a cell, and what a mask shows there, if there is one."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenVolume:
    """A volume as both networks see it; nothing of it is in memory.

    Attributes:
        pipeline: Models and settings.
        view: The fine model's view.
        coarse: The coarse model's view; None in one-stage mode.
        halo: Voxels of the volume around a cell, axes as in the file.
        mask: Where something is looked at; None for everywhere.
    """

    pipeline: Pipeline
    view: WorkingView
    coarse: WorkingView | None
    halo: Triple
    mask: Mask | None = None

    @property
    def coarse_shape(self) -> Triple:
        """Shape of the coarse grid, axes of the fine model; not in one-stage mode."""
        segmenter, view = self.both
        return triple(view.shape[segmenter.coarse.untranspose[axis]] for axis in segmenter.stage.model.transpose)

    @property
    def both(self) -> tuple[Segmenter, WorkingView]:
        """The segmenter and the coarse model's view; not in one-stage mode."""
        if self.pipeline.segmenter is None or self.coarse is None:
            raise RuntimeError("there is no coarse network in one-stage mode")
        return self.pipeline.segmenter, self.coarse

    @property
    def packs(self) -> bool:
        """Whether regions are packed: not in one-stage mode, nor in a thin volume, see ``selection.thin``."""
        segmenter = self.pipeline.segmenter
        return segmenter is not None and segmenter.stage_over(self.view) is segmenter.stage

    def inside(self, core: Box) -> Box:
        """The part of a cell that is not cropped away, in voxels of the cropped, transposed volume."""
        crop = self.view.crop
        return core.turned(self.pipeline.fine.transpose).clip(crop).relative_to(crop)

    def working(self, core: Box) -> Box:
        """The voxels of the working grid that are a cell's; those of all cells are the whole grid."""
        box, sizes = self.inside(core), list(zip(self.view.whole, self.view.crop.shape, strict=True))
        start, stop = (
            triple(edge * size // before for edge, (size, before) in zip(edges, sizes, strict=True))
            for edges in (box.start, box.stop)
        )
        return Box(start, stop)


@dataclass(frozen=True, slots=True, eq=False)
class CellResult:
    """What came of a cell.

    Attributes:
        labels: Labels of ``box``, axes as in the file.
        box: The cell and as much around it as was looked at, voxels of the volume.
        counts: What was done.
        decided: Voxels of ``box`` that the fine network decided, whatever it said; None if all others are background.
    """

    labels: Labels
    box: Box
    counts: Tally = field(default_factory=Tally)
    decided: NDArray[np.bool_] | None = None

    def part(self, box: Box) -> Labels:
        """Labels of a box of the volume; background where nothing was looked at."""
        return self._part(self.labels, box)

    def decided_in(self, box: Box) -> NDArray[np.bool_]:
        """Voxels of a box of the volume that the fine network decided; of background that does not matter, nothing."""
        return self._part(self.labels != 0 if self.decided is None else self.decided, box)

    def _part(self, array: NDArray[Any], box: Box) -> NDArray[Any]:
        result = np.zeros(box.shape, array.dtype)
        inside = box.clip(self.box)
        if inside.volume:
            result[inside.relative_to(box).slices] = array[inside.relative_to(self.box).slices]
        return result


def open_volume(
    pipeline: Pipeline, levels: Sequence[Volume[Any]], scan: Scan, coarse_level: int, mask: Mask | None = None
) -> OpenVolume:
    """Prepare a volume for segmentation cell by cell.

    Args:
        pipeline: Models and settings.
        levels: The volume at each of its scales, finest first; others may show more of space than the finest.
        scan: Statistics of the finest level.
        coarse_level: Level that the coarse network reads.
        mask: Where something is looked at; None for everywhere.

    Raises:
        ConfigError: If a setting needs the whole volume at once.
    """
    config, fine = pipeline.config, pipeline.fine
    check_settings(pipeline)
    finest = levels[0]
    view = view_volume(finest, fine, scan=scan)
    coarse = None
    if pipeline.segmenter is not None:
        model = pipeline.segmenter.coarse
        if coarse_level == 0:
            coarse = view_volume(finest, model, config.coarse.spacing, scan)
        else:
            coarse = open_level(levels[coarse_level], finest, model, config.coarse.spacing, scan)
    slot = (
        -(-edge * before // after)
        for edge, before, after in zip(pipeline.stage.plan.slot, view.crop.shape, view.shape, strict=True)
    )
    turned = triple(slot)
    halo = config.blocks.halo or triple(turned[axis] for axis in fine.untranspose)
    return OpenVolume(pipeline, view, coarse, halo, mask)


def check_settings(pipeline: Pipeline) -> None:
    """Refuse settings that need the whole volume at once.

    Raises:
        ConfigError: Naming the setting.
    """
    config = pipeline.config
    whole = {
        "coarse.body_crop": config.coarse.body_crop is not None,
        "rois.empty: one-stage": config.rois.empty == "one-stage",
        "mode: one-stage, with a cascade": config.mode == "one-stage" and pipeline.fine.cascade,
    }
    for name, is_set in whole.items():
        if is_set:
            raise ConfigError(
                f"{name} needs the whole volume at once, but this one is read by region",
                "Leave it out, or convert the volume to NIfTI or .nrrd.",
            )


def segment_cells(
    opened: OpenVolume, cores: Sequence[Box], run: Run, norm: VolumeNorm = UNSETTLED
) -> Iterator[CellResult]:
    """Segment some neighbouring cells.

    Args:
        opened: The volume.
        cores: The cells, voxels of the volume, axes as in the file.
        run: Books ``coarse``, ``rois``, ``assign``, ``fine`` and their network passes; told of every pass.
        norm: What holds for all cells of the volume.
    """
    for result in _segment_cells(opened, cores, run, norm):
        if opened.mask is None:
            yield result
        else:
            kept = opened.mask.part(result.box)
            decided = None if result.decided is None else result.decided & kept
            yield replace(result, labels=unset_outside(result.labels, kept), decided=decided)


def _segment_cells(opened: OpenVolume, cores: Sequence[Box], run: Run, norm: VolumeNorm) -> Iterator[CellResult]:
    if opened.coarse is None:
        for core in cores:
            wanted = core if opened.mask is None else opened.mask.hull(core)
            yield _one_stage(opened, core, opened.inside(wanted), run)
        return
    for core, looked in zip(cores, _looks(opened, cores, run), strict=True):
        if looked is None:
            yield CellResult(np.zeros(core.shape, opened.pipeline.fine.labels.dtype), core)
        else:
            yield _segment_cell(opened, core, *looked, run, norm)


def look_at_cell(opened: OpenVolume, core: Box, run: Run) -> tuple[list[Box], list[Box]]:
    """The regions of a cell, and those that are chosen of them, in voxels of the whole working grid.

    Args:
        opened: The volume; not in one-stage mode.
        core: The cell, voxels of the volume, axes as in the file.
        run: As for ``segment_cells``.
    """
    (looked,) = _looks(opened, [core], run)
    if looked is None:
        return [], []
    (segmenter, _), (window, seen) = opened.both, looked
    tree, _ = _regions(opened, window, seen)
    around = _around(tree, window)
    scene = Scene(opened.view.within(around), seen[0])
    chosen = segmenter.selector.choose(_moved(tree, around), scene, segmenter.stage.model, run.clock)
    return [roi.box for roi in tree.leaves], [roi.box.shift(around.start) for roi in chosen]


def look_around(opened: OpenVolume, box: Box, run: Run) -> CoarseResult:
    """The coarse result in a box of the working grid and what interpolation needs around it; not in one-stage mode."""
    return _look(opened, outwards(box, opened.view.whole, opened.coarse_shape).grow((1, 1, 1)), run)


def _looks(opened: OpenVolume, cores: Sequence[Box], run: Run) -> Iterator[tuple[Window, Looked] | None]:
    """Where each cell lies and what the coarse network says there; None where all of a cell is cropped away."""
    inside = [opened.inside(core) for core in cores]
    windows = [_window(opened, box, opened.coarse_shape) if box.volume else None for box in inside]
    around = [window.coarse for window in windows if window]
    looked = _look(opened, reduce(Box.hull, around), run) if around else None
    for window in windows:
        if window is None or looked is None:
            yield None
        else:
            part = looked.part(window.coarse)
            seen = (part, None) if opened.mask is None else heatmap_within(part, opened.mask, opened.view)
            yield window, seen


def _look(opened: OpenVolume, box: Box, run: Run) -> CoarseResult:
    """The coarse result in a box of the coarse grid, axes of the fine model."""
    segmenter, view = opened.both
    turn = [segmenter.coarse.untranspose[axis] for axis in segmenter.stage.model.transpose]
    window = box.clip(Box.whole(opened.coarse_shape)).turned(turn.index(axis) for axis in range(3))
    return segmenter.heatmap(view, run, window)


def _window(opened: OpenVolume, cell: Box, coarse: Triple) -> Window:
    """Where a cell lies, given in voxels of the cropped, transposed volume; ``coarse`` is the coarse grid's shape."""
    view, rois = opened.view, opened.pipeline.config.rois
    halo = triple(opened.halo[axis] for axis in opened.pipeline.fine.transpose)
    search = search_grid(coarse, view.whole, rois.heatmap_voxel)
    return window_of(cell, halo, view.crop.shape, coarse, search, rois.margin)


def _segment_cell(
    opened: OpenVolume, core: Box, window: Window, looked: Looked, run: Run, norm: VolumeNorm
) -> CellResult:
    """Regions of the cell -> labels of the cell and its surroundings."""
    (segmenter, _), (coarse, _) = opened.both, looked
    mine, outside = window.own.relative_to(coarse.held), segmenter.config.fine.outside
    with run.stage(Stage.ROIS):
        tree, elsewhere = _regions(opened, window, looked)
        if not tree.parents and outside == "background":
            mass = coarse.heatmap[mine.slices].sum(dtype=np.float64)
            counts = Tally(working=opened.working(core).volume, mass=float(mass))
            return CellResult(np.zeros(core.shape, segmenter.stage.model.labels.dtype), core, counts)
        around = _around(tree, window)
    scene = Scene(opened.view.within(around), coarse)
    found = segmenter.segment(
        _moved(tree, around),
        scene,
        run,
        elsewhere=[box.relative_to(around) for box in elsewhere],
        norm=norm,
        track=outside == "coarse",
    )
    share = Share(mine, opened.working(core), tuple(elsewhere))
    return _result(found.writer, opened, tally(found, scene, share))


def _regions(opened: OpenVolume, window: Window, looked: Looked) -> tuple[RoiTree, list[Box]]:
    """The cell's own regions, and boxes that other cells segment; both in voxels of the whole working grid."""
    (segmenter, _), volume = opened.both, opened.view.whole
    coarse, shown = looked
    heatmap, place = coarse.heatmap, coarse.place
    stage = segmenter.stage_over(opened.view)
    config, settings = stage.config, roi_settings(stage.config, stage.plan)
    found = find_components(heatmap, volume, settings, place)
    holds = None
    if shown is not None:
        native = opened.view.crop.shape
        rim = triple(-(-edge // count) for edge, count in zip(native, coarse.whole, strict=True))
        holds = partial(held_by, window.cell, shown, native, found.grid, rim)
    territory = divide(found, window.core, window.reach, settings, holds)
    own, others = (
        grow_tree(config, candidates(found, names, heatmap, volume, settings, place), heatmap, volume, place)
        for names in (territory.own, territory.others)
    )
    return own, [roi.box for roi in others.leaves]


def _around(tree: RoiTree, window: Window) -> Box:
    """What is worked on: the window, or more where its edge would cut off a region."""
    return reduce(Box.hull, (roi.box for roi in tree.parents), window.working)


def _moved(tree: RoiTree, window: Box) -> RoiTree:
    """A tree with its boxes counted from the start of a window."""

    def move(roi: Roi) -> Roi:
        return replace(roi, box=roi.box.relative_to(window))

    children = tuple(tuple(move(roi) for roi in group) for group in tree.children)
    return RoiTree(tuple(move(roi) for roi in tree.parents), children, window.shape)


def _one_stage(opened: OpenVolume, core: Box, inside: Box, run: Run) -> CellResult:
    """nnU-Net's sliding window, of which only the tiles run that touch the cell."""
    fine, view, config = opened.pipeline.fine, opened.view, opened.pipeline.config.fine
    if not inside.volume:
        return CellResult(np.zeros(core.shape, fine.labels.dtype), core)
    window = outwards(inside, view.crop.shape, view.shape)
    orders = fine.logit_method.order, fine.logit_method.order_z  # PyTorch's modes reach no further than linear ones
    rim = REACH if any(not isinstance(order, str) and order > 1 for order in orders) else RIM
    needed = window.grow((rim, rim, rim)).clip(Box.whole(view.shape))
    tiles = tiles_touching(needed, view.shape, fine.patch, config.tile_step)
    hull = reduce(Box.hull, tiles)
    with run.clock.time(Stage.FINE):
        data = view.read_all(hull)
        with run.clock.time(Stage.FINE.passes):
            logits = sliding_window(
                lean(fine),
                data,
                tile_step=config.tile_step,
                mirroring=config.mirroring,
                corners=[tile.relative_to(hull).start for tile in tiles],
            )
        run.note(*outgrown(fine.device, {data.device, logits.device}, "sliding window"))
        writer = LabelWriter(view.within(window), fine)
        held = logits[(slice(None), *needed.relative_to(hull).slices)]
        export_labels(writer, fine, held, needed)
    voxels = len(tiles) * prod(fine.patch)
    own = opened.working(core).volume
    counts = Tally(
        canvases=len(tiles), canvas_voxels=voxels, filled=voxels, network_voxels=voxels, working=own, covered=own
    )
    return _result(writer, opened, counts)


def _result(writer: LabelWriter, opened: OpenVolume, counts: Tally) -> CellResult:
    fine = opened.pipeline.fine
    labels = writer.finish()
    return CellResult(labels, writer.hull.turned(fine.untranspose), counts, writer.decided())
