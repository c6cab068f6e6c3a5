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
from coarse2fine.bottleneck import BottleneckMap, record_bottleneck
from coarse2fine.clock import Clock
from coarse2fine.components import label_components
from coarse2fine.config import BodyCrop, CoarseConfig
from coarse2fine.nnunet import Model
from coarse2fine.resample import Axis, Floats, axis_operator, multiply_axis
from coarse2fine.sliding import Progress, sliding_window, tiles_touching
from coarse2fine.view import WorkingView

CERTAIN = 20.0
"""Logit of what is not looked at: background with probability one in half precision."""


@dataclass(frozen=True, slots=True, eq=False)
class CoarseResult:
    """What the coarse network said, on its own grid but with the axes of the fine model's working grid.

    The grid covers the same region of space as the fine working grid, the non-zero part of the volume.

    Attributes:
        logits: float32, shape (heads, z, y, x).
        heatmap: Foreground probability, float32, shape (z, y, x).
        model: The coarse model, for its label rules.
        bottleneck: The deepest features, if they were asked for; same axes.
    """

    logits: Floats
    heatmap: Floats
    model: Model
    bottleneck: BottleneckMap | None = None

    def labels_in(self, box: Box, grid: Triple) -> NDArray[np.unsignedinteger]:
        """The coarse labels in a box of a finer grid over the same region of space.

        Args:
            box: Inside the grid.
            grid: Shape of the finer grid.
        """
        logits = self.logits
        for axis in range(3):
            operator = _linear(self.heatmap.shape[axis], grid[axis])
            matrix, low, high = operator.rows(box.start[axis], box.stop[axis])
            logits = multiply_axis(logits, matrix, axis, low, high)
        return self.model.labels.from_logits(logits)

    def one_hot(self, box: Box, grid: Triple) -> Floats:
        """Extra input channels of a cascade: one per foreground label, 0 outside of the grid; shape (labels, *box)."""
        inside = box.clip(Box.whole(grid))
        channels = np.zeros((len(self.model.labels.foreground), *box.shape), np.float32)
        if inside.volume:
            labels = self.labels_in(inside, grid)
            for channel, label in zip(channels, self.model.labels.foreground, strict=True):
                channel[inside.relative_to(box).slices] = labels == label
        return channels

    def peak_in(self, box: Box, grid: Triple) -> float:
        """Highest heatmap value in a box of a finer grid over the same region of space."""
        ratio = np.array(self.heatmap.shape) / np.array(grid)
        start, stop = np.floor(box.start * ratio).astype(int), np.ceil(box.stop * ratio).astype(int)
        part = self.heatmap[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        return float(part.max(initial=0.0))

    def foreground_box(self, grid: Triple) -> Box:
        """The box of a finer grid outside of which every coarse label is background."""
        found = np.argwhere(self.model.labels.from_logits(self.logits) != 0)
        if not len(found):
            return Box((0, 0, 0), (0, 0, 0))
        ratio = np.array(grid) / np.array(self.heatmap.shape)
        # Linear interpolation reaches one coarse voxel further than the labels do.
        start, stop = np.floor((found.min(0) - 1) * ratio), np.ceil((found.max(0) + 2) * ratio)
        return Box(triple(start), triple(stop)).clip(Box.whole(grid))


def _linear(size_in: int, size_out: int) -> Axis:
    return axis_operator(size_in, size_out, "spline", 1)


def look_coarsely(
    view: WorkingView,
    model: Model,
    fine: Model,
    settings: CoarseConfig,
    clock: Clock,
    progress: Progress,
    *,
    bottleneck: bool = False,
    window: Box | None = None,
) -> CoarseResult:
    """Run the coarse network over the whole volume, or over a window of it.

    The tiles that touch a window are those of the whole volume, and so is what comes out of them.

    Args:
        view: The coarse model's view of the volume.
        model: The coarse model.
        fine: The fine model, whose axes the result gets.
        settings: Tile step, mirroring, patch and body crop.
        clock: Books network time under ``coarse.network``.
        progress: Called after every tile.
        bottleneck: Whether to keep the deepest features of the first network.
        window: Part of the coarse grid, axes of the coarse model; the result is this part's alone.
    """
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
    with clock.time("coarse.network"), ExitStack() as stack:
        recorder = stack.enter_context(record_bottleneck(model, region.shape)) if bottleneck else None
        inside = sliding_window(
            model,
            data,
            tile_step=settings.tile_step,
            mirroring=settings.mirroring,
            progress=progress,
            on_tile=recorder.on_tile if recorder else lambda box: None,
            corners=corners,
        )
    logits = _in_grid(inside, region, grid, model)
    turn = [model.untranspose[axis] for axis in fine.transpose]
    logits = logits.permute(0, *(axis + 1 for axis in turn))
    heatmap = model.labels.foreground_probability(logits)
    kept = recorder.finish(region.relative_to(grid).start, grid.shape).turned(triple(turn)) if recorder else None
    return CoarseResult(logits.contiguous().numpy(), heatmap.contiguous().numpy(), model, kept)


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


def paint_coarse(coarse: CoarseResult, labels: NDArray[np.unsignedinteger]) -> None:
    """Fill a label volume over the same region of space with the coarse labels, slab by slab.

    Args:
        coarse: The coarse result.
        labels: Background everywhere; written in place.
    """
    grid = triple(labels.shape)
    box = coarse.foreground_box(grid)
    for start in range(box.start[0], box.stop[0], 16):
        slab = Box((start, *box.start[1:]), (min(start + 16, box.stop[0]), *box.stop[1:]))
        labels[slab.slices] = coarse.labels_in(slab, grid)
