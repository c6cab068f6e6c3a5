"""Inputs of the fine network, and the tiles on which ``norm: case`` is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from assignnet import Roi, in_space_order
from canvas import (
    Box,
    Read,
    Triple,
)
from coarse2fine.coarse.scene import Prior, Scene
from coarse2fine.config.schema import Config
from coarse2fine.fine.sizes import CanvasPlan
from coarse2fine.nnunet.instance_norm import (
    NormStatistics,
    measure_statistics,
)
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.system.device import upload
from coarse2fine.system.timing import RunClock, Stage


@dataclass(frozen=True, slots=True, eq=False)
class VolumeNorm:
    """What is settled about ``norm: case`` before boxes are segmented.

    Attributes:
        statistics: Measured once; None if there are none.
        alone: Whether each box gets a canvas of its own; None if that is decided by the boxes.
    """

    statistics: NormStatistics | None = None
    alone: bool | None = None


UNSETTLED = VolumeNorm()
"""Boxes are treated as if they were all that there are."""


def input_reader(view: WorkingView, prior: Prior | None) -> Read[torch.Tensor]:
    """Reads network inputs: the image's channels, and in a cascade the previous stage's labels as further channels."""

    def read(box: Box, shape: Triple) -> torch.Tensor:
        data = view.read(box, shape)
        if prior is None:
            return data
        labels = prior.one_hot(box.shift(view.window.start), view.whole)
        if shape != box.shape:
            for axis, (old, new) in enumerate(zip(box.shape, shape, strict=True), 1):
                nearest = ((np.arange(new) + 0.5) * old / new).astype(int)
                labels = labels.index_select(axis, upload(nearest, labels.device))
        return torch.cat([data, labels])

    return read


def input_channels(model: Model) -> int:
    """Input channels of a model: the image's, and in a cascade one for each foreground label."""
    return model.channels + (len(model.labels.foreground) if model.cascade else 0)


def norm_tiles(boxes: Sequence[Box], config: Config, plan: CanvasPlan, model: Model, volume: Triple) -> list[Box]:
    """The native tiles that ``norm: case`` is measured on: around some of the boxes, spread over space.

    Which they are does not depend on the order of the boxes.

    Args:
        boxes: Of the case.
        config: Says how many.
        plan: Sizes.
        model: Its patch is the size of a tile.
        volume: Shape of the working grid.
    """
    spread = in_space_order([Roi(box, 0.0, 0.0) for box in boxes], plan.native)
    count = min(config.canvas.norm_tiles, len(boxes))
    picked = [spread[round(index)].box for index in np.linspace(0, len(boxes) - 1, count)]
    return [box.centred(model.patch, Box.whole(volume)) for box in picked]


def measure_case(scene: Scene, model: Model, tiles: Sequence[Box], clock: RunClock) -> NormStatistics:
    """The statistics of ``norm: case``.

    Args:
        scene: What the tiles are of.
        model: The fine model.
        tiles: From ``norm_tiles``.
        clock: Books network passes under ``fine.network``.
    """
    read = input_reader(scene.view, scene.prior if model.cascade else None)
    inputs = [read(tile, tile.shape) for tile in tiles]
    with clock.time(Stage.FINE.passes):
        return measure_statistics(model, inputs)
