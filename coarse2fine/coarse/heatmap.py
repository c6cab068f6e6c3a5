"""The coarse stage: one look at the whole volume, and what is kept of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.coarse.feature_map import BottleneckMap, record_bottleneck
from coarse2fine.coarse.foreground import counted_heads
from coarse2fine.config.schema import BodyCrop, CoarseConfig
from coarse2fine.io.turn import Turn
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.sliding_window import tiles_touching, window_slabs
from coarse2fine.preprocessing.statistics import filled_box
from coarse2fine.preprocessing.working_grid import WorkingView, turn_of
from coarse2fine.regions.components import label_components
from coarse2fine.regions.search_grid import Place
from coarse2fine.resampling.operators import Axis, Floats, axis_operator, multiply_axis, slab_depth
from coarse2fine.system.device import outgrown, room_for, to_host, upload, zeros_for
from coarse2fine.system.timing import Run, Stage

CERTAIN = 20.0
"""Logit of what is not looked at: background with probability one in half precision."""


@dataclass(frozen=True, slots=True, eq=False)
class CoarseResult:
    """What the coarse network said, on its own grid but with the axes of the fine model's working grid.

    The whole grid covers the same region of space as the whole fine working grid, the non-zero part of the volume. Of a
    volume that is read by region only a part of it is there; boxes and finer grids are counted as if all were.

    Attributes:
        logits: Half precision, as nnU-Net adds them up, shape (heads, z, y, x), on the device where labels are made of
            them; None if nobody needs labels.
        heatmap: Probability of the labels that count as foreground, float32, shape (z, y, x).
        model: The coarse model, for its label rules.
        bottleneck: The deepest features, if they were asked for; same axes, of the whole grid.
        place: Which part of the grid this is; None for all of it.
    """

    logits: torch.Tensor | None
    heatmap: Floats
    model: Model
    bottleneck: BottleneckMap | None = None
    place: Place | None = None

    @property
    def whole(self) -> Triple:
        """Shape of the whole coarse grid."""
        return self.place.whole if self.place else triple(self.heatmap.shape)

    @property
    def held(self) -> Box:
        """The part of the coarse grid that this is."""
        return Box.of(self.place.start if self.place else (0, 0, 0), self.heatmap.shape)

    def part(self, box: Box) -> CoarseResult:
        """The same of a smaller part of the coarse grid."""
        inside = box.relative_to(self.held).slices
        place = Place(box.start, self.whole)
        logits = None if self.logits is None else self.logits[(slice(None), *inside)]
        return CoarseResult(logits, self.heatmap[inside], self.model, self.bottleneck, place)

    def only_where(self, kept: NDArray[np.bool_]) -> CoarseResult:
        """The same with a heatmap that is zero elsewhere; the labels stay."""
        return dataclasses.replace(self, heatmap=np.where(kept, self.heatmap, np.float32(0)))

    @property
    def outputs(self) -> torch.Tensor:
        """The logits.

        Raises:
            ValueError: If they were not kept.
        """
        if self.logits is None:
            raise ValueError("the coarse outputs were not kept")
        return self.logits

    def labels_in(self, box: Box, grid: Triple) -> torch.Tensor:
        """The coarse labels in a box of a finer grid over the same region of space.

        Args:
            box: Inside the grid. Beyond what is held, the outermost voxels repeat.
            grid: Shape of the finer grid.
        """
        rows = []
        for axis in range(3):
            held, size = self.held.start[axis], self.heatmap.shape[axis]
            matrix, low, high = _linear(self.whole[axis], grid[axis]).rows(box.start[axis], box.stop[axis])
            inside = held <= low and high <= held + size
            rows.append((matrix, low - held, high - held) if inside else _folded(matrix, low - held, size))
        part = self.outputs[(slice(None), *(slice(low, high) for _, low, high in rows))]
        logits = part.float()
        for axis, (matrix, low, high) in enumerate(rows):
            logits = multiply_axis(logits, upload(matrix, logits.device), axis, 0, high - low)
        return self.model.labels.from_logits(logits)

    def one_hot(self, box: Box, grid: Triple) -> torch.Tensor:
        """Extra input channels of a cascade: one per foreground label, 0 outside of the grid; shape (labels, *box)."""
        inside = box.clip(self._shown(grid))
        channels = torch.zeros((len(self.model.labels.foreground), *box.shape), device=self.outputs.device)
        if inside.volume:
            labels = self.labels_in(inside, grid)
            for channel, label in zip(channels, self.model.labels.foreground, strict=True):
                channel[inside.relative_to(box).slices] = labels == label
        return channels

    def peak_in(self, box: Box, grid: Triple) -> float:
        """Highest heatmap value in a box of a finer grid over the same region of space; 0 where nothing is held."""
        sizes = list(zip(self.whole, grid, self.held.start, strict=True))
        start = [max(a * n // size - held, 0) for a, (n, size, held) in zip(box.start, sizes, strict=True)]
        stop = [max(-(-b * n // size) - held, 0) for b, (n, size, held) in zip(box.stop, sizes, strict=True)]
        part = self.heatmap[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        return float(part.max(initial=0.0))

    def foreground_box(self, grid: Triple) -> Box:
        """The box of a finer grid outside of which every coarse label is background."""
        slices = self.outputs.split(1, 1)  # in single precision one after the other
        found = torch.cat([self.model.labels.is_foreground(part.float()) for part in slices])
        held = filled_box([to_host(found)])
        if not held.volume:
            return held
        ratio = np.array(grid) / np.array(self.whole)
        held = held.shift(self.held.start)
        # Linear interpolation reaches one coarse voxel further than the labels do.
        start = np.floor((np.array(held.start) - 1) * ratio)
        stop = np.ceil((np.array(held.stop) + 1) * ratio)
        return Box(triple(start), triple(stop)).clip(Box.whole(grid))

    def _shown(self, grid: Triple) -> Box:
        """The box of a finer grid that lies in what is held."""
        corners = zip(self.held.start, self.held.stop, grid, self.whole, strict=True)
        edges = [(a * size // n, -(-b * size // n)) for a, b, size, n in corners]
        return Box(triple(a for a, _ in edges), triple(b for _, b in edges))


def _folded(matrix: Floats, low: int, size: int) -> tuple[Floats, int, int]:
    """Rows whose columns begin at input ``low``, for an input of which only the first ``size`` voxels from 0 are there.

    What they ask of others is asked of the outermost one.
    """
    folded = np.zeros((len(matrix), size), np.float32)
    np.add.at(folded.T, np.clip(np.arange(low, low + matrix.shape[1]), 0, size - 1), matrix.T)
    return folded, 0, size


def _linear(size_in: int, size_out: int) -> Axis:
    return axis_operator(size_in, size_out, 1)


@dataclass(frozen=True, slots=True, eq=False)
class CoarseStage:
    """The coarse model, and how it looks at volumes.

    Attributes:
        model: The coarse model.
        fine: The fine model, whose axes the result gets.
        settings: Labels that count, tile step, mirroring, patch and body crop.
        keep_features: Whether to keep the deepest features of the first network.
        keep_outputs: Whether to keep the outputs, from which labels are made, beside the heatmap.
    """

    model: Model
    fine: Model
    settings: CoarseConfig
    keep_features: bool = False
    keep_outputs: bool = True


def predict_heatmap(
    stage: CoarseStage, view: WorkingView, run: Run | None = None, window: Box | None = None
) -> CoarseResult:
    """Run the coarse network over the whole volume, or over a window of it.

    The tiles that touch a window are those of the whole volume, and so is what comes out of them.

    Args:
        stage: The coarse model and its settings.
        view: The coarse model's view of the volume.
        run: Books network time under ``coarse.network``; told of every tile.
        window: Part of the coarse grid, axes of the coarse model; the result is this part's alone.

    Raises:
        ConfigError: If ``foreground`` of the settings does not name labels of the model.
    """
    run, model, settings = run or Run(), stage.model, stage.settings
    heads = counted_heads(settings.foreground, model)
    if settings.patch_size is not None:
        model = dataclasses.replace(model, patch=settings.patch_size)
    # The region that the network runs over, and the one that the result is of.
    grid = Box.whole(view.shape) if window is None else window
    region, corners = grid, None
    if window is not None:
        tiles = tiles_touching(window, view.shape, model.patch, settings.tile_step)
        region = reduce(Box.hull, tiles)
        corners = [tile.relative_to(region).start for tile in tiles]
    elif settings.body_crop is not None:
        region = body_box(view, settings.body_crop)
    turn = view.turn.inverse.then(turn_of(view.grid, stage.fine))
    found = _Found(model, region, grid, heads, turn, keep_outputs=stage.keep_outputs)
    data = view.read_all(region)
    used = {data.device, *found.devices}
    with run.clock.time(Stage.COARSE.passes), ExitStack() as stack:
        recorder = stack.enter_context(record_bottleneck(model, region.shape)) if stage.keep_features else None
        slabs = window_slabs(
            model,
            data,
            tile_step=settings.tile_step,
            mirroring=settings.mirroring,
            ticks=run.ticks("coarse"),
            on_tile=recorder.on_tile if recorder else lambda box: None,
            corners=corners,
        )
        for start, slab in slabs:
            found.add(start, slab)
            used.add(slab.device)
    run.note(*outgrown(model.device, used, "coarse pass"))
    kept = recorder.finish(region.start, view.shape).turned(turn) if recorder else None
    place = None if window is None else Place(turn.box(grid, view.shape).start, turn.sizes(view.shape))
    return CoarseResult(found.logits, found.heatmap, model, kept, place)


class _Found:
    """What the coarse network says, collected slab by slab; certain background where it does not look.

    Args:
        model: The coarse model.
        region: What it looks at, a box of its grid.
        grid: What the result is of, likewise.
        heads: Outputs that count as foreground; None for all but the background's.
        turn: From the axes of its grid to those of the result.
        keep_outputs: As of ``CoarseStage``.
    """

    def __init__(
        self,
        model: Model,
        region: Box,
        grid: Box,
        heads: Collection[int] | None,
        turn: Turn,
        *,
        keep_outputs: bool,
    ) -> None:
        self._labels, self._region, self._grid, self._heads = model.labels, region, grid, heads
        shape = turn.sizes(grid.shape)
        nothing = _certain_background(model)
        chance = float(self._labels.foreground_probability(nothing, heads))
        self._heatmap = zeros_for(shape, np.float32, model.device).fill_(chance)
        self.logits: torch.Tensor | None = None
        if keep_outputs:
            size = 2 * len(nothing) * prod(shape)
            self.logits = nothing.half().to(room_for(size, model.device)).expand(-1, *shape).contiguous()
        self._turn = turn

    @property
    def devices(self) -> set[torch.device]:
        """Where what is found is kept."""
        return {part.device for part in (self._heatmap, self.logits) if part is not None}

    @property
    def heatmap(self) -> Floats:
        """Probability of what counts, float32, axes of the result; the host waits for it."""
        return to_host(self._heatmap)

    def add(self, start: int, logits: torch.Tensor) -> None:
        """Take the outputs of some slices of the region, half precision, shape (heads, z, y, x)."""
        slab = Box((start, 0, 0), (start + logits.shape[1], *self._region.shape[1:])).shift(self._region.start)
        shown = slab.clip(self._grid)
        if not shown.volume:
            return
        outputs = logits[(slice(None), *shown.relative_to(slab).slices)]
        here = shown.relative_to(self._grid)
        for index, slice_ in enumerate(outputs.split(1, 1), here.start[0]):  # one after the other in single precision
            place = self._placed(Box((index, *here.start[1:]), (index + 1, *here.stop[1:])))
            heat = self._labels.foreground_probability(slice_, self._heads)
            self._heatmap[place.slices] = self._turn.tensor(heat).to(self._heatmap.device)
        if self.logits is not None:
            place = self._placed(here)
            self.logits[(slice(None), *place.slices)] = self._turn.tensor(outputs).to(self.logits.device)

    def _placed(self, here: Box) -> Box:
        """Where a box of the coarse model's axes lies in the result."""
        return self._turn.box(here, self._grid.shape)


