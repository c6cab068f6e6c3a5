"""What a network sees in the regions of a tree: the numbers that a trained agent chooses by.

A region is a box of which the network's deepest feature map (its bottleneck) is pooled to 2 x 2 cells in the plane (y,
x), each over the region's whole depth, as in the original system (320 channels: 1280 numbers). Two networks can be
asked:

- ``coarse``: the coarse one, which has looked at everything anyway. Costs nothing but the pooling.
- ``fine``: the fine one, as there. Costs an encoder pass of a slot's size for every region of the tree, chosen
  or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.nn import functional as F

from assignnet import NO_FEATURES, Features, RoiTree
from canvas import Box, Triple, to_array, triple
from coarse2fine.coarse.feature_map import BottleneckMap, encoder_of, feature_channels
from coarse2fine.coarse.foreground import counted_names
from coarse2fine.coarse.scene import Scene
from coarse2fine.fine.inputs import input_reader
from coarse2fine.nnunet.fingerprint import network_fingerprint
from coarse2fine.nnunet.model import Model
from coarse2fine.resampling.operators import Floats
from coarse2fine.system.device import autocast, to_host
from coarse2fine.system.timing import RunClock, Stage

Source = Literal["none", "coarse", "fine"]
Downsample = Literal["center", "resize"]
Pooling = Literal["max", "mean"]

CELLS = 4
"""Cells that a region is pooled to: 2 x 2 in the plane."""


@dataclass(frozen=True, slots=True)
class FeatureSettings:
    """What is computed of every region.

    Attributes:
        source: Whose encoder; ``none`` leaves an agent with the 7 numbers of the box itself.
        downsample_mode: For source ``fine``, how a region becomes a crop of a slot's size: the slot at its centre at
            native resolution (``center``), or all of it, shrunk where it is larger than the slot (``resize``).
        pooling_mode: How each cell is pooled.
        global_info: Also mean and maximum over the whole volume (source ``coarse``) or over all regions (``fine``).

    Raises:
        ValueError: If a value is none of those.
    """

    source: Source = "coarse"
    downsample_mode: Downsample = "center"
    pooling_mode: Pooling = "max"
    global_info: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("source", Source), ("downsample_mode", Downsample), ("pooling_mode", Pooling)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}, none of {', '.join(get_args(kind))}")
        if not isinstance(self.global_info, bool):
            raise ValueError(f"global_info is {self.global_info!r}, neither true nor false")

    @property
    def wants_coarse(self) -> bool:
        """Whether the coarse stage has to keep its bottleneck."""
        return self.source == "coarse"

    def model(self, coarse: Model, fine: Model) -> Model | None:
        """The model whose encoder is asked."""
        return {"none": None, "coarse": coarse, "fine": fine}[self.source]

    def size(self, coarse: Model, fine: Model) -> tuple[int, int]:
        """Numbers per region, and of the whole volume."""
        model = self.model(coarse, fine)
        channels = 0 if model is None else feature_channels(model)
        return CELLS * channels, 2 * channels if self.global_info else 0


def feature_card(
    settings: FeatureSettings, coarse: Model, fine: Model, foreground: Sequence[str] | None = None
) -> dict[str, Any]:
    """What an agent's card says about its features.

    Args:
        settings: What is computed of every region.
        coarse: The coarse model.
        fine: The fine model.
        foreground: ``coarse.foreground``: regions, scores and masses come from the heatmap of these labels.

    Returns:
        The settings, the fingerprint of the model that is asked, and the labels that count; None for all.
    """
    model = settings.model(coarse, fine)
    fingerprint = None if model is None else feature_model_fingerprint(model)
    return asdict(settings) | {"fingerprint": fingerprint, "foreground": counted_names(foreground, coarse)}


def feature_model_fingerprint(model: Model) -> str:
    """Of a model's first network, whose features agents see; see ``network_fingerprint``."""
    return network_fingerprint(model.networks[0])


