"""From network outputs on crops to labels on the volume's own grid.

Each crop's outputs are resampled straight from its slot to the volume's voxels, blended with those of overlapping
crops, and turned into labels as soon as no further crop is expected there. Outputs therefore exist for a few blocks at
a time, never for the whole volume.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Box, Placement, Triple, triple
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.resampling.operators import (
    Axis,
    Floats,
    Load,
    Resampling,
    multiply_axis,
    plan_resampling,
    stretch,
)
from coarse2fine.system.device import accumulator, to_host, upload, zeros_for

BLOCK: Triple = (16, 64, 64)
"""Voxels of one accumulator block."""


class LabelWriter:
    """Collects crops' outputs and writes labels.

    Crops that overlap are blended block by block, in those blocks in which they were announced. A block that a box has
    only grown into becomes labels at once: there the outputs of a later box take the place of an earlier one's.

    Args:
        view: The working grid that crops were taken from.
        model: Its label rules, resampling of outputs and transposition.
        track: Whether to keep which voxels outputs were written to; see ``decided``.
        probabilities: Whether to keep these, too, which takes four bytes for each output and voxel, and to choose
            labels by them, as nnU-Net does where it keeps them.
    """

    def __init__(self, view: WorkingView, model: Model, *, track: bool = False, probabilities: bool = False) -> None:
        self._view, self._model = view, model
        working = view.resampling.shape_out
        self._back = plan_resampling(working, view.crop.shape, model.spacing, view.spacing, model.logit_method)
        self._region = self._native(view.window)
        inside = self._region.shift(view.crop.start)
        self._hull = Box.whole(view.full) if view.window == Box.whole(working) else inside
        self._inside, self._out = inside.relative_to(self._hull), view.turn.inverse
        # In the file's own order, into which each part is turned when it is written: so the result is no second copy.
        shape, heads = self._out.sizes(self._hull.shape), model.labels.heads
        self._labels = zeros_for(shape, model.labels.dtype, model.device)
        self._decided = zeros_for(shape, np.bool_, model.device) if track or probabilities else None
        self._probabilities = zeros_for((heads, *self._hull.shape), np.float32, model.device) if probabilities else None
        self._blocks: dict[Triple, torch.Tensor] = {}
        self._expected: Counter[Triple] = Counter()

    @property
    def labels(self) -> NDArray[np.unsignedinteger[Any]]:
        """Labels of ``region`` as far as they are known."""
        return np.asarray(self._view.turn.array(to_host(self._labels)))[self._inside.slices]

    @property
    def device(self) -> torch.device:
        """Where outputs are blended."""
        return self._model.device

    @property
    def region(self) -> Box:
        """The voxels of the cropped, transposed volume that are written: all, or those in the view's window."""
        return self._region

    @property
    def held(self) -> int:
        """Bytes of blended outputs that are not labels yet."""
        return sum(block.nbytes for block in self._blocks.values())

    @property
    def blocks(self) -> int:
        """Blocks that hold blended outputs."""
        return len(self._blocks)

    @property
    def back(self) -> Resampling:
        """Resampling of outputs from the working grid to the cropped volume."""
        return self._back

    @property
    def hull(self) -> Box:
        """What ``finish`` returns the labels of: the whole transposed volume, or ``region`` in its voxels."""
        return self._hull

    def expect(self, boxes: Iterable[Box]) -> None:
        """Announce the boxes of the working grid that will be added; each must be added once."""
        for box in boxes:
            self._expected.update(_blocks(self.native(box)))

    def add(
        self, placement: Placement, logits: torch.Tensor, box: Box | None = None, keep: torch.Tensor | None = None
    ) -> None:
        """Blend in the outputs of one crop.

        Args:
            placement: The crop. ``placement.box`` must have been announced.
            logits: Its slot of the network output, shape (heads, *slot), on ``device``.
            box: Region of the working grid whose outputs count, if other than ``placement.box``.
            keep: Voxels of the slot whose outputs count, bool, on ``device``; None for all.
        """
        region = self._region.clip(self._native((box or placement.box).shift(self._view.window.start)))
        arrived = list(_blocks(self.native(placement.box)))
        self._expected.subtract(arrived)
        if region.volume:
            if keep is not None:  # resampled along with the outputs
                logits = torch.cat([logits, keep[None].float()])
            for axis in range(3):
                logits = self._along(axis, logits, placement, region)
            weight = self._weight(placement, region)
            if keep is not None:
                logits, weight = logits[:-1], weight * (logits[-1] > 0.5)
            self._accumulate(region.relative_to(self._region), logits, weight)
        for key in arrived:
            self._settle_if_done(key)

    def fill(self, box: Box, labels: torch.Tensor) -> None:
        """Write labels where no outputs have been written, or will be by ``finish``; needs a writer that tracks.

        Args:
            box: Of the working grid.
            labels: Of the voxels of ``native(box)``.
        """
        if self._decided is None:
            raise ValueError("a writer that does not track cannot tell what is decided")
        here = self.native(box)
        place = self._decided[self._stored(here).slices]
        self.put(here, labels, ~self._view.turn.tensor(place))

    def put(self, here: Box, labels: torch.Tensor, where: torch.Tensor | None = None) -> None:
        """Write labels, whatever was there.

        Args:
            here: Box of ``region``.
            labels: Of its voxels.
            where: Those that are meant, bool; None for all.
        """
        self._write(self._labels[self._stored(here).slices], labels, where)

    def _write(self, place: torch.Tensor, values: torch.Tensor, where: torch.Tensor | None) -> None:
        """Overwrite a part of what is kept in the file's order by values in the order of ``region``."""
        values = self._out.tensor(values).to(place.device)
        if where is not None:
            values = torch.where(self._out.tensor(where).to(place.device), values, place)
        place.copy_(values)

    def _stored(self, here: Box) -> Box:
        """Where a box of ``region`` is kept in the file's order."""
        return self._out.box(here.shift(self._inside.start), self._hull.shape)

    def finish(self) -> NDArray[np.unsignedinteger[Any]]:
        """Labels of the whole volume in the file's axis order; if the view has a window, of ``region`` only."""
        for key in list(self._blocks):
            self._settle(key)
        return to_host(self._labels)

    def decided(self) -> NDArray[np.bool_] | None:
        """Voxels that outputs were written to, whatever they say, as ``finish`` returns labels; None if not tracked."""
        return None if self._decided is None else to_host(self._decided)

    def probabilities(self) -> NDArray[np.float32] | None:
        """Of each output, once ``finish`` was called; None if they were not kept.

        Where no outputs were written, the label that is there is certain.

        Returns:
            Shape (heads, z, y, x) in the voxel order of the model's reader, as nnU-Net stores them.
        """
        if self._probabilities is None or self._decided is None:
            return None
        turned, kept = self._view.turn.tensor, self._probabilities
        for index in range(self._hull.shape[0]):  # one slice after the other: a copy of all is large
            here = self._out.box(Box((index, 0, 0), (index + 1, *self._hull.shape[1:])), self._hull.shape).slices
            certain = self._model.labels.certainly(turned(self._labels[here])).to(kept.device)
            there = turned(self._decided[here]).to(kept.device)
            part = kept[:, index : index + 1]
            part.copy_(torch.where(there, part, certain))
        back = (axis + 1 for axis in self._model.untranspose)
        return np.ascontiguousarray(to_host(kept).transpose(0, *back))

    def write(self, here: Box, logits: torch.Tensor, where: torch.Tensor | None = None) -> None:
        """Write what outputs say.

        Args:
            here: Box of ``region``.
            logits: Of its voxels, shape (heads, *here.shape).
            where: Voxels that they count for; None for all.
        """
        known = self._model.labels
        if self._probabilities is None:
            labels = known.from_logits(logits)
        else:
            values = known.probabilities(logits)
            part = self._probabilities[(slice(None), *here.shift(self._inside.start).slices)]
            shown = values.to(part.device)
            part.copy_(shown if where is None else torch.where(where.to(part.device), shown, part))
            labels = known.from_probabilities(values)
        self.put(here, labels, where)
        if self._decided is not None:
            place = self._decided[self._stored(here).slices]
            if where is None:
                place.fill_(True)
            else:
                place.logical_or_(self._out.tensor(where).to(place.device))

    def native(self, box: Box) -> Box:
        """The voxels whose centres lie in a box of the working grid, counted from the start of ``region``."""
        absolute = self._native(box.shift(self._view.window.start))
        return absolute.clip(self._region).relative_to(self._region)

    def _native(self, box: Box) -> Box:
        """The voxels of the cropped volume whose centres lie in a box of the whole working grid."""
        start, stop = [], []
        for axis, operator in enumerate(self._back.axes):
            ratio = operator.size_out / operator.size_in
            start.append(min(max(math.ceil(box.start[axis] * ratio - 0.5), 0), operator.size_out))
            stop.append(min(max(math.ceil(box.stop[axis] * ratio - 0.5), 0), operator.size_out))
        return Box(triple(start), triple(stop))

    def _along(self, axis: int, logits: torch.Tensor, placement: Placement, region: Box) -> torch.Tensor:
        """Resample outputs along one axis from slot voxels to the volume's voxels of ``region``."""
        source, slot = placement.source.shift(self._view.window.start), placement.slot
        first, last, edge = source.start[axis], source.stop[axis], slot.shape[axis]
        operator = self._back.axes[axis]
        if operator.identity and last - first == edge:
            index = [slice(None)] * 4
            index[axis + 1] = slice(region.start[axis] - first, region.stop[axis] - first)
            return logits[tuple(index)]
        matrix = _inside(operator, region.start[axis], region.stop[axis], first, last)
        if last - first != edge:
            matrix = matrix @ stretch(edge, last - first)
        return multiply_axis(logits, upload(matrix, logits.device), axis, 0, edge)

    def _weight(self, placement: Placement, region: Box) -> torch.Tensor:
        """Weight of each voxel of ``region``."""
        profiles = [self._profile(axis, placement, region) for axis in range(3)]
        z, y, x = upload(np.concatenate(profiles), self.device).split([len(profile) for profile in profiles])
        return z[:, None, None] * y[:, None] * x

    def _profile(self, axis: int, placement: Placement, region: Box) -> Floats:
        """Weight of each voxel of ``region`` along one axis: nnU-Net's Gaussian, centred on the crop's middle voxel."""
        operator, source = self._back.axes[axis], placement.source.shift(self._view.window.start)
        centres = (np.arange(region.start[axis], region.stop[axis]) + 0.5) * operator.size_in / operator.size_out
        edge = source.shape[axis]
        distance = (centres - source.start[axis] - edge // 2 - 0.5) / (edge / 8)
        return np.exp(-0.5 * distance**2).astype(np.float32)

    def _accumulate(self, region: Box, logits: torch.Tensor, weight: torch.Tensor) -> None:
        for key in _blocks(region):
            block = Box.of((k * b for k, b in zip(key, BLOCK, strict=True)), BLOCK)
            part = region.clip(block)
            if key not in self._blocks:
                self._blocks[key] = accumulator((self._model.labels.heads + 1, *BLOCK), self.device)
            here, there = part.relative_to(block).slices, part.relative_to(region).slices
            sums, share = self._blocks[key][(slice(None), *here)], weight[there]
            sums[:-1].addcmul_(logits[(slice(None), *there)], share)
            sums[-1] += share
            # At once, so that few are held; also those that a box has grown into, which nobody announced.
            self._settle_if_done(key)

    def _settle_if_done(self, key: Triple) -> None:
        if self._expected[key] <= 0:
            self._settle(key)

    def _settle(self, key: Triple) -> None:
        """Turn a block's blended outputs into labels; only probabilities need weights to be divided out."""
        block = self._blocks.pop(key, None)
        if block is None:
            return
        here = Box.of((k * b for k, b in zip(key, BLOCK, strict=True)), BLOCK).clip(
            self._region.relative_to(self._region)
        )
        depth, height, width = here.shape
        block = block[:, :depth, :height, :width]
        outputs, weight = block[:-1], block[-1]
        there = weight > 0
        if self._probabilities is not None:
            outputs = torch.where(there, outputs / weight, 0)
        self.write(here, outputs, there)


def _blocks(region: Box) -> Iterator[Triple]:
    """Keys of the blocks that a region touches."""
    if not region.volume:
        return iter(())
    ranges = [range(a // edge, -(-b // edge)) for a, b, edge in zip(region.start, region.stop, BLOCK, strict=True)]
    return (triple(key) for key in itertools.product(*ranges))


def _inside(operator: Axis, start: int, stop: int, first: int, last: int) -> Floats:
    """Rows ``start:stop`` of an operator, as if its input ended at ``first`` and ``last``: edge values repeat outside.

    Returns:
        Shape (stop - start, last - first).
    """
    rows, low, high = operator.rows(start, stop)
    matrix = np.zeros((stop - start, last - first), np.float32)
    columns = np.clip(np.arange(low, high) - first, 0, last - first - 1)
    np.add.at(matrix.T, columns, rows.T)
    return matrix


def export_labels(writer: LabelWriter, model: Model, logits: torch.Tensor, held: Box | None = None) -> None:
    """Labels of everything that a writer writes, as nnU-Net exports them, slab by slab.

    Args:
        writer: Receives the labels.
        model: Its label rules.
        logits: Outputs on the working grid, shape (heads, z, y, x), half precision as in nnU-Net.
        held: The part of the working grid that they cover: that of the writer and what resampling needs around it. None
            for all of it.
    """
    back, region = writer.back, writer.region
    held = held or Box.whole(back.shape_in)
    depth, height, width = region.shape
    for start in range(0, depth, BLOCK[0]):
        slab = Box((start, 0, 0), (min(start + BLOCK[0], depth), height, width))
        outputs = torch.stack([back(_reader(head, held, writer.device), slab.shift(region.start)) for head in logits])
        # Where it resamples by splines nnU-Net keeps outputs in half precision, and ties break by that rounding.
        is_half = model.logit_method.library == "spline"
        writer.write(slab, outputs.half() if is_half else outputs)


def _reader(head: torch.Tensor, held: Box, device: torch.device) -> Load:
    """Reads boxes of one output."""
    return lambda box: head[box.relative_to(held).slices].to(device).float()