def _certain_background(model: Model) -> torch.Tensor:
    """Logits of a voxel that is not looked at, shape (heads, 1, 1, 1)."""
    logits = torch.full((model.labels.heads, 1, 1, 1), -CERTAIN if model.labels.regions else 0.0)
    if not model.labels.regions:
        logits[0] = CERTAIN
    return logits


def body_box(view: WorkingView, crop: BodyCrop) -> Box:
    """The box of the largest bright object on the coarse grid, with its margin; the whole grid if nothing is bright.

    Raw intensities of the first channel are sampled at the voxels' centres.
    """
    raw = np.asarray(view.channels[0])[view.crop.slices]
    index = [((np.arange(out) + 0.5) * size / out).astype(int) for size, out in zip(raw.shape, view.shape, strict=True)]
    bright = np.asarray(raw[np.ix_(*index)], np.float32) > crop.above
    if not bright.any():
        return Box.whole(view.shape)
    components = label_components(bright)
    sizes = np.bincount(components.reshape(-1))
    found = np.argwhere(components == sizes[1:].argmax() + 1)
    size = [
        edge * before / after for edge, before, after in zip(view.spacing, view.crop.shape, view.shape, strict=True)
    ]
    margin = triple(np.ceil(crop.margin_mm / np.array(size)))
    box = Box(triple(found.min(0)), triple(found.max(0) + 1))
    return box.grow(margin).clip(Box.whole(view.shape))


