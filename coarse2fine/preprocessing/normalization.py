"""nnU-Net's intensity normalisation: of a channel over a whole case, never of a crop."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Box, triple
from coarse2fine.errors import VolumeError
from coarse2fine.nnunet.model import Scheme
from coarse2fine.preprocessing.nonzero import PackedMask
from coarse2fine.preprocessing.statistics import mean_and_std
from coarse2fine.resampling.operators import Bounds, Resampling, slab_depth
from coarse2fine.system.device import CPU, upload


@dataclass(frozen=True, slots=True, eq=False)
class Normalization:
    """Intensity normalisation of one channel of one case: ``(clip(x, low, high) - shift) / scale``.

    Attributes:
        low, high: Clipping range; infinite where the scheme does not clip.
        shift: Value that becomes 0.
        scale: Difference that becomes 1.
        mask: Where to normalise, shape (z, y, x); voxels outside keep their value. None = everywhere.
    """

    low: float
    high: float
    shift: float
    scale: float
    mask: PackedMask | None = None

    def __call__(self, raw: torch.Tensor, box: Box) -> torch.Tensor:
        """Normalise the voxels of ``box``, of which ``raw`` is the content; returns a new float32 tensor beside it."""
        data = raw.to(torch.float32, copy=True)
        if self.low > -inf or self.high < inf:
            data.clamp_(self.low, self.high)
        if self.mask is None:
            return data.sub_(self.shift).div_(self.scale)
        inside = upload(self.mask.part(box), data.device)
        return torch.where(inside, (data - self.shift).div_(self.scale), data)

    def of_range(self, low: NDArray[Any], high: NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """What becomes of the lowest and the highest values of voxels that are normalised everywhere: it is monotone.

        Args:
            low: Of any shape.
            high: Likewise.
        """
        nowhere = Box((0, 0, 0), (0, 0, 0))
        ends = [torch.from_numpy(np.asarray(end, np.float32)) for end in (low, high)]
        return self(ends[0], nowhere), self(ends[1], nowhere)


def fit_normalization(channel: NDArray[np.generic], scheme: Scheme, mask: PackedMask | None) -> Normalization:
    """Statistics of one channel over the whole case.

    Args:
        channel: Raw voxels, cropped.
        scheme: What the plans ask for.
        mask: Non-zero region, for schemes that use it.
    """
    mean, std = mean_and_std(channel, mask if scheme.masked else None) if "ZScore" in scheme.name else (0.0, 1.0)
    low, high = (float(channel.min()), float(channel.max())) if "To01" in scheme.name else (0.0, 1.0)
    return normalization(scheme, mean, std, low, high, mask)


def normalization(
    scheme: Scheme, mean: float, std: float, low: float, high: float, mask: PackedMask | None = None
) -> Normalization:
    """What a scheme makes of a channel's statistics; those that it does not ask for may be anything.

    Args:
        scheme: What the plans ask for.
        mean: Of the channel, in the non-zero region if the scheme uses it.
        std: Standard deviation, likewise.
        low: Lowest value of the channel.
        high: Highest value.
        mask: Non-zero region, for schemes that use it.

    Raises:
        VolumeError: If the scheme is for values from 0 to 255 and there are others, where nnU-Net stops.
    """
    tiny = 1e-8
    if scheme.name == "CTNormalization":
        return Normalization(scheme.low, scheme.high, scheme.mean, max(scheme.std, tiny))
    if scheme.name == "ZScoreNormalization":
        return Normalization(-inf, inf, mean, max(std, tiny), mask if scheme.masked else None)
    if scheme.name == "RescaleTo01Normalization":
        return Normalization(-inf, inf, low, max(high - low, tiny))
    if scheme.name == "RGBTo01Normalization":
        if low < 0 or high > 255:
            raise VolumeError(
                f"voxels are from {low:g} to {high:g}, but the model was trained on values from 0 to 255 "
                "(RGBTo01Normalization)",
                "Bring the volume to 0 to 255, as the training images were.",
            )
        return Normalization(-inf, inf, 0.0, 255.0)
    return Normalization(-inf, inf, 0.0, 1.0)


def value_bounds(channel: NDArray[np.generic], normalize: Normalization, resampling: Resampling) -> Bounds:
    """The normalised range that scikit-image would clip spline overshoot to; on the CPU."""
    if not resampling.overshoots:
        return torch.zeros(()), torch.zeros(())
    apart = resampling.apart
    if apart is None:
        depth = slab_depth(channel.shape[1] * channel.shape[2])
        slices = [
            Box((start, 0, 0), (min(start + depth, len(channel)), *channel.shape[1:]))
            for start in range(0, len(channel), depth)
        ]
    else:
        slices = [
            Box(
                triple(index if axis == apart else 0 for axis in range(3)),
                triple(index + 1 if axis == apart else channel.shape[axis] for axis in range(3)),
            )
            for index in range(channel.shape[apart])
        ]
    # Written down at once: small tensors that live on between large ones would keep these apart on the heap.
    low, high = torch.empty((2, len(slices)))
    for index, box in enumerate(slices):
        low[index], high[index] = _range(channel[box.slices], normalize, box)
    return (low.min(), high.max()) if apart is None else (low, high)


def _range(raw: NDArray[np.generic], normalize: Normalization, box: Box) -> Bounds:
    """Lowest and highest normalised value of a box, of which ``raw`` is the content."""
    if normalize.mask is None:  # without converting every voxel
        return normalize.of_range(raw.min(), raw.max())
    data = normalize(upload(raw, CPU), box)
    return data.min(), data.max()
