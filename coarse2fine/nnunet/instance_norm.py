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
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import nn

from canvas import Box, Canvas, Triple
from coarse2fine.errors import ModelError
from coarse2fine.nnunet.cpu_layers import InPlaceNorm, leaner, pool, with_layers
from coarse2fine.nnunet.model import Model
from coarse2fine.resampling.operators import Floats


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


@dataclass(frozen=True, slots=True, eq=False)
class NormStatistics:
    """What ``norm: case`` freezes a model's norm layers to.

    Attributes:
        layers: For each network, and in it for each norm layer in the order of its modules, mean and variance of each
            channel: float32, shape (2, channels).
    """

    layers: tuple[tuple[Floats, ...], ...]

    def to_json(self) -> list[list[list[list[float]]]]:
        """As lists of numbers; ``from_json`` gives the same statistics back, to the last bit."""
        return [[layer.tolist() for layer in network] for network in self.layers]

    @classmethod
    def from_json(cls, values: Sequence[Sequence[Sequence[Sequence[float]]]]) -> Self:
        """Statistics from what ``to_json`` returned."""
        return cls(tuple(tuple(np.array(layer, np.float32) for layer in network) for network in values))


def measure_statistics(model: Model, tiles: Sequence[Floats]) -> NormStatistics:
    """Statistics of all norm layers over some inputs, as if these were one.

    Each network's passes are those of inference (``Model.forward``), in the precision that the device works in.

    Args:
        model: The plain model.
        tiles: Network inputs, all of the same shape (channels, z, y, x).
    """
    open_model = with_layers(model, leaner)
    networks = []
    for fold, network in enumerate(open_model.networks):
        norms = _norms(network)
        seen = []
        for tile in tiles:
            open_model.forward(torch.from_numpy(tile)[None], mirroring=False, fold=fold)
            seen.append([torch.stack(norm.seen).float().cpu() for norm in norms])
        pooled = (pool(*torch.stack(statistics, 1)) for statistics in zip(*seen, strict=True))
        networks.append(tuple(torch.stack(both).numpy() for both in pooled))
    return NormStatistics(tuple(networks))


def with_frozen_statistics(model: Model, statistics: NormStatistics) -> Model:
    """A lean copy of the model whose norm layers use these statistics, whatever the input.

    Args:
        model: The plain model.
        statistics: From ``measure_statistics`` of the same model.

    Raises:
        ModelError: If they are of another model.
    """
    frozen = with_layers(model, leaner)
    norms = [_norms(network) for network in frozen.networks]
    wanted = [[(2, norm.norm.num_features) for norm in network] for network in norms]
    given = [[layer.shape for layer in network] for network in statistics.layers]
    if wanted != given:
        raise ModelError(
            f"statistics of norm layers do not fit the model {model.folder}: they are of {len(given)} network(s) with "
            f"{sum(map(len, given))} norm layers, it has {len(wanted)} with {sum(map(len, wanted))}, or other channels",
            "Measure them anew: start the run again in a new work folder.",
        )
    for network, layers in zip(norms, statistics.layers, strict=True):
        for norm, layer in zip(network, layers, strict=True):
            norm.freeze(*torch.from_numpy(layer).to(model.device))
    return frozen


def _norms(network: nn.Module) -> list[InPlaceNorm]:
    """The norm layers of a lean network."""
    return [module for module in network.modules() if isinstance(module, InPlaceNorm)]
