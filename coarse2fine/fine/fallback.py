"""What boxes get that the fine network does not reach in time: the coarse labels, where these mean the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from canvas import Box
from coarse2fine.coarse.heatmap import CoarseResult, coarse_parts
from coarse2fine.fine.writeback import BLOCK, LabelWriter
from coarse2fine.nnunet.model import Model
from coarse2fine.system.timing import RunClock


class Fallback:
    """Fills boxes with coarse labels, and knows how long that and the rest of a writer's work take.

    Args:
        coarse: The coarse result; None if the result does without its labels, or has them already.
        writer: Keeps which voxels outputs were written to.
        model: The fine model.
        clock: Tells the time.
    """

    def __init__(self, coarse: CoarseResult | None, writer: LabelWriter, model: Model, clock: RunClock) -> None:
        self._coarse, self._writer, self._clock = coarse, writer, clock
        self._dtype = model.labels.tensor_dtype
        self._grid = writer.back.shape_out
        self._shown = Box.whole((0, 0, 0)) if coarse is None else coarse.foreground_box(self._grid)
        block = torch.zeros((model.labels.heads, *BLOCK), device=model.device)
        self._block_s = self._timed(lambda: model.labels.from_logits(block))
        self._box_s, self._voxel_s = 0.0, 0.0

    def try_on(self, boxes: Sequence[Box]) -> None:
        """Measure on the smallest and the largest box how long filling takes, to no effect."""
        if self._coarse is None or not boxes:
            return
        (few, least), (many, most) = (self._try_on(pick(boxes, key=lambda box: box.volume)) for pick in (min, max))
        self._voxel_s = max(0.0, most - least) / max(many - few, 1)
        self._box_s = max(0.0, least - few * self._voxel_s)

    def _try_on(self, box: Box) -> tuple[int, float]:
        """Voxels of a box, and seconds that filling it takes."""
        return self._writer.native(box).volume, self._timed(lambda: self._labels(box))

    def _timed(self, action: Callable[[], object]) -> float:
        """Seconds that an action takes that has been done before."""
        action()
        began = self._clock.now()
        action()
        return self._clock.now() - began

    @property
    def settle_s(self) -> float:
        """Seconds that it takes to turn into labels what the writer holds."""
        return self._block_s * self._writer.blocks

    def fill_s(self, boxes: Iterable[Box]) -> float:
        """Seconds that it takes to fill boxes."""
        return sum(self._box_s + self._voxel_s * self._writer.native(box).volume for box in boxes)

    def fill(self, boxes: Iterable[Box]) -> None:
        """Write coarse labels into boxes, where the fine network has decided nothing."""
        if self._coarse is not None:
            for box in boxes:
                self._writer.fill(box, self._labels(box))

    def _labels(self, box: Box) -> torch.Tensor:
        """The coarse labels of the voxels that a box of the working grid holds."""
        here = self._writer.native(box)
        labels = torch.zeros(here.shape, dtype=self._dtype, device=self._writer.device)
        if here.volume and self._coarse is not None:
            region = here.shift(self._writer.region.start)
            for part, found in coarse_parts(self._coarse, region, self._grid, self._shown):
                labels[part.slices] = found.to(self._writer.device)
        return labels
