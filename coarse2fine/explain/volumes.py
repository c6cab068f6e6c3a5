"""Maps of a trained nnU-Net model over a whole volume, by its sliding window.

Every tile gives a map of its own, for what the network finds in that tile or for given voxels. Maps are blended with
nnU-Net's Gaussian weights, averaged over folds, brought back to the volume's own grid by linear interpolation, and only
then divided by the highest value, so that places in different tiles can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.config.validation import did_you_mean
from coarse2fine.errors import ConfigError, ModelError
from coarse2fine.explain.gradcam import Method, find_layer, layer_map
from coarse2fine.explain.scores import found_in, score_of
from coarse2fine.io import Volume
from coarse2fine.networks.features import middle_stage
from coarse2fine.nnunet.model import Model, gaussian
from coarse2fine.nnunet.sliding_window import tiles_touching
from coarse2fine.preprocessing.working_grid import WorkingView, view_volume
from coarse2fine.resampling.operators import Floats, multiply_axis, stretch_on
from coarse2fine.system.device import CPU, to_host, upload
from coarse2fine.system.terminal import shown
from coarse2fine.system.timing import Ticks

METHOD: Method = "hires-cam"
TILE_STEP = 0.5
"""Distance of neighbouring tiles as a share of the tile, nnU-Net's own."""
BATCH_VOXELS = 1 << 20
"""Most voxels of tiles that pass the network together: slices of a 2D model take no more memory than a 3D tile."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """An output of a model that sees a volume tile by tile.

    Attributes:
        model: Its networks' maps are averaged.
        head: The output.
        layer: Where maps are taken.
        dense: Whether each voxel has an output; else each tile has one.
    """

    model: Model
    head: int
    layer: str
    dense: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """A map over a volume.

    Attributes:
        values: float32, shape (z, y, x) of the volume, from 0 to 1, which is the highest value.
        explained: The voxels whose score it explains, same shape.
        layer: Where it was taken.
        dense: Whether it is about voxels; else about the whole image, and no voxels are explained.
    """

    values: Floats
    explained: NDArray[np.bool_]
    layer: str
    dense: bool = True

    @property
    def doubts(self) -> tuple[str, ...]:
        """A warning if the map says nothing."""
        if self.dense and not self.explained.any():
            return (
                "there is nothing to explain, and the map is 0 everywhere: name voxels with --mask to see what speaks "
                "for the label there",
            )
        if not self.values.any():
            return (f"nothing in layer {self.layer} speaks for the label, and the map is 0 everywhere",)
        return ()


def default_layer(model: Model) -> str:
    """The encoder's middle stage."""
    return f"encoder.stages.{middle_stage(model.networks[0])}"


def explain_volume(
    model: Model,
    volume: Volume[Any],
    label: str,
    *,
    layer: str | None = None,
    method: Method = METHOD,
    mask: NDArray[np.bool_] | None = None,
    ticks: Ticks = lambda done, total: None,
) -> Explanation:
    """Where a model looks when it finds a label.

    Args:
        model: All its folds are averaged; without mirroring.
        volume: In memory.
        label: Its name, or a region's, as in ``dataset.json``.
        layer: A part of the network, as ``named_modules()`` of it says; None for the middle stage of the encoder.
        method: HiResCAM, as Grad-CAM's mean says little before an instance normalisation (see ``gradcam``).
        mask: The voxels that are explained, shape (z, y, x) of the volume; None for those in which the network finds
            the label.
        ticks: Called after every pass.

    Raises:
        ConfigError: If there is no such label or layer.
        ModelError: If the model is a cascade.
        VolumeError: If the volume does not fit the model.
    """
    subject = subject_of(model, label, layer)
    view = view_volume(volume, model)
    return explain_view(subject, view, method=method, mask=mask, ticks=ticks)


