"""Where a volume is not zero, holes filled: the region inside of which some of nnU-Net's schemes normalise.

SciPy's function, which nnU-Net calls, takes six bytes for each voxel on its way. Here holes are found slab by slab, and
of the result eight voxels take a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from canvas import Box, Triple
from coarse2fine.resampling.operators import slab_depth

Names = NDArray[np.unsignedinteger]
Mask = NDArray[np.bool_]
_OUTSIDE = 0


@dataclass(frozen=True, slots=True, eq=False)
class PackedMask:
    """A mask of which eight neighbours along the last axis take a byte.

    Attributes:
        bits: Shape (z, y, ceil(x / 8)), as of ``np.packbits``.
        shape: Of the mask, (z, y, x).
    """

    bits: NDArray[np.uint8]
    shape: Triple

    def part(self, box: Box) -> Mask:
        """The voxels of a box that lies in the mask."""
        rows, columns, across = box.slices
        first = across.start // 8
        held = np.unpackbits(self.bits[rows, columns, first : -(-across.stop // 8)], axis=-1)
        return held[..., across.start - 8 * first : across.stop - 8 * first].view(np.bool_)

    def whole(self) -> Mask:
        """All of it, a byte for each voxel."""
        return self.part(Box.whole(self.shape))


def nonzero_mask(channels: Sequence[NDArray[np.generic]], depth: int | None = None) -> PackedMask:
    """Voxels that are not zero in every channel, holes filled, as nnU-Net's ``create_nonzero_mask``.

    A hole is a region of zeros, connected through faces, that does not reach the border of the volume. Slabs are
    labelled twice: once to learn which of their regions meet those of other slabs or the border, and once to fill.

    Args:
        channels: Each (z, y, x).
        depth: Slices that are worked on at once; None for few.
    """
    shape = Box.whole(channels[0].shape).shape
    depth = slab_depth(prod(shape[1:])) if depth is None else depth
    slabs = [slice(start, min(start + depth, shape[0])) for start in range(0, shape[0], depth)]
    filled = ~_outside(channels, slabs)
    bits, known = np.empty((*shape[:2], -(-shape[2] // 8)), np.uint8), 0
    for slab in slabs:
        names, count = _zeros(channels, slab)
        held = np.append(True, filled[known + 1 : known + 1 + count])  # what is not zero has the number 0
        bits[slab], known = np.packbits(held[names], axis=-1), known + count
    return PackedMask(bits, shape)


def _zeros(channels: Sequence[NDArray[np.generic]], slab: slice) -> tuple[Names, int]:
    """Regions of zeros in a slab, numbered from 1, and how many there are."""
    empty = channels[0][slab] == 0
    for channel in channels[1:]:
        empty &= channel[slab] == 0
    names, count = cc3d.connected_components(empty, connectivity=6, binary_image=True, return_N=True)
    return names, count


def _outside(channels: Sequence[NDArray[np.generic]], slabs: Sequence[slice]) -> Mask:
    """Whether regions of zeros reach the border, by their number in all slabs; number 0 is what lies beyond it."""
    pairs, above, known = [np.empty((2, 0), np.int64)], None, 0
    for slab in slabs:
        names, count = _zeros(channels, slab)
        rim = [names[:, [0, -1]], names[:, :, [0, -1]]]
        rim += [names[0]] * (slab is slabs[0]) + [names[-1]] * (slab is slabs[-1])
        border = np.flatnonzero(np.bincount(np.concatenate([part.ravel() for part in rim])))
        border = border[border > 0] + known
        pairs.append(np.stack([np.full_like(border, _OUTSIDE), border]))
        first, last = (names[layer].astype(np.int64) + known * (names[layer] > 0) for layer in (0, -1))
        if above is not None:
            met = np.stack([above[first > 0], first[first > 0]])  # each pair is there for each voxel in which it meets
            pairs.append(met[:, (met[0] > 0) & (np.diff(met, axis=1, prepend=-1) != 0).any(axis=0)])
        above, known = last, known + count
    one, other = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(one), bool), (one, other)), (known + 1, known + 1))
    region = connected_components(graph, directed=False)[1]
    return np.asarray(region == region[_OUTSIDE])
