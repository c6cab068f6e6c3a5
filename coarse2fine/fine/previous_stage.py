"""The previous stage's labels as a cascade takes them in nnU-Net's own procedure, for a whole volume in memory."""

from __future__ import annotations

import numpy as np

from coarse2fine.coarse.heatmap import CoarseResult
from coarse2fine.fine.writeback import LabelWriter, export_labels
from coarse2fine.nnunet.model import Model, resample_labels
from coarse2fine.preprocessing.working_grid import WorkingView, nonzero_mask
from coarse2fine.resampling.operators import Floats

OUTSIDE = -1
"""nnU-Net's label of background outside of the non-zero region; it takes part in the resampling of labels."""


def previous_labels(coarse: CoarseResult, coarse_view: WorkingView, view: WorkingView, fine: Model) -> Floats:
    """Coarse labels as further input channels of a cascade: exported to the volume's grid, and resampled from there.

    Chosen boxes get theirs from the coarse outputs directly (``CoarseResult.one_hot``), which costs what the boxes
    cost, and differs in voxels at the borders of labels.

    Args:
        coarse: The coarse result of the whole volume.
        coarse_view: The coarse model's view of it.
        view: The cascade's.
        fine: The cascade.

    Returns:
        Shape (labels, *view.shape), 0 or 1.
    """
    writer = LabelWriter(coarse_view, coarse.model)
    to_coarse = view.turn.inverse.then(coarse_view.turn)
    export_labels(writer, coarse.model, to_coarse.last_axes(coarse.logits).astype(np.float16))
    labels = np.asarray(view.turn.array(writer.finish()))[view.crop.slices].astype(np.int32)
    inside = nonzero_mask([np.asarray(channel)[view.crop.slices] for channel in view.channels])
    labels[(labels == 0) & ~inside] = OUTSIDE
    shown = resample_labels(fine, labels, view.shape, view.spacing)
    return np.stack([shown == label for label in fine.labels.foreground]).astype(np.float32)
