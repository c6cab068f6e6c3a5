"""The coarse network's deepest feature map, kept while its sliding window runs anyway.

Tiles overlap, and their corners need not be multiples of the stride. A tile is laid onto the map at its corner divided
by the stride, rounded (halves up), and where tiles overlap their features are averaged. So no feature is interpolated,
none is more than half a stride off its place, and one tile that covers the volume gives the encoder's own output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from canvas import Box, Triple, triple
from coarse2fine.io.turn import Turn
from coarse2fine.nnunet.model import Model
from coarse2fine.resampling.operators import Floats
from coarse2fine.system.device import to_host, zeros_for

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class BottleneckMap:
    """The deepest features of a whole volume.

    Voxel i of the map covers the voxels from ``origin + i * stride`` to ``origin + (i + 1) * stride`` of an axis of the
    coarse grid. The first and the last one also stand for what lies beyond them.

    Attributes:
        values: float32, shape (channels, z, y, x).
        stride: Voxels of the coarse grid along each edge of a map voxel.
        origin: Voxel of the coarse grid at which the map begins; negative where the volume was padded.
        grid: Shape of the coarse grid.
    """

    values: Floats
    stride: Triple
    origin: Triple
    grid: Triple

    def touched(self, starts: Indices, stops: Indices, grid: Triple) -> tuple[Indices, Indices]:
        """The map voxels that boxes of a finer grid over the same region of space touch; at least one per axis.

        Args:
            starts: Where the boxes begin, in **half** voxels of the finer grid, shape (..., 3).
            stops: Where they end, likewise.
            grid: Shape of the finer grid.

        Returns:
            First map voxels, and those after the last, both of shape (..., 3).
        """
        # In integers, so that no rounding moves a box: position * coarse / (2 * fine) - origin, over the stride.
        shift = 2 * np.array(self.origin) * grid
        unit = 2 * np.array(self.stride) * grid
        size = np.array(self.values.shape[1:])
        first: Indices = np.clip((starts * self.grid - shift) // unit, 0, size - 1)
        last: Indices = np.clip(-((shift - stops * self.grid) // unit), first + 1, size)
        return first, last

    def turned(self, turn: Turn) -> BottleneckMap:
        """The same with other axes."""
        ends = zip(self.grid, self.origin, self.stride, self.values.shape[1:], strict=True)
        behind = turn.sizes(triple(grid - (start + step * size) for grid, start, step, size in ends))
        before = turn.sizes(self.origin)
        origin = triple(behind[axis] if turn.flips[axis] else before[axis] for axis in range(3))
        return BottleneckMap(turn.last_axes(self.values), turn.sizes(self.stride), origin, turn.sizes(self.grid))


class BottleneckRecorder:
    """Lays the features of tiles onto the map; see the module's docstring.

    Args:
        model: Its first network is the one that is recorded.
        shape: Shape of what the sliding window runs over.
    """

    def __init__(self, model: Model, shape: Triple) -> None:
        self._stride = model.divisor
        padded = [max(edge, tile) for edge, tile in zip(shape, model.patch, strict=True)]
        last = triple(edge - tile for edge, tile in zip(padded, model.patch, strict=True))
        deep = np.array(model.patch) // model.divisor
        # Channels lie together in memory, because regions are pooled over space.
        size = triple(self._place(last) + deep)
        self._sums = zeros_for((*size, feature_channels(model)), np.float32, model.device)
        self._counts: Floats = np.zeros((*size, 1), np.float32)
        self._thread = get_ident()
        self._first: Triple | None = None
        self._next: Triple | None = None

    def on_tile(self, box: Box) -> None:
        """Announce the tile that runs next.

        Args:
            box: Relative to what the sliding window runs over; begins below 0 where that is padded.
        """
        self._first = self._first or box.start  # windows begin at the lowest corner
        self._next = box.start

    def on_features(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        """Forward hook of the last stage: takes the first pass after an announcement, which is the unflipped one."""
        # The hook sees every pass of the network, also those of other threads that share it.
        if self._next is None or self._first is None or get_ident() != self._thread:
            return
        offset = self._place(triple(a - b for a, b in zip(self._next, self._first, strict=True)))
        features = output[0].float().movedim(0, -1)
        here = Box.of(offset, features.shape[:3]).slices
        self._sums[here].add_(features.to(self._sums.device))
        self._counts[here] += 1
        self._next = None

    def finish(self, start: Triple, grid: Triple) -> BottleneckMap:
        """The map, once all tiles have run.

        Args:
            start: Where what the sliding window ran over begins on the coarse grid.
            grid: Shape of the coarse grid.
        """
        origin = triple(a + b for a, b in zip(start, self._first or (0, 0, 0), strict=True))
        means = np.divide(to_host(self._sums), self._counts, dtype=np.float32)
        return BottleneckMap(np.moveaxis(means, -1, 0), self._stride, origin, grid)

    def _place(self, corner: Triple) -> Indices:
        """Where on the map a tile lies, of which the corner is counted from the first tile's."""
        stride = np.array(self._stride)
        return (2 * np.array(corner) + stride) // (2 * stride)


@contextmanager
def record_bottleneck(model: Model, shape: Triple) -> Iterator[BottleneckRecorder]:
    """Record the features of a sliding window that runs inside of the block, in this thread, and announces its tiles.

    Args:
        model: The model that runs.
        shape: Shape of what it runs over.
    """
    recorder = BottleneckRecorder(model, shape)
    *_, last = encoder_of(model).get_submodule("stages").children()
    handle = last.register_forward_hook(recorder.on_features)
    try:
        yield recorder
    finally:
        handle.remove()


def encoder_of(model: Model) -> nn.Module:
    """The encoder of the first network; both of nnU-Net's architectures call it so and return all its stages."""
    return model.networks[0].get_submodule("encoder")


def feature_channels(model: Model) -> int:
    """Channels of the deepest feature map."""
    encoder: Any = encoder_of(model)
    return int(encoder.output_channels[-1])
