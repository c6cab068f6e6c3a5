"""A volume as the network wants it — transposed, cropped, normalised, resampled — computed only where it is read.

nnU-Net normalises and resamples the whole volume before it looks at any of it. Here the whole volume is only scanned
for its statistics (global normalisation, as nnU-Net does it); normalisation and resampling happen box by box.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.files.readers import channel_doubts, check_channels, look_with, orientation_doubts
from coarse2fine.io.turn import Turn
from coarse2fine.io.volume import Grid, Volume, VoxelArray
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.plans import trainer_doubts
from coarse2fine.preprocessing.nonzero import nonzero_mask
from coarse2fine.preprocessing.normalization import Normalization, fit_normalization, normalization, value_bounds
from coarse2fine.preprocessing.statistics import Scan, nonzero_box
from coarse2fine.resampling.operators import Bounds, Resampling, multiply_axis, plan_resampling, stretch_on
from coarse2fine.system.device import CPU, is_host, room_for, upload

MOST_DIFFERENT = 4.0
"""Factor between a volume's and a model's voxel size beyond which users are asked whether the unit is right."""


@dataclass(frozen=True, slots=True, eq=False)
class WorkingView:
    """The working grid of one model over one volume.

    Attributes:
        channels: The volume's channels, turned; each (z, y, x), file type.
        normalizations: One for each channel.
        bounds: For each channel the normalised range that clips spline overshoot (see ``Resampling``).
        resampling: From the cropped volume to the working grid.
        crop: Where the cropped volume lies in the turned one.
        full: Shape of the turned volume.
        spacing: Voxel size of the turned volume, (z, y, x).
        window: The part of the working grid that is worked on; everybody counts voxels from its start.
        grid: The volume's own grid.
        turn: From the volume's own axes to those of the working grid: what the model's reader does, and the
            transposition in its plans.
        device: Where what is read is computed.
        resident: The channels on the device; empty if each box is uploaded when it is read.
    """

    channels: tuple[VoxelArray, ...]
    normalizations: tuple[Normalization, ...]
    bounds: tuple[Bounds, ...]
    resampling: Resampling
    crop: Box
    full: Triple
    spacing: tuple[float, float, float]
    window: Box
    grid: Grid
    turn: Turn
    device: torch.device
    resident: tuple[torch.Tensor, ...] = ()

    @property
    def shape(self) -> Triple:
        """Voxels of the working grid; of its window, if there is one."""
        return self.window.shape

    @property
    def whole(self) -> Triple:
        """Voxels of the whole working grid."""
        return self.resampling.shape_out

    def within(self, window: Box) -> WorkingView:
        """The same view of a part of the working grid only.

        What lies around the part can still be read, up to the volume's end, as the surroundings of something in it.
        """
        return dataclasses.replace(self, window=window)

    def on(self, device: torch.device) -> WorkingView:
        """The same view, but what is read is computed on another device."""
        bounds = tuple((low.to(device), high.to(device)) for low, high in self.bounds)
        return dataclasses.replace(self, bounds=bounds, device=device, resident=())

    def uploaded(self, other: WorkingView | None = None) -> WorkingView:
        """The same view, with the channels, in their own type, on the device if this has room for them.

        Otherwise each box is uploaded when it is read. On the CPU nothing needs to be.

        Args:
            other: Another model's view of the same volume, whose channels are shared if they are uploaded and turned
                alike.
        """
        if other is not None and other.resident and (other.device, other.turn) == (self.device, self.turn):
            return dataclasses.replace(self, resident=other.resident)
        held = [channel for channel in self.channels if isinstance(channel, np.ndarray)]
        size = sum(channel.nbytes for channel in held)
        if is_host(self.device) or len(held) < len(self.channels) or self.device != room_for(size, self.device):
            return self
        return dataclasses.replace(self, resident=tuple(upload(channel, self.device) for channel in held))

    def read(self, box: Box, shape: Triple | None = None) -> torch.Tensor:
        """Normalised voxels of a box of the working grid.

        Args:
            box: Counted from the start of the window. May stick out of the volume; there the result is 0, as nnU-Net
                pads.
            shape: Resize to this shape by linear interpolation; None reads native voxels.

        Returns:
            float32, shape (channels, *shape), on ``device``.
        """
        box = box.shift(self.window.start)
        inside = box.clip(Box.whole(self.resampling.shape_out))
        if inside == box and inside.volume and len(self.channels) == 1:
            native = self._read_channel(0, box)[None]  # of what may be a whole coarse grid, no second copy
        else:
            native = torch.zeros((len(self.channels), *box.shape), device=self.device)
            for index, target in enumerate(native if inside.volume else ()):
                target[inside.relative_to(box).slices] = self._read_channel(index, inside)
        if shape is None or shape == box.shape:
            return native
        for axis, (before, after) in enumerate(zip(box.shape, shape, strict=True)):
            if before != after:
                native = multiply_axis(native, stretch_on(self.device, before, after), axis, 0, before)
        return native

    def read_all(self, box: Box) -> torch.Tensor:
        """As ``read``, of a box that may be large: on ``device`` if this has room for the result, else on the host."""
        held = room_for(torch.float32.itemsize * len(self.channels) * box.volume, self.device)
        return (self if held == self.device else self.on(held)).read(box)

    def _read_channel(self, channel: int, box: Box) -> torch.Tensor:
        normalize, offset = self.normalizations[channel], self.crop.start
        return self.resampling(
            lambda part: normalize(self._voxels(channel, part.shift(offset)), part), box, self.bounds[channel]
        )

    def _voxels(self, channel: int, box: Box) -> torch.Tensor:
        """Raw voxels of a box of the turned volume, in their own type."""
        if self.resident:
            return self.resident[channel][box.slices]
        return upload(np.asarray(self.channels[channel][box.slices]), self.device)


def view_volume(
    volume: Volume[Any], model: Model, target_spacing: Sequence[float] | None = None, scan: Scan | None = None
) -> WorkingView:
    """Prepare the working grid of a model over a volume, as the image reader that its plans name would show it.

    Args:
        volume: In the file's own voxel order.
        model: Gives reader, transposition, normalisation, spacing and resampling.
        target_spacing: Voxel size of the working grid instead of the model's own; axes of the working grid.
        scan: Statistics of the volume, see ``open_view``.

    Raises:
        VolumeError: As of ``open_view``, or if the model's reader does not take the volume.
    """
    aspects = look_with(model.reader, volume)
    channels = [aspect.turn.array(channel) for aspect, channel in zip(aspects, volume.channels, strict=True)]
    view = open_view(channels, aspects[0].spacing, model, target_spacing, scan)
    return dataclasses.replace(view, grid=volume.grid, turn=aspects[0].turn.then(view.turn))


def turn_of(grid: Grid, model: Model) -> Turn:
    """The turn from a volume's own axes to those of a model's working grid."""
    return check_channels(model.reader, ["the volume"], [grid])[0].turn.then(Turn(model.transpose))


def volume_doubts(volume: Volume[Any], models: Sequence[Model]) -> tuple[str, ...]:
    """Warnings about a volume and the models that look at it.

    Args:
        volume: The volume.
        models: The fine one last.
    """
    seen = {model.reader: look_with(model.reader, volume) for model in models}
    apart = dict.fromkeys(doubt for aspects in seen.values() for doubt in channel_doubts(volume, aspects))
    first = seen[models[-1].reader][0]
    return (
        *volume.warnings,
        *orientation_doubts(volume, list(seen)),
        *apart,
        *spacing_doubts(first.spacing, first.unit, models[-1]),
        *chain.from_iterable(trainer_doubts(model.folder, model.trainer) for model in models),
    )


def open_view(
    channels: Sequence[VoxelArray],
    spacing: Sequence[float],
    model: Model,
    target_spacing: Sequence[float] | None = None,
    scan: Scan | None = None,
) -> WorkingView:
    """Prepare the working grid of ``model`` over voxels as its image reader gives them; see ``view_volume``.

    Args:
        channels: Raw voxels of each channel, (z, y, x) in the reader's axis order.
        spacing: Voxel size, same order, in the unit of the model's training data.
        model: Gives transposition, normalisation, spacing and resampling.
        target_spacing: Voxel size of the working grid instead of the model's own; axes of the working grid.
        scan: Statistics of the volume, axes as in the file, so that nothing is read now. None computes them.

    Raises:
        VolumeError: If the number of channels is wrong, the volume vanishes on the working grid, or the model
            normalises in a way that needs the whole volume, but there is only a scan.
    """
    if len(channels) != model.channels:
        raise VolumeError(
            f"the volume has {len(channels)} channel(s), the model {model.folder} needs {model.channels}",
            "Give one file per channel: CASE_0000, CASE_0001, ... in the order of the training data.",
        )
    grid = Grid(triple(channels[0].shape), (float(spacing[0]), float(spacing[1]), float(spacing[2])))
    turned = tuple(channel.transpose(model.transpose) for channel in channels)
    z, y, x = (float(spacing[axis]) for axis in model.transpose)
    turned_spacing = (z, y, x)
    shape = triple(turned[0].shape)
    held = () if scan else tuple(np.asarray(channel) for channel in turned)
    crop = scan.crop.turned(model.transpose) if scan else nonzero_box(held)
    target = tuple(float(size) for size in (target_spacing or model.spacing))
    target = (z, *target[1:]) if model.flat else target
    working = _resampled_shape(crop.shape, turned_spacing, target, model)
    resampling = plan_resampling(crop.shape, working, turned_spacing, target, model.data_method)
    normalizations, bounds = (
        _ranges_of_voxels([channel[crop.slices] for channel in held], resampling, model)
        if scan is None
        else _ranges_of_scan(resampling, crop, shape, model, scan)
    )
    return WorkingView(
        turned if scan else held,
        normalizations,
        bounds,
        resampling,
        crop,
        shape,
        turned_spacing,
        Box.whole(resampling.shape_out),  # of a model that does not resample, the crop's
        grid,
        Turn(model.transpose),
        CPU,
    ).on(model.device)


def spacing_doubts(spacing: Sequence[float], unit: str, model: Model) -> tuple[str, ...]:
    """A warning if a volume's voxels differ so much from those that a model was trained on that a unit may be wrong.

    Args:
        spacing: Voxel size (z, y, x), axes as in the file.
        unit: Its unit.
        model: The fine model.
    """
    turned = [float(spacing[axis]) for axis in model.transpose]
    pairs = list(zip(turned, model.spacing, strict=True))[
        int(model.flat) :
    ]  # a flat model takes slices of any distance
    factors = [max(have / want, want / have) for have, want in pairs]
    if max(factors) <= MOST_DIFFERENT:
        return ()
    have, want = ([f"{value:g}" for value in values] for values in (turned, model.spacing))
    return (
        f"the volume's voxels are {' x '.join(have)} {unit}, those that the model was trained on {' x '.join(want)} "
        f"(z, y, x), which is {max(factors):.3g} times as much or as little: check the unit",
    )


def _resampled_shape(shape: Triple, spacing: Sequence[float], target: Sequence[float], model: Model) -> Triple:
    """Voxels along each axis once voxels of ``spacing`` have become voxels of ``target``."""
    ratios = [before / after for before, after in zip(spacing, target, strict=True)]
    if max(ratios) < 1 / 300 or min(ratios) > 300:  # no network is trained on voxels that far from the scanner's
        raise VolumeError(
            f"voxels of {spacing} are far from the {target} that the model {model.folder} works with",
            "Check the spacing in the file's header: its unit must be that of the model's training data.",
        )
    # A single slice may be thinner than half a voxel of the coarse network, and is still a slice.
    return triple(max(1, round(ratio * size)) for ratio, size in zip(ratios, shape, strict=True))


Ranges = tuple[tuple[Normalization, ...], tuple[Bounds, ...]]
"""Normalisation and clipping range of each channel."""


def _ranges_of_voxels(channels: Sequence[NDArray[np.generic]], resampling: Resampling, model: Model) -> Ranges:
    """Measured on the voxels of each channel, cropped."""
    mask = nonzero_mask(channels) if any(scheme.masked for scheme in model.schemes) else None
    fitted = [fit_normalization(*pair, mask) for pair in zip(channels, model.schemes, strict=True)]
    return tuple(fitted), tuple(value_bounds(*pair, resampling) for pair in zip(channels, fitted, strict=True))


def _ranges_of_scan(resampling: Resampling, crop: Box, full: Triple, model: Model, scan: Scan) -> Ranges:
    """From statistics that are known."""
    if any(scheme.masked for scheme in model.schemes):
        raise VolumeError(
            f"the model {model.folder} normalises inside of the volume's non-zero region (use_mask_for_norm), which "
            "only the whole volume shows",
            "Convert the volume to NIfTI or .nrrd, and run it in one piece.",
        )
    normalizations, bounds = [], []
    for index, (found, scheme) in enumerate(zip(scan.channels, model.schemes, strict=True)):
        normalize = normalization(scheme, *scan.mean_and_std(index), float(found.low), float(found.high))
        lows: Any = found.low
        highs: Any = found.high
        if resampling.apart is not None:
            axis = model.transpose[resampling.apart]
            if axis in found.lows and full[resampling.apart] == scan.part.shape[axis]:
                inside = crop.slices[resampling.apart]
                lows, highs = found.lows[axis][inside], found.highs[axis][inside]
        normalizations.append(normalize)
        bounds.append(normalize.of_range(np.asarray(lows), np.asarray(highs)))
    return tuple(normalizations), tuple(bounds)