def explain_view(
    subject: Subject,
    view: WorkingView,
    *,
    method: Method = METHOD,
    mask: NDArray[np.bool_] | None = None,
    ticks: Ticks = lambda done, total: None,
) -> Explanation:
    """The same of a subject, in a volume as it sees it, or a picture as a single slice.

    Args:
        subject: Of ``subject_of``, or another.
        view: The volume.
        method: See ``explain_volume``.
        mask: Likewise; only if every voxel has an output.
        ticks: Called after every pass.

    Raises:
        ModelError: If outputs are no numbers.
    """
    given = None if mask is None else resized(_cropped(mask, view), view.shape)
    sums = _Sums(view.shape)
    # Where a tile is one slice deep, nnU-Net's half steps along that axis come twice to most slices.
    tiles = list(dict.fromkeys(tiles_touching(Box.whole(view.shape), view.shape, subject.model.patch, TILE_STEP)))
    weight = gaussian(subject.model.patch, torch.device("cpu")).float().numpy()
    size = max(1, BATCH_VOXELS // prod(subject.model.patch))
    for done in range(0, len(tiles), size):
        part = tiles[done : done + size]
        for tile, values, explained in zip(part, *_explain_tiles(subject, view, part, method, given), strict=True):
            sums.add(tile, values, explained, weight)
        ticks(done + len(part), len(tiles))
    values = _on_volume(resized(sums.values / sums.weights, view.crop.shape), view)
    highest = float(values.max())
    if not np.isfinite(highest):
        raise ModelError(
            f"outputs of {subject.model.folder} are too large to be explained, or not numbers",
            "Check the voxel size and the intensities of the volume against those of the training data.",
        )
    explained = resized(sums.explained / sums.weights, view.crop.shape) if mask is None else _cropped(mask, view)
    values = values / highest if highest else values
    return Explanation(values, _on_volume(explained, view) > 0.5, subject.layer, subject.dense)


def subject_of(model: Model, label: str, layer: str | None) -> Subject:
    """An output of a trained model; the layer is the default one if it is None.

    Raises:
        ConfigError: If there is no such label or layer.
        ModelError: If the model is a cascade.
    """
    if model.cascade:
        raise ModelError(
            f"{model.folder} is a cascade ({model.configuration}), which also looks at labels of another model",
            "Explain a model that looks at images alone, such as the 3d_lowres or 3d_fullres of the same data set.",
        )
    head = find_head(label, model.labels.head_of, f"that {model.folder} finds")
    name = layer or default_layer(model)
    find_layer(model.networks[0], name)
    return Subject(model, head, name)


def find_head(label: str, known: Mapping[str, int], whose: str) -> int:
    """The output of a label.

    Args:
        label: Its name.
        known: Outputs by name.
        whose: Which labels these are, for messages.

    Raises:
        ConfigError: If there is none of this name.
    """
    if label not in known:
        question = did_you_mean(label, known)
        raise ConfigError(
            f"{shown(label)} is no label {whose}{'; ' + question if question else ''}",
            f"Name one of {', '.join(map(shown, known))}.",
        )
    return known[label]


class _Sums:
    """Weighted sums over the tiles."""

    def __init__(self, shape: Triple) -> None:
        self.values, self.explained, self.weights = (np.zeros(shape, np.float32) for _ in range(3))

    def add(self, tile: Box, values: Floats, explained: Floats, weight: Floats) -> None:
        """Blend in a tile, which may stick out of the volume."""
        inside = tile.clip(Box.whole(triple(self.values.shape)))
        here, there = inside.slices, inside.relative_to(tile).slices
        self.values[here] += values[there] * weight[there]
        self.explained[here] += explained[there] * weight[there]
        self.weights[here] += weight[there]


def _explain_tiles(
    subject: Subject, view: WorkingView, tiles: Sequence[Box], method: Method, given: Floats | None
) -> tuple[Floats, Floats]:
    """Maps, and what is explained, of tiles in one pass, means over networks; each of shape (tiles, *patch)."""
    model, head = subject.model, subject.head
    counts = np.stack([_padded(np.ones(view.shape, np.float32) if given is None else given, tile) for tile in tiles])
    values, explained = np.zeros_like(counts), np.zeros_like(counts)
    seen = np.flatnonzero(counts.any((1, 2, 3)))  # a score of no voxels depends on nothing
    if not len(seen):
        return values, explained
    batch, inside = torch.stack([view.read(tiles[number]) for number in seen.tolist()]), counts[seen]
    if model.flat:
        batch, inside = batch[:, :, 0].contiguous(), inside[:, 0]
    weights = torch.from_numpy(inside).to(model.device)

    def counted(outputs: torch.Tensor) -> torch.Tensor:
        return weights if given is not None else weights * found_in(outputs, head, regions=bool(model.labels.regions))

    def score(outputs: torch.Tensor) -> torch.Tensor:
        return score_of(head, counted(outputs) if subject.dense else None)(outputs)

    shape = (len(seen), *model.patch)  # of a flat model with its axis of 1
    for network in model.networks:
        found, outputs = layer_map(network, batch, subject.layer, score, method=method, conserve=True)
        values[seen] += found.cpu().numpy().reshape(shape)
        if subject.dense:
            explained[seen] += counted(outputs).cpu().numpy().reshape(shape)
    values /= len(model.networks)
    explained /= len(model.networks)
    return values, explained


def _padded(values: Floats, tile: Box) -> Floats:
    """The values of a tile, 0 where it sticks out."""
    result = np.zeros(tile.shape, np.float32)
    inside = tile.clip(Box.whole(triple(values.shape)))
    result[inside.relative_to(tile).slices] = values[inside.slices]
    return result


def _cropped(mask: NDArray[np.bool_], view: WorkingView) -> Floats:
    """A mask over the volume, turned and cropped as its image is."""
    return np.asarray(view.turn.array(mask)[view.crop.slices], np.float32)


def _on_volume(values: Floats, view: WorkingView) -> Floats:
    """Values of the cropped volume on the whole of it, 0 outside, with the axes of its file."""
    full = np.zeros(view.full, np.float32)
    full[view.crop.slices] = values
    return np.ascontiguousarray(view.turn.inverse.array(full))


def resized(values: Floats, shape: Triple) -> Floats:
    """Linear interpolation; means where it would pass over voxels."""
    result = upload(values, CPU)
    for axis, (before, after) in enumerate(zip(values.shape, shape, strict=True)):
        if before != after:
            result = multiply_axis(result, stretch_on(CPU, before, after), axis, 0, before)
    return to_host(result)
