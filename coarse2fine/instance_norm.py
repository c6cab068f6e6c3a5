"""Instance normalisation on canvases: whose statistics normalise a crop?

nnU-Net's InstanceNorm takes mean and variance over the whole network input, so on a canvas every crop is normalised by
its neighbours too. Three choices:

- ``canvas``: leave it so.
- ``slot``: each slot is normalised by its own voxels, on every feature map.
- ``case``: statistics are measured once per case on native-size tiles and frozen, so that a crop's result depends
  neither on its neighbours nor on its size. Statistics from elsewhere than the tile: arXiv 2503.19545.

Except for ``slot``, networks run as lean copies (``lean.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from canvas import Box, Canvas, Triple
from coarse2fine.lean import InPlaceNorm, leaner, pool, with_layers
from coarse2fine.nnunet import Model


class SlotLayout:
    """Where the slots of the canvas that is about to run lie; shared by all layers of a network."""

    def __init__(self) -> None:
        self._shape: Triple = (1, 1, 1)
        self._slots: tuple[Box, ...] = ()
        self._flipped: tuple[int, ...] = ()

    def show(self, canvas: Canvas) -> None:
        """Announce the next canvas."""
        self._shape, self._slots = canvas.shape, tuple(placement.slot for placement in canvas.placements)
        self._flipped = ()

    def flip(self, axes: tuple[int, ...]) -> None:
        """Announce that the canvas comes mirrored along these axes (0 = z)."""
        self._flipped = axes

    def on_grid(self, shape: Sequence[int]) -> list[tuple[slice, slice, slice]]:
        """The slots on a feature map of the given shape; edges rounded to its voxels."""
        grids = []
        for slot in self._slots:
            index = []
            for axis, (start, stop, size, edge) in enumerate(
                zip(slot.start, slot.stop, self._shape, shape, strict=True)
            ):
                low, high = (size - stop, size - start) if axis in self._flipped else (start, stop)
                index.append(
                    slice(round(low * edge / size), max(round(high * edge / size), round(low * edge / size) + 1))
                )
            grids.append((index[0], index[1], index[2]))
        return grids


class SlotNorm(nn.Module):
    """InstanceNorm3d that normalises each slot by its own statistics, and what lies between by the canvas'."""

    def __init__(self, norm: nn.InstanceNorm3d, layout: SlotLayout) -> None:
        super().__init__()
        self.norm, self.layout = norm, layout

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise a feature map of shape (n, channels, z, y, x)."""
        result: torch.Tensor = self.norm(features)
        for index in self.layout.on_grid(features.shape[2:]):
            z, y, x = index
            part = features[..., z, y, x]
            if part[0, 0].numel() > 1:  # a single voxel has no variance
                result[..., z, y, x] = self.norm(part)
        return result


def with_slot_statistics(model: Model) -> tuple[Model, SlotLayout]:
    """A copy of the model whose norm layers follow the returned layout."""
    layout = SlotLayout()

    def build(layer: nn.Module) -> nn.Module | None:
        return SlotNorm(layer, layout) if isinstance(layer, nn.InstanceNorm3d) else None

    return with_layers(model, build), layout


def with_frozen_statistics(model: Model, tiles: Sequence[torch.Tensor]) -> Model:
    """A lean copy of the model whose norm layers use the statistics of some tiles, as if these were one input.

    Args:
        model: The plain model.
        tiles: Native-size inputs, all of the same shape (1, channels, z, y, x).
    """
    model = with_layers(model, leaner)
    for network in model.networks:
        norms = [module for module in network.modules() if isinstance(module, InPlaceNorm)]
        seen = []
        with torch.inference_mode():
            for tile in tiles:
                network(tile.to(model.device))
                seen.append([torch.stack(norm.seen) for norm in norms])
        for norm, statistics in zip(norms, zip(*seen, strict=True), strict=True):
            norm.freeze(*pool(*torch.stack(statistics, 1)))
    return model
