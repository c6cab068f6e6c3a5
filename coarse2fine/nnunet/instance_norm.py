"""Instance normalisation on canvases: whose statistics normalise a crop?

nnU-Net's InstanceNorm takes mean and variance over the whole network input, so on a canvas every crop is normalised by
its neighbours too. Three choices:

- ``canvas``: leave it so.
- ``slot``: each slot is normalised by its own voxels, on every feature map.
- ``case``: statistics are measured once per case on native-size tiles and frozen, so that a crop's result depends
  neither on its neighbours nor on its size. Statistics from elsewhere than the tile: arXiv 2503.19545.

Except for ``slot``, networks run as lean copies (``cpu_layers``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import torch
from scipy.ndimage import find_objects
from torch import nn

from canvas import Canvas
from coarse2fine.errors import ModelError
from coarse2fine.nnunet.cpu_layers import InPlaceNorm, leaner, pool, with_layers
from coarse2fine.nnunet.folding import fold_norms
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.precision import in_both
from coarse2fine.resampling.operators import Floats
from coarse2fine.system.device import is_host, to_host


def mark_slots(canvas: Canvas) -> Floats:
    """What tells a model with slot statistics where the slots are: each slot's number, shape (z, y, x); 0 between."""
    marks = np.zeros(canvas.shape, np.float32)
    for number, slot in enumerate(dict.fromkeys(placement.slot for placement in canvas.placements), 1):
        marks[slot.slices] = number
    return marks


class SlotLayout:
    """Where the slots of the network input lie that is running; shared by all layers of a network."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = (1, 1, 1)
        self._slots: list[tuple[slice, ...]] = []

    def show(self, marks: torch.Tensor) -> None:
        """Announce the next input by what ``mark_slots`` gives for it."""
        self._shape = tuple(marks.shape)
        self._slots = [slot for slot in find_objects(to_host(marks).astype(np.int32)) if slot is not None]

    def on_grid(self, shape: Sequence[int]) -> list[tuple[slice, ...]]:
        """The slots on a feature map of the given shape; edges rounded to its voxels."""
        grids = []
        for slot in self._slots:
            index = []
            for span, size, edge in zip(slot, self._shape, shape, strict=True):
                low, high = (round(end * edge / size) for end in (span.start, span.stop))
                index.append(slice(low, max(high, low + 1)))
            grids.append(tuple(index))
        return grids


class SlotNorm(nn.Module):
    """InstanceNorm3d that normalises each slot by its own statistics, and what lies between by the canvas'."""

    def __init__(self, norm: nn.InstanceNorm3d, layout: SlotLayout) -> None:
        super().__init__()
        self.norm, self.layout = norm, layout

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise a feature map of shape (n, channels, z, y, x)."""
        result: torch.Tensor = self.norm(features)
        for z, y, x in self.layout.on_grid(features.shape[2:]):
            part = features[..., z, y, x]
            if part[0, 0].numel() > 1:  # a single voxel has no variance
                result[..., z, y, x] = self.norm(part)
        return result


class SlotNetwork(nn.Module):
    """A network whose norm layers follow a layout, which comes as a last input channel and is mirrored with it."""

    def __init__(self, network: nn.Module, layout: SlotLayout) -> None:
        super().__init__()
        self.network, self.layout = network, layout

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Network outputs for one input, shape (1, channels + 1, z, y, x)."""
        self.layout.show(batch[0, -1])
        result: torch.Tensor = self.network(batch[:, :-1])
        return result


def with_slot_statistics(model: Model) -> Model:
    """A copy of the model that takes what ``mark_slots`` gives as a further channel, the last one."""
    layout = SlotLayout()

    def build(layer: nn.Module) -> nn.Module | None:
        return SlotNorm(layer, layout) if isinstance(layer, nn.InstanceNorm3d) else None

    follows = with_layers(model, build)
    return dataclasses.replace(follows, networks=tuple(SlotNetwork(network, layout) for network in follows.networks))


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


def measure_statistics(model: Model, tiles: Sequence[torch.Tensor]) -> NormStatistics:
    """Statistics of all norm layers over some inputs, as if these were one.

    Each network's passes are those of inference (``Model.forward``), in the precision that the device works in; on the
    CPU in single precision, whatever the model's, as they are few and all others depend on them.

    Args:
        model: The plain model.
        tiles: Network inputs, all of the same shape (channels, z, y, x).
    """
    exact = dataclasses.replace(model, precision=torch.float32, trial=None)
    open_model = with_layers(exact, leaner(exact.precision))
    networks: list[tuple[Floats, ...]] = []
    for fold, network in enumerate(open_model.networks):
        norms = _norms(network)
        seen = []
        for tile in tiles:
            open_model.forward(tile[None], mirroring=False, fold=fold)
            seen.append([torch.stack(norm.seen).float() for norm in norms])
        pooled = [torch.stack(pool(*torch.stack(statistics, 1))) for statistics in zip(*seen, strict=True)]
        if not pooled:  # a network without instance normalisation
            networks.append(())
            continue
        ends = np.cumsum([layer.shape[1] for layer in pooled])
        networks.append(tuple(np.split(to_host(torch.cat(pooled, 1)), ends[:-1], axis=1)))
    return NormStatistics(tuple(networks))


def with_frozen_statistics(model: Model, statistics: NormStatistics) -> Model:
    """A lean copy of the model whose norm layers use these statistics, whatever the input; on the CPU they are folded.

    Args:
        model: The plain model.
        statistics: From ``measure_statistics`` of the same model.

    Raises:
        ModelError: If they are of another model.
    """
    return in_both(model, partial(_frozen, statistics=statistics))


def _frozen(model: Model, statistics: NormStatistics) -> Model:
    frozen = with_layers(model, leaner(model.precision))
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
    if is_host(model.device):
        for folded in frozen.networks:
            fold_norms(folded)
    return frozen


def _norms(network: nn.Module) -> list[InPlaceNorm]:
    """The norm layers of a lean network."""
    return [module for module in network.modules() if isinstance(module, InPlaceNorm)]
