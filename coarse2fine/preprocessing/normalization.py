"""nnU-Net's intensity normalisation: of a channel over a whole case, never of a crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from canvas import Box, triple
from coarse2fine.errors import VolumeError
from coarse2fine.nnunet.model import Scheme
from coarse2fine.preprocessing.statistics import mean_and_std
from coarse2fine.resampling.operators import Floats, Resampling, slab_depth


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
    mask: NDArray[np.bool_] | None = None

    def __call__(self, raw: NDArray[np.generic], box: Box) -> Floats:
        """Normalise the voxels of ``box``, of which ``raw`` is the content; returns a new float32 array."""
        data = raw.astype(np.float32)
        if self.low > -np.inf or self.high < np.inf:
            np.clip(data, self.low, self.high, out=data)
        outside = None if self.mask is None else ~self.mask[box.slices]
        kept = None if outside is None else data[outside]
        data -= np.float32(self.shift)
        data /= np.float32(self.scale)
        if outside is not None and kept is not None:
            data[outside] = kept
        return data


def fit_normalization(channel: NDArray[np.generic], scheme: Scheme, mask: NDArray[np.bool_] | None) -> Normalization:
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
    scheme: Scheme, mean: float, std: float, low: float, high: float, mask: NDArray[np.bool_] | None = None
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
    inf, tiny = float("inf"), 1e-8
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


def value_bounds(
    channel: NDArray[np.generic], normalize: Normalization, resampling: Resampling
) -> tuple[Floats, Floats]:
    """The normalised range that scikit-image would clip spline overshoot to.

    Returns:
        Lowest and highest value: of the whole channel, shape (); or of each slice along the axis that is treated apart.
    """
    nothing = np.zeros((), np.float32)
    if not resampling.overshoots:
        return nothing, nothing
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
    lows, highs = zip(*(_range(channel, normalize, box) for box in slices), strict=True)
    if apart is None:
        return np.asarray(min(lows), np.float32), np.asarray(max(highs), np.float32)
    return np.asarray(lows, np.float32), np.asarray(highs, np.float32)


def _range(channel: NDArray[np.generic], normalize: Normalization, box: Box) -> tuple[np.float32, np.float32]:
    raw = channel[box.slices]
    if normalize.mask is not None:
        data = normalize(raw, box)
        return data.min(), data.max()
    # Normalisation is monotone, so the raw extremes suffice, which are found without converting every voxel.
    ends = normalize(np.array([[[raw.min(), raw.max()]]]), box)
    return ends.min(), ends.max()
