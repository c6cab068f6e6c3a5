"""One-stage mode: nnU-Net's own procedure, a sliding window over everything; our reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Box
from coarse2fine.coarse.heatmap import CoarseStage, predict_heatmap
from coarse2fine.config.schema import Config
from coarse2fine.fine.previous_stage import PreviousLabels, given_labels, previous_labels
from coarse2fine.fine.writeback import LabelWriter, export_labels
from coarse2fine.io import Volume
from coarse2fine.nnunet.cpu_layers import lean
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.sliding_window import sliding_window
from coarse2fine.preprocessing.labels import Labels
from coarse2fine.preprocessing.working_grid import WorkingView, view_volume
from coarse2fine.system.device import outgrown
from coarse2fine.system.timing import Run, Stage


def segment_one_stage(
    volume: Volume[Any], config: Config, coarse: Model | None, fine: Model, run: Run
) -> NDArray[np.unsignedinteger[Any]]:
    """Labels of a volume in memory, as nnU-Net's predictor makes them; arguments as of ``write_one_stage``.

    Returns:
        Shape (z, y, x) of the volume.
    """
    writer = write_one_stage(volume, config, coarse, fine, run)
    with run.clock.time(Stage.FINE):
        return writer.finish()


def write_one_stage(
    volume: Volume[Any],
    config: Config,
    coarse: Model | None,
    fine: Model,
    run: Run,
    *,
    probabilities: bool = False,
    previous: Labels | None = None,
) -> LabelWriter:
    """A writer to which everything is written that nnU-Net's predictor would write.

    Args:
        volume: Channels of shape (z, y, x) with their grid.
        config: All settings.
        coarse: The previous stage of a cascade, which is run first, likewise, unless its labels are given; not needed
            by others.
        fine: The model.
        run: Books ``fine`` and ``fine.network``, and of a cascade ``coarse``; told of every tile.
        probabilities: Whether the writer keeps these.
        previous: The previous stage's labels, if they are there already; shape (z, y, x) of the volume.
    """
    with run.clock.time(Stage.FINE):
        view = view_volume(volume, fine)
    prior: PreviousLabels | None = None
    if fine.cascade and previous is not None:
        with run.clock.time(Stage.COARSE):
            prior = given_labels(previous, view, fine)
    elif fine.cascade and coarse is not None:
        prior = _first_stage(volume, config, coarse, fine, view, run)
    with run.clock.time(Stage.FINE):
        data = view.read_all(Box.whole(view.shape))
        if prior is not None:
            data = torch.cat([data, prior.one_hot(Box.whole(view.shape), view.shape).to(data.device)])
        with run.clock.time(Stage.FINE.passes):
            logits = sliding_window(
                lean(fine),
                data,
                tile_step=config.fine.tile_step,
                mirroring=config.fine.mirroring,
                ticks=run.ticks("fine"),
            )
        run.note(*outgrown(fine.device, {data.device, logits.device}, "sliding window"))
        writer = LabelWriter(view, fine, probabilities=probabilities)
        export_labels(writer, fine, logits)
        return writer


def _first_stage(
    volume: Volume[Any], config: Config, coarse: Model, fine: Model, view: WorkingView, run: Run
) -> PreviousLabels:
    """The labels of a cascade's previous stage, which is run for them."""
    with run.clock.time(Stage.COARSE):
        seen = view_volume(volume, coarse, config.coarse.spacing)
        result = predict_heatmap(CoarseStage(lean(coarse), fine, config.coarse), seen, run)
        return previous_labels(result, seen, view, fine)