def paint_coarse(
    coarse: CoarseResult,
    labels: NDArray[np.unsignedinteger],
    region: Box | None = None,
    grid: Triple | None = None,
    within: Box | None = None,
) -> None:
    """Fill a label volume with the coarse labels, slab by slab.

    Args:
        coarse: The coarse result.
        labels: Background everywhere; written in place.
        region: What the labels are of, a box of a finer grid over the same region of space; None for all of it.
        grid: Shape of that grid.
        within: Its ``foreground_box``, if that is known.
    """
    grid = grid or triple(labels.shape)
    for box, found in coarse_parts(coarse, region or Box.whole(grid), grid, within):
        labels[box.slices] = to_host(found)


def coarse_parts(
    coarse: CoarseResult, region: Box, grid: Triple, within: Box | None = None
) -> Iterator[tuple[Box, torch.Tensor]]:
    """The coarse labels where they are not background, slab by slab; arguments as of ``paint_coarse``.

    Yields:
        A part of the region, counted from its start, and the labels of it.
    """
    box = (coarse.foreground_box(grid) if within is None else within).clip(region)
    if not box.volume:
        return
    depth = slab_depth(coarse.model.labels.heads * box.shape[1] * box.shape[2])
    for start in range(box.start[0], box.stop[0], depth):
        slab = Box((start, *box.start[1:]), (min(start + depth, box.stop[0]), *box.stop[1:]))
        yield slab.relative_to(region), coarse.labels_in(slab, grid)