def tree_features(
    settings: FeatureSettings,
    tree: RoiTree,
    scene: Scene,
    fine: Model,
    slot: Triple,
    clock: RunClock | None = None,
) -> Features:
    """What a network sees in every region of a tree.

    Args:
        settings: Which network, and how it is asked.
        tree: The regions, in voxels of the working grid.
        scene: What the regions are of; its coarse result with the bottleneck for source ``coarse``.
        fine: The fine model.
        slot: Size of the crops for source ``fine``.
        clock: Books network passes under ``assign.network``.

    Returns:
        Nodes of shape (regions, 4 * channels), cell by cell in the order of (y, x); the volume's features of shape
        (2 * channels,), mean and maximum, or (0,).

    Raises:
        ValueError: If the coarse result has no bottleneck where one is needed.
    """
    if settings.source == "none":
        return Features(np.zeros((len(tree.rois), 0), np.float32), NO_FEATURES.volume)
    boxes, view, coarse = [roi.box for roi in tree.rois], scene.view, scene.coarse
    if settings.source == "fine":
        nodes = _seen_by_fine(settings, boxes, scene, fine, slot, clock or RunClock())
        everything = nodes.reshape(len(nodes) * CELLS, nodes.shape[1] // CELLS).T
    elif coarse.bottleneck is None:
        raise ValueError("the coarse stage ran without keeping its bottleneck")
    else:
        placed = [box.shift(view.window.start) for box in boxes]
        nodes = pool_boxes(coarse.bottleneck, placed, view.whole, settings.pooling_mode)
        everything = coarse.bottleneck.values
    return Features(nodes, _mean_and_max(everything) if settings.global_info else NO_FEATURES.volume)


def _mean_and_max(values: Floats) -> Floats:
    """Over all but the first axis, in this order; 0 if there is nothing."""
    axes = tuple(range(1, values.ndim))
    if not values.size:
        return np.zeros(2 * len(values), np.float32)
    return np.concatenate([values.mean(axis=axes), values.max(axis=axes)])


def pool_boxes(kept: BottleneckMap, boxes: Sequence[Box], grid: Triple, mode: Pooling) -> Floats:
    """Pool the map voxels that each cell of each box touches; all that a cell touches count alike.

    Args:
        kept: The map.
        boxes: On a finer grid over the same region of space; may reach out of it.
        grid: Shape of the finer grid.
        mode: Maximum or mean.

    Returns:
        Shape (boxes, 4 * channels).
    """
    channels = len(kept.values)
    corners = to_array(boxes)[:, None] * 2  # in half voxels, so that boxes can be cut in two
    low, high = corners[..., :3], corners[..., 3:]
    middle = (low + high) // 2
    upper = np.array([[0, y, x] for y in (0, 1) for x in (0, 1)], dtype=bool)
    cut = np.array([False, True, True])
    starts = np.where(upper, middle, low)
    stops = np.where(upper | ~cut, high, middle)
    first, last = kept.touched(starts, stops, grid)
    # Most regions are small against the map's voxels, so that many cells touch the same ones.
    wanted, where = np.unique(np.concatenate([first, last], axis=-1).reshape(-1, 6), axis=0, return_inverse=True)
    values = np.moveaxis(kept.values, 0, -1)
    pooled = np.empty((len(wanted), channels), np.float32)
    reduce = np.max if mode == "max" else np.mean
    for row, (z0, y0, x0, z1, y1, x1) in zip(pooled, wanted.tolist(), strict=True):
        reduce(values[z0:z1, y0:y1, x0:x1], axis=(0, 1, 2), out=row)
    return pooled[where].reshape(len(boxes), CELLS * channels)


def _seen_by_fine(
    settings: FeatureSettings,
    boxes: Sequence[Box],
    scene: Scene,
    fine: Model,
    slot: Triple,
    clock: RunClock,
) -> Floats:
    """Features of crops by the fine encoder, shape (boxes, 4 * channels)."""
    # A crop is a network input of its own here, so its edges must be divisible as often as the network halves them.
    shape = triple(-(-edge // by) * by for edge, by in zip(slot, fine.divisor, strict=True))
    read = input_reader(scene.view, scene.prior if fine.cascade else None)
    nodes, volume = [torch.zeros((0, CELLS * feature_channels(fine)), device=fine.device)], scene.view.shape
    for group in _batches(boxes, max(1, prod(fine.patch) // prod(shape))):
        crops = torch.stack([read(_source(box, shape, volume, settings.downsample_mode), shape) for box in group])
        with clock.time(Stage.ASSIGN.passes):
            nodes.append(_encode(fine, crops, settings.pooling_mode))
    return to_host(torch.cat(nodes))


def _batches(boxes: Sequence[Box], size: int) -> Iterator[Sequence[Box]]:
    """As many crops at once as fill one patch: that much memory the fine stage needs too."""
    for start in range(0, len(boxes), size):
        yield boxes[start : start + size]


def _source(box: Box, slot: Triple, volume: Triple, mode: Downsample) -> Box:
    """The region that a crop shows: the slot around a box's centre, or on each axis at least all of the box."""
    shape = slot if mode == "center" else triple(map(max, slot, box.shape))
    return box.centred(shape, Box.whole(volume))


def _encode(model: Model, batch: torch.Tensor, mode: Pooling) -> torch.Tensor:
    """Bottleneck features of a batch (n, channels, z, y, x), pooled to cells that overlap where edges are odd."""
    with torch.inference_mode(), autocast(model.device):
        deepest = encoder_of(model)(batch.to(model.device))[-1].float()
        pool = F.adaptive_max_pool3d if mode == "max" else F.adaptive_avg_pool3d
        cells: torch.Tensor = pool(deepest, (1, 2, 2))
    return cells.flatten(2).transpose(1, 2).flatten(1)
