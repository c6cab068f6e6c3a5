"""The coarse stage: one look at the whole volume, and what is kept of it."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.coarse.feature_map import BottleneckMap, record_bottleneck
from coarse2fine.coarse.foreground import counted_heads
from coarse2fine.config.schema import BodyCrop, CoarseConfig
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.sliding_window import sliding_window, tiles_touching
from coarse2fine.preprocessing.working_grid import WorkingView, turn_of
from coarse2fine.regions.components import label_components
from coarse2fine.regions.search_grid import Place
from coarse2fine.resampling.operators import Axis, Floats, axis_operator, multiply_axis
from coarse2fine.system.timing import Run

CERTAIN = 20.0
"""Logit of what is not looked at: background with probability one in half precision."""


@dataclass(frozen=True, slots=True, eq=False)
class CoarseResult:
    """What the coarse network said, on its own grid but with the axes of the fine model's working grid.

    The whole grid covers the same region of space as the whole fine working grid, the non-zero part of the volume. Of a
    volume that is read by region only a part of it is there; boxes and finer grids are counted as if all were.

    Attributes:
        logits: float32, shape (heads, z, y, x).
        heatmap: Probability of the labels that count as foreground, float32, shape (z, y, x).
        model: The coarse model, for its label rules.
        bottleneck: The deepest features, if they were asked for; same axes, of the whole grid.
        place: Which part of the grid this is; None for all of it.
    """

    logits: Floats
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
        return CoarseResult(
            self.logits[(slice(None), *inside)], self.heatmap[inside], self.model, self.bottleneck, place
        )

    def only_where(self, kept: NDArray[np.bool_]) -> CoarseResult:
        """The same with a heatmap that is zero elsewhere; the labels stay."""
        return dataclasses.replace(self, heatmap=np.where(kept, self.heatmap, np.float32(0)))

    def labels_in(self, box: Box, grid: Triple) -> NDArray[np.unsignedinteger]:
        """The coarse labels in a box of a finer grid over the same region of space.

        Args:
            box: Inside the grid. Beyond what is held, the outermost voxels repeat.
            grid: Shape of the finer grid.
        """
        logits = self.logits
        for axis in range(3):
            operator = _linear(self.whole[axis], grid[axis])
            held, size = self.held.start[axis], self.heatmap.shape[axis]
            matrix, low, high = operator.rows(box.start[axis], box.stop[axis])
            if low < held or high > held + size:
                matrix, low, high = _folded(matrix, low - held, size)
                low, high = low + held, high + held
            logits = multiply_axis(logits, matrix, axis, low - held, high - held)
        return self.model.labels.from_logits(logits)

    def one_hot(self, box: Box, grid: Triple) -> Floats:
        """Extra input channels of a cascade: one per foreground label, 0 outside of the grid; shape (labels, *box)."""
        inside = box.clip(self._shown(grid))
        channels = np.zeros((len(self.model.labels.foreground), *box.shape), np.float32)
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
        found = np.argwhere(self.model.labels.from_logits(self.logits) != 0)
        if not len(found):
            return Box((0, 0, 0), (0, 0, 0))
        ratio = np.array(grid) / np.array(self.whole)
        found = found + self.held.start
        # Linear interpolation reaches one coarse voxel further than the labels do.
        start, stop = np.floor((found.min(0) - 1) * ratio), np.ceil((found.max(0) + 2) * ratio)
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
    """

    model: Model
    fine: Model
    settings: CoarseConfig
    keep_features: bool = False


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
    data = view.read(region)
    with run.clock.time("coarse.network"), ExitStack() as stack:
        recorder = stack.enter_context(record_bottleneck(model, region.shape)) if stage.keep_features else None
        inside = sliding_window(
            model,
            data,
            tile_step=settings.tile_step,
            mirroring=settings.mirroring,
            ticks=run.ticks("coarse"),
            on_tile=recorder.on_tile if recorder else lambda box: None,
            corners=corners,
        )
    logits = _in_grid(inside, region, grid, model)
    turn = view.turn.inverse.then(turn_of(view.grid, stage.fine))
    logits = logits.permute(0, *(axis + 1 for axis in turn.axes)).flip([axis + 1 for axis in turn.reversed_axes])
    heatmap = model.labels.foreground_probability(logits, heads)
    kept = recorder.finish(region.start, view.shape).turned(turn) if recorder else None
    place = None if window is None else Place(turn.box(grid, view.shape).start, turn.sizes(view.shape))
    return CoarseResult(logits.contiguous().numpy(), heatmap.contiguous().numpy(), model, kept, place)


def _in_grid(inside: torch.Tensor, region: Box, grid: Box, model: Model) -> torch.Tensor:
    """The outputs of a region in another one, and certain background where that sticks out."""
    if region.contains(grid):
        return inside[(slice(None), *grid.relative_to(region).slices)].float()
    logits = torch.zeros((model.labels.heads, *grid.shape))
    if model.labels.regions:
        logits -= CERTAIN
    else:
        logits[0] = CERTAIN
    logits[(slice(None), *region.relative_to(grid).slices)] = inside.float()
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
    region = region or Box.whole(grid)
    box = (coarse.foreground_box(grid) if within is None else within).clip(region)
    if not box.volume:
        return
    for start in range(box.start[0], box.stop[0], 16):
        slab = Box((start, *box.start[1:]), (min(start + 16, box.stop[0]), *box.stop[1:]))
        labels[slab.relative_to(region).slices] = coarse.labels_in(slab, grid)
