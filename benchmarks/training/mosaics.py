"""Training inputs that look like packed canvases: tiles of crops from several training patches."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from canvas import Box, Triple

POOL = 8
"""Training patches that a mosaic's crops come from: the latest ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A training patch.

    Attributes:
        image: Shape (channels, z, y, x).
        targets: Labels at full and at lower resolutions, each (1 or regions, z, y, x); the first is the full one.
    """

    image: torch.Tensor
    targets: Sequence[torch.Tensor]


def make_mosaic(pool: Sequence[Patch], slot: Triple, generator: np.random.Generator, foreground: float = 0.5) -> Patch:
    """A patch tiled from slot-size crops of random patches: what a packed canvas looks like.

    Crops begin where voxels of all resolutions begin: so a crop of coarse labels is what coarsening makes of the crop.

    Args:
        pool: Patches of one shape, a multiple of the slot.
        slot: Size (z, y, x) of a crop; a multiple of the coarsest labels' voxels.
        generator: Of random numbers.
        foreground: Share of crops with a labelled voxel in the middle, if their patch has one and its rim allows it.
    """
    shape, size = np.array(pool[0].image.shape[1:]), np.array(slot)
    scales = [shape // target.shape[1:] for target in pool[0].targets]
    last, raster = shape - size, np.max(scales, axis=0)
    result = Patch(torch.empty_like(pool[0].image), [torch.empty_like(target) for target in pool[0].targets])
    for cell in np.ndindex(*(shape // size)):
        patch, start = pool[int(generator.integers(len(pool)))], generator.integers(last + 1)
        voxels = torch.nonzero((patch.targets[0] > 0).any(dim=0)).numpy()
        if generator.random() < foreground and len(voxels):
            start = np.clip(generator.choice(voxels) - size // 2, 0, last)
        places = np.array(cell) * size, start // raster * raster
        tensors = zip((result.image, *result.targets), (patch.image, *patch.targets), (1, *scales), strict=True)
        for target, source, scale in tensors:
            to, crop = (Box.of(place // scale, size // scale) for place in places)
            target[:, *to.slices] = source[:, *crop.slices]
    return result


def mix(
    batch: Mapping[str, Any], pool: deque[Patch], slot: Triple, plain: float, generator: np.random.Generator
) -> dict[str, Any]:
    """A batch in which each input is a mosaic, or with probability ``plain`` what it was; fills the pool, too."""
    patches = [Patch(image, targets) for image, *targets in zip(batch["data"], *batch["target"], strict=True)]
    pool.extend(patches)
    mixed = [patch if generator.random() < plain else make_mosaic(pool, slot, generator) for patch in patches]
    targets = [torch.stack(scale) for scale in zip(*(patch.targets for patch in mixed), strict=True)]
    return {**batch, "data": torch.stack([patch.image for patch in mixed]), "target": targets}
