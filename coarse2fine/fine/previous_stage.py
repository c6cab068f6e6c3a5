"""The previous stage's labels as a cascade takes them in nnU-Net's own procedure, for a whole volume in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from canvas import Box, Triple
from coarse2fine.coarse.heatmap import CoarseResult
from coarse2fine.fine.writeback import LabelWriter, export_labels
from coarse2fine.nnunet.model import Model, resample_labels
from coarse2fine.preprocessing.labels import Labels
from coarse2fine.preprocessing.nonzero import nonzero_mask
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.system.device import upload

OUTSIDE = -1
"""nnU-Net's label of background outside of the non-zero region; it takes part in the resampling of labels."""


@dataclass(frozen=True, slots=True, eq=False)
class PreviousLabels:
    """The previous stage's labels on a cascade's whole working grid.

    Attributes:
        labels: Shape (z, y, x); ``OUTSIDE`` outside of the non-zero region. On the device of what is read of it.
        foreground: The labels that have an input channel each.
    """

    labels: torch.Tensor
    foreground: tuple[int, ...]

    def one_hot(self, box: Box, grid: Triple) -> torch.Tensor:
        """Extra input channels of a cascade: one per foreground label, 0 outside of the grid; shape (labels, *box).

        Args:
            box: Of the working grid.
            grid: Its shape, as of the labels.
        """
        inside = box.clip(Box.whole(grid))
        channels = torch.zeros((len(self.foreground), *box.shape), device=self.labels.device)
        if inside.volume:
            shown, target = self.labels[inside.slices], inside.relative_to(box).slices
            for channel, label in zip(channels, self.foreground, strict=True):
                channel[target] = shown == label
        return channels


def given_labels(labels: Labels, view: WorkingView, fine: Model) -> PreviousLabels:
    """Labels in the volume's own voxel order, as nnU-Net shows them to a cascade.

    Args:
        labels: Shape (z, y, x) of the volume.
        view: The cascade's view of the volume.
        fine: The cascade.
    """
    turned = np.asarray(view.turn.array(labels))[view.crop.slices].astype(np.int32)
    inside = nonzero_mask([np.asarray(channel)[view.crop.slices] for channel in view.channels]).whole()
    turned[(turned == 0) & ~inside] = OUTSIDE
    shown = resample_labels(fine, turned, view.whole, view.spacing)
    return PreviousLabels(upload(shown, view.device), fine.labels.foreground)


def previous_labels(coarse: CoarseResult, coarse_view: WorkingView, view: WorkingView, fine: Model) -> PreviousLabels:
    """Coarse labels for a cascade: exported to the volume's grid, and resampled from there.

    Chosen boxes get theirs from the coarse outputs directly (``CoarseResult.one_hot``), which costs what the boxes
    cost, and differs in voxels at the borders of labels.

    Args:
        coarse: The coarse result of the whole volume.
        coarse_view: The coarse model's view of it.
        view: The cascade's.
        fine: The cascade.
    """
    writer = LabelWriter(coarse_view, coarse.model)
    to_coarse = view.turn.inverse.then(coarse_view.turn)
    export_labels(writer, coarse.model, to_coarse.tensor(coarse.outputs))
    return given_labels(writer.finish(), view, fine)
