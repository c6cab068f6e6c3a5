"""Intensity statistics of a volume: of one in memory, or of a larger one, streamed part by part.

Each part is read once; what is kept of it is small, and parts can be read by different processes in any order. Sums of
integers are exact, so that the result does not depend on how the volume was divided. In memory a second pass costs
little, and spares floats with a large mean the difference of two large sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.preprocessing.nonzero import PackedMask
from coarse2fine.resampling.operators import slab_depth

Number = int | float

_PIECE = 1 << 22  # voxels
_NOWHERE = Box((0, 0, 0), (0, 0, 0))


@dataclass(frozen=True, slots=True)
class ChannelScan:
    """What is known of one channel.

    Attributes:
        total: Sum of all values.
        squares: Sum of their squares.
        low: Lowest value, of a volume inside of its ``crop``, of a part inside of its ``nonzero`` box.
        high: Highest value, likewise.
        lows: For each axis that was asked for (z, y, x), the lowest value of each slice, likewise; 0 outside.
        highs: Likewise the highest.
    """

    total: Number
    squares: Number
    low: Number
    high: Number
    lows: Mapping[int, Sequence[Number]]
    highs: Mapping[int, Sequence[Number]]


@dataclass(frozen=True, slots=True)
class Scan:
    """What is known of a volume, or of a part of it.

    Attributes:
        part: Where it lies in the volume, voxels (z, y, x).
        nonzero: The box of voxels that are not zero in every channel, in voxels of the volume; empty if there is none.
        count: Voxels that were read.
        channels: One entry for each channel.
    """

    part: Box
    nonzero: Box
    count: int
    channels: tuple[ChannelScan, ...]

    @property
    def crop(self) -> Box:
        """The box that nnU-Net would crop to: what is not zero, or everything if all is zero."""
        return self.nonzero if self.nonzero.volume else self.part

    def mean_and_std(self, channel: int) -> tuple[float, float]:
        """Mean and standard deviation of a channel over ``crop``; voxels outside of it are zero and add nothing."""
        found = self.channels[channel]
        count = self.count - (self.part.volume - self.crop.volume if self.count == self.part.volume else 0)
        mean = found.total / count
        # In one fraction: a difference of two rounded quotients would lose what a large mean has in common with them.
        return mean, sqrt(max(found.squares * count - found.total**2, 0)) / count

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "part": [*self.part.start, *self.part.stop],
            "nonzero": [*self.nonzero.start, *self.nonzero.stop],
            "count": self.count,
            "channels": [
                {
                    "total": channel.total,
                    "squares": channel.squares,
                    "low": channel.low,
                    "high": channel.high,
                    "lows": {str(axis): list(values) for axis, values in channel.lows.items()},
                    "highs": {str(axis): list(values) for axis, values in channel.highs.items()},
                }
                for channel in self.channels
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls(
            _box(values["part"]),
            _box(values["nonzero"]),
            values["count"],
            tuple(
                ChannelScan(
                    channel["total"],
                    channel["squares"],
                    channel["low"],
                    channel["high"],
                    {int(axis): entries for axis, entries in channel["lows"].items()},
                    {int(axis): entries for axis, entries in channel["highs"].items()},
                )
                for channel in values["channels"]
            ),
        )


def nonzero_box(channels: Sequence[NDArray[np.generic]]) -> Box:
    """The box that nnU-Net crops to: of voxels that are not zero in every channel, or everything if all are.

    nnU-Net fills holes first, which cannot change the box.
    """
    filled = filled_box(channels)
    return filled if filled.volume else Box.whole(channels[0].shape)


def filled_box(channels: Sequence[NDArray[np.generic]]) -> Box:
    """The box of voxels that are not zero in every channel; empty if there is none."""
    box = Box.whole(channels[0].shape)
    for axis in range(3):
        # Axis after axis in what is left: of a full volume two slices of each are looked at, of an empty one the first.
        stacks = [np.moveaxis(channel[box.slices], axis, 0) for channel in channels]
        places = range(box.shape[axis])
        first = next((index for index in places if any(stack[index].any() for stack in stacks)), None)
        if first is None:
            return _NOWHERE
        last = next(index for index in reversed(places) if any(stack[index].any() for stack in stacks))
        start, stop = list(box.start), list(box.stop)
        start[axis], stop[axis] = box.start[axis] + first, box.start[axis] + last + 1
        box = Box(triple(start), triple(stop))
    return box


def mean_and_std(channel: NDArray[np.generic], mask: PackedMask | None) -> tuple[float, float]:
    """Mean and standard deviation of a channel in memory, slab by slab in double precision.

    Args:
        channel: Raw voxels, shape (z, y, x).
        mask: Which of them count, same shape. None = all.
    """
    count, total = 0, 0.0
    for values in _slabs(channel, mask):
        count, total = count + values.size, total + float(values.sum(dtype=np.float64))
    mean = total / max(count, 1)
    squares = 0.0
    for values in _slabs(channel, mask):
        deviation = values.astype(np.float64)
        deviation -= mean
        squares += float(np.square(deviation, out=deviation).sum(dtype=np.float64))
    return mean, float(np.sqrt(squares / max(count, 1)))


def _slabs(channel: NDArray[np.generic], mask: PackedMask | None) -> Iterator[NDArray[np.generic]]:
    depth = slab_depth(prod(channel.shape[1:]))
    for start in range(0, len(channel), depth):
        part = Box((start, 0, 0), (min(start + depth, len(channel)), *channel.shape[1:]))
        yield channel[part.slices] if mask is None else channel[part.slices][mask.part(part)]


def scan_part(channels: Sequence[NDArray[np.generic]], start: Triple, axes: Sequence[int]) -> Scan:
    """Statistics of a part of a volume.

    Args:
        channels: Raw voxels of the part, each (z, y, x).
        start: Where the part begins in the volume.
        axes: Axes along which the extremes of each slice are wanted.
    """
    part = Box.of(start, channels[0].shape)
    nonzero = filled_box(channels)
    found = tuple(_scan_channel(raw, nonzero, axes) for raw in channels)
    return Scan(part, nonzero.shift(start), part.volume, found)


def blank_scan(channels: int, shape: Triple) -> Scan:
    """The scan of a volume that is zero everywhere: a stand-in while nothing has been read.

    Args:
        channels: Number of channels.
        shape: The volume's.
    """
    whole = Box.whole(shape)
    nothing = ChannelScan(0, 0, 0, 0, {}, {})
    return Scan(whole, _NOWHERE, whole.volume, (nothing,) * channels)


def join_scans(scans: Iterable[Scan], shape: Triple) -> Scan:
    """Statistics of a volume from those of its parts.

    Args:
        scans: At least one. Slices of which no part was read have the extremes of the volume.
        shape: The volume's.
    """
    ordered = sorted(scans, key=lambda scan: scan.part)
    filled = [scan.nonzero for scan in ordered if scan.nonzero.volume]
    nonzero = _NOWHERE
    for index, box in enumerate(filled):
        nonzero = nonzero.hull(box) if index else box
    count = sum(scan.count for scan in ordered)
    whole = Box.whole(shape)
    # Where only a share of the volume was read, nobody knows what lies outside of what was found.
    joined = Scan(whole, nonzero if count == whole.volume else whole, count, ())
    channels = tuple(_join_channel(ordered, index, joined.crop, shape) for index in range(len(ordered[0].channels)))
    return replace(joined, channels=channels)


def _scan_channel(raw: NDArray[np.generic], nonzero: Box, axes: Sequence[int]) -> ChannelScan:
    total, squares = _sums(raw)
    held = raw[nonzero.slices]
    lows, highs = ({axis: [0] * raw.shape[axis] for axis in axes} for _ in range(2))
    if not held.size:
        return ChannelScan(total, squares, 0, 0, lows, highs)
    for axis in axes:
        others = tuple(other for other in range(3) if other != axis)
        here = nonzero.slices[axis]
        lows[axis][here], highs[axis][here] = held.min(axis=others).tolist(), held.max(axis=others).tolist()
    return ChannelScan(total, squares, held.min().item(), held.max().item(), lows, highs)


def _sums(raw: NDArray[np.generic]) -> tuple[Number, Number]:
    """Sum and sum of squares; exact for integers. In pieces, because each makes copies of several bytes a voxel."""
    step = max(1, _PIECE // prod(raw.shape[1:]))
    pieces = [_sums_of_piece(raw[start : start + step]) for start in range(0, len(raw), step)]
    return sum(total for total, _ in pieces), sum(squares for _, squares in pieces)


def _sums_of_piece(raw: NDArray[np.generic]) -> tuple[Number, Number]:
    if raw.dtype.kind not in "iu":
        values = raw.astype(np.float64, copy=False).reshape(-1)
        return float(values.sum()), float(values @ values)
    low = int(raw.min())
    if int(raw.max()) - low > 1 << 16:
        # 32 bits or more, widely spread: squares do not fit into 64 bits, but their sums in halves of a value do.
        whole = raw.reshape(-1).astype(np.int64)
        upper, lower = whole >> 16, whole & 0xFFFF
        return int(whole.sum()), (int((upper * upper).sum()) << 32) + (int((upper * lower).sum()) << 17) + int(
            (lower * lower).sum()
        )
    counts = np.bincount(raw.reshape(-1).astype(np.int64 if raw.dtype.itemsize > 2 else np.int32) - low)
    # Counted from the lowest value: squares of 32 bits, many of them, would not fit into 64.
    levels = np.arange(len(counts), dtype=np.int64)
    total, squares = int((counts * levels).sum()), int((counts * levels**2).sum())
    return total + low * raw.size, squares + low * (2 * total + low * raw.size)


def _join_channel(scans: Sequence[Scan], index: int, crop: Box, shape: Triple) -> ChannelScan:
    parts = [scan.channels[index] for scan in scans]
    total, squares = sum(part.total for part in parts), sum(part.squares for part in parts)
    held = [(scan, crop.clip(scan.part), part) for scan, part in zip(scans, parts, strict=True)]
    held = [entry for entry in held if entry[1].volume]
    # Zeros around a part's box of non-zero voxels count as far as they lie in the volume's.
    low = min(part.low if inside == scan.nonzero else min(part.low, 0) for scan, inside, part in held)
    high = max(part.high if inside == scan.nonzero else max(part.high, 0) for scan, inside, part in held)
    lows, highs = {}, {}
    for axis in parts[0].lows:
        lowest, highest = np.full(shape[axis], np.inf), np.full(shape[axis], -np.inf)
        for scan, inside, part in held:
            here, local = inside.slices[axis], inside.relative_to(scan.part).slices[axis]
            wider = any(inside.slices[other] != scan.nonzero.slices[other] for other in range(3) if other != axis)
            bottom, top = (0, 0) if wider else (np.inf, -np.inf)
            lowest[here] = np.minimum(lowest[here], np.minimum(part.lows[axis][local], bottom))
            highest[here] = np.maximum(highest[here], np.maximum(part.highs[axis][local], top))
        unread = lowest > highest
        lows[axis] = np.where(unread, low, lowest).tolist()
        highs[axis] = np.where(unread, high, highest).tolist()
    return ChannelScan(total, squares, low, high, lows, highs)


def _box(corners: Sequence[int]) -> Box:
    return Box(triple(corners[:3]), triple(corners[3:]))
