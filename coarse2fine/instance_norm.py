"""Instance normalisation on canvases: whose statistics normalise a crop?

nnU-Net's InstanceNorm takes mean and variance over the whole network input, so on a canvas every crop is normalised by
its neighbours too. Three choices:

- ``canvas``: leave it so.
- ``slot``: each slot is normalised by its own voxels, on every feature map.
- ``case``: statistics are measured once per case on native-size tiles and frozen, so that a crop's result depends
  neither on its neighbours nor on its size. Statistics from elsewhere than the tile: arXiv 2503.19545.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from canvas import Box, Canvas, Triple
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


class FrozenNorm(nn.Module):
    """InstanceNorm3d with statistics that do not depend on its input."""

    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, norm: nn.InstanceNorm3d, mean: torch.Tensor, variance: torch.Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise a feature map of shape (n, channels, z, y, x)."""
        return F.batch_norm(
            features, self.mean, self.variance, self.norm.weight, self.norm.bias, False, 0.0, self.norm.eps
        )


def with_slot_statistics(model: Model) -> tuple[Model, SlotLayout]:
    """A copy of the model whose norm layers follow the returned layout."""
    layout = SlotLayout()
    networks = tuple(_replace(network, lambda norm, name: SlotNorm(norm, layout)) for network in model.networks)
    return dataclasses.replace(model, networks=networks), layout


def with_frozen_statistics(model: Model, tiles: Sequence[torch.Tensor]) -> Model:
    """A copy of the model whose norm layers use the mean statistics of some tiles.

    Args:
        model: The plain model.
        tiles: Native-size inputs, each of shape (1, channels, z, y, x).
    """
    networks = []
    for network in model.networks:
        seen = _measure(network, [tile.to(model.device) for tile in tiles])
        networks.append(_replace(network, functools.partial(_freeze, seen)))
    return dataclasses.replace(model, networks=tuple(networks))


def _freeze(seen: Mapping[str, tuple[torch.Tensor, torch.Tensor]], norm: nn.InstanceNorm3d, name: str) -> FrozenNorm:
    return FrozenNorm(norm, *seen[name])


def _measure(network: nn.Module, tiles: Sequence[torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance of the input of each norm layer over all voxels of all tiles, as if they were one input."""
    moments: dict[str, list[torch.Tensor]] = {}

    def record(name: str) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            # Squaring the feature map itself would cost a second one.
            variance, mean = torch.var_mean(inputs[0].float(), (0, 2, 3, 4), correction=0)
            both = torch.stack([mean, variance + mean.square()])
            moments.setdefault(name, []).append(both)

        return network.get_submodule(name).register_forward_pre_hook(hook)

    handles = [record(name) for name, module in network.named_modules() if isinstance(module, nn.InstanceNorm3d)]
    try:
        with torch.inference_mode():
            for tile in tiles:
                network(tile)
    finally:
        for handle in handles:
            handle.remove()
    means = {name: torch.stack(values).mean(0) for name, values in moments.items()}
    return {name: (mean, (square - mean.square()).clamp_min(0)) for name, (mean, square) in means.items()}


def _replace(network: nn.Module, build: Callable[[nn.InstanceNorm3d, str], nn.Module]) -> nn.Module:
    """The network, sharing its weights, with every InstanceNorm3d replaced by ``build(norm, name)``."""
    # Copies of the layers, not of their weights.
    result = copy.deepcopy(network, {id(weight): weight for weight in network.parameters()})
    built = {
        module: build(module, name) for name, module in result.named_modules() if isinstance(module, nn.InstanceNorm3d)
    }
    # nnU-Net's blocks hold a layer under several names, so every reference is replaced, not every name.
    for parent in list(result.modules()):
        if not isinstance(parent, (SlotNorm, FrozenNorm)):
            for name, child in parent._modules.items():
                if isinstance(child, nn.InstanceNorm3d):
                    parent._modules[name] = built[child]
    return result
