"""Passes of the fine network: canvases in, outputs that wait on the device until somebody has looked at their masks.

Whether a box grows is decided on the host, by connected components. On a GPU each look would be a time at which the
program waits for the device and the device for the program. So outputs of as many canvases as there is room for wait
together, and their masks come to the host in one copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from canvas import Box, Canvas, Placement, Triple, gather, scatter
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.schema import FineConfig
from coarse2fine.fine.deadline import Job
from coarse2fine.fine.growth import Growth, cut_faces, follow_mask
from coarse2fine.fine.inputs import input_channels, input_reader
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.nnunet.instance_norm import mark_slots
from coarse2fine.nnunet.model import Model
from coarse2fine.system.device import most_at_once, to_host, upload, waiting_bytes
from coarse2fine.system.memory import is_memory_full
from coarse2fine.system.timing import RunClock, Stage

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Passes:
    """What stays the same from canvas to canvas.

    Attributes:
        settings: Of the fine stage.
        step: Growth of a box whose mask touches its face.
        scene: What is segmented.
        model: The fine model, with the instance normalisation that is asked for.
        marked: Whether the model is told where slots are, each of which has statistics of its own.
        writer: Receives the outputs.
        clock: Books network passes under ``fine.network``.
        feature_bytes: Of all feature maps of one input, by its shape; known after its first pass.
    """

    settings: FineConfig
    step: Triple
    scene: Scene
    model: Model
    marked: bool
    writer: LabelWriter
    clock: RunClock
    feature_bytes: dict[Triple, int] = field(default_factory=dict)

    def worth(self, region: Box) -> bool:
        """Whether a box may grow into a region."""
        view = self.scene.view
        return self.scene.coarse.peak_in(region.shift(view.window.start), view.whole) >= self.settings.grow_above

    def most(self, shape: Triple) -> int:
        """How many canvases of a shape go through the network at once."""
        if self.marked or shape not in self.feature_bytes:
            return 1
        return most_at_once(self.feature_bytes[shape], self.model.device)

    def run(self, canvases: Sequence[Canvas]) -> torch.Tensor:
        """The network's outputs for canvases of one shape, (n, heads, z, y, x), in the type that the network has.

        If a GPU's memory has no room for all, they run in two parts.
        """
        batch = torch.stack([self._input(canvas) for canvas in canvases])
        shape = canvases[0].shape
        counting: AbstractContextManager[list[int]]
        counting = nullcontext([]) if shape in self.feature_bytes else _counted(self.model)
        with self.clock.time(Stage.FINE.passes):
            try:
                with counting as sizes:
                    outputs = self.model.forward(batch, mirroring=self.settings.mirroring)
                self.feature_bytes.setdefault(shape, sum(sizes) // len(canvases))
                return outputs
            except RuntimeError as error:
                if len(canvases) == 1 or not is_memory_full(error, on_gpu=True):
                    raise
        half = len(canvases) // 2
        return torch.cat([self.run(canvases[:half]), self.run(canvases[half:])])

    def _input(self, canvas: Canvas) -> torch.Tensor:
        """What the network sees of a canvas, shape (channels, *canvas.shape)."""
        view, prior = self.scene.view, self.scene.prior if self.model.cascade else None
        data = torch.zeros((input_channels(self.model), *canvas.shape), device=view.device)
        gather(canvas, input_reader(view, prior), data)
        return torch.cat([data, upload(mark_slots(canvas), view.device)[None]]) if self.marked else data


@contextmanager
def _counted(model: Model) -> Iterator[list[int]]:
    """The bytes of what the layers of a model's first network return inside, which is more than is there at once."""
    sizes: list[int] = []

    def count(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.nbytes)

    handles = [layer.register_forward_hook(count) for layer in model.networks[0].modules() if not [*layer.children()]]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


class Waiting:
    """Outputs of canvases that nobody has looked at.

    Args:
        passes: Who made them.
    """

    def __init__(self, passes: Passes) -> None:
        self._passes, self._room = passes, waiting_bytes(passes.model.device)
        self._held: list[tuple[Job, torch.Tensor, torch.Tensor]] = []

    @property
    def full(self) -> bool:
        """Whether there is no room for more."""
        return sum(outputs.nbytes for _, outputs, _ in self._held) >= self._room

    def add(self, jobs: Sequence[Job], outputs: torch.Tensor) -> None:
        """Let the outputs of some canvases wait, shape (n, heads, z, y, x)."""
        labels = self._passes.model.labels
        for job, logits in zip(jobs, outputs, strict=True):
            self._held.append((job, logits, labels.is_foreground(logits)))

    def settle(self) -> list[Growth]:
        """Look at all that waits, and hand it to the writer; returns what became of the crops' boxes."""
        held, self._held = self._held, []
        if not held:
            return []
        masks = to_host(torch.cat([mask.flatten() for _, _, mask in held]))
        growths, start = list[Growth](), 0
        for job, logits, mask in held:
            stop = start + mask.numel()
            growths += self._settle(job, logits, masks[start:stop].reshape(mask.shape))
            start = stop
        return growths

    def _settle(self, job: Job, outputs: torch.Tensor, mask: Mask) -> list[Growth]:
        growths, writer = [], self._passes.writer
        for placement, logits in scatter(job.canvas, outputs):
            growth = self._growth(job, placement, mask[placement.slot.slices])
            keep = None if growth.keep is None else upload(growth.keep, writer.device)
            writer.add(placement, logits.float(), growth.box, keep)
            growths.append(growth)
        return growths

    def _growth(self, job: Job, placement: Placement, mask: Mask) -> Growth:
        """What becomes of a crop's box, of whose slot this is the mask."""
        passes, volume, covered = self._passes, self._passes.scene.view.shape, job.covered
        others = covered[(covered != np.array(placement.box.start + placement.box.stop)).any(axis=1)]
        if passes.settings.grow:
            seeds = job.regions[placement.crop].seeds
            return follow_mask(placement, mask, seeds, others, volume, passes.step, passes.worth)
        return Growth(placement.box, refused=cut_faces(placement, mask, others, volume))
