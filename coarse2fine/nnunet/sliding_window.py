"""nnU-Net's sliding window over a prepared volume."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from canvas import Box, Triple, triple
from coarse2fine.errors import ModelError
from coarse2fine.nnunet.model import Model, gaussian, tile_starts
from coarse2fine.resampling.operators import Floats
from coarse2fine.system.timing import Ticks

OnTile = Callable[[Box], None]
"""Called before every tile with its place in the data, once for each network."""


def sliding_window(
    model: Model,
    data: Floats,
    *,
    tile_step: float,
    mirroring: bool,
    ticks: Ticks = lambda done, total: None,
    on_tile: OnTile = lambda box: None,
    corners: Sequence[Triple] | None = None,
) -> torch.Tensor:
    """Run a model over a whole array tile by tile and blend the outputs, exactly as nnU-Net's predictor does.

    The order of tiles, half-precision accumulation, Gaussian weights and the order of folds are nnU-Net's, so that the
    outputs are the same bit for bit.

    Args:
        model: The model; its ``patch`` is the tile.
        data: Normalised voxels, shape (channels, z, y, x). Smaller volumes are padded with 0.
        tile_step: Distance of neighbouring tiles as a share of the tile, 0 to 1.
        mirroring: Average over mirrored inputs.
        ticks: Called after every tile.
        on_tile: Called before every tile; its box begins below 0 where the data are padded.
        corners: Where tiles begin, which together cover the data; None puts them where nnU-Net does.

    Returns:
        Logits, half precision, shape (heads, z, y, x), on the CPU.

    Raises:
        ModelError: If they are beyond half precision, where nnU-Net stops, too.
    """
    padded, inner = _pad(torch.from_numpy(np.ascontiguousarray(data)), model)
    size = triple(padded.shape[1:])
    corners = list(tile_starts(size, model.patch, tile_step)) if corners is None else corners
    keep = model.device if model.device.type == "cuda" else torch.device("cpu")
    weight = gaussian(model.patch, keep)
    total = len(corners) * len(model.networks)
    result: torch.Tensor | None = None
    for fold in range(len(model.networks)):
        logits = torch.zeros((model.labels.heads, *size), dtype=torch.half, device=keep)
        weights = torch.zeros(size, dtype=torch.half, device=keep)
        for index, corner in enumerate(corners):
            box = Box.of(corner, model.patch)
            tile = box.slices
            on_tile(box.relative_to(inner))
            output = model.forward(padded[(slice(None), *tile)][None], mirroring=mirroring, fold=fold)[0].to(keep)
            logits[(slice(None), *tile)] += output * weight
            weights[tile] += weight
            ticks(fold * len(corners) + index + 1, total)
        logits = torch.div(logits, weights, out=logits).cpu()
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(
                f"outputs of {model.folder} (fold {model.folds[fold]}) are too large for the half precision in which "
                "nnU-Net's sliding window adds them up, or not numbers",
                "nnU-Net stops here as well. Check the voxel size and the intensities of the volume against those of "
                "the training data; outputs like these come from images that the model was not trained for.",
            )
        result = logits if result is None else result + logits
    if result is None:
        raise ValueError("a model has at least one network")
    if len(model.networks) > 1:
        result /= len(model.networks)
    return result[(slice(None), *inner.slices)]


def tiles_touching(window: Box, size: Triple, tile: Triple, step: float) -> list[Box]:
    """The tiles of nnU-Net's sliding window over a volume that have voxels in a window of it, in its order.

    Args:
        window: Not empty.
        size: Shape of the volume. Where it is smaller than a tile, the tile sticks out evenly.
        tile: Shape of a tile.
        step: Distance of neighbouring tiles as a share of the tile.
    """
    padded = triple(max(edges) for edges in zip(size, tile, strict=True))
    before = triple((edge - inner) // 2 for edge, inner in zip(padded, size, strict=True))
    along = []
    for axis in range(3):
        # One axis at a time: all tiles of a brain would be a very long list.
        one = triple(padded[axis] if other == axis else tile[other] for other in range(3))
        starts = [corner[axis] - before[axis] for corner in tile_starts(one, tile, step)]
        low, high = window.start[axis], window.stop[axis]
        along.append([start for start in starts if start < high and start + tile[axis] > low])
    return [Box.of(corner, tile) for corner in itertools.product(*along)]


def _pad(data: torch.Tensor, model: Model) -> tuple[torch.Tensor, Box]:
    """Pad with 0 to at least one tile; also return where the data lie in the result."""
    shape = triple(data.shape[1:])
    missing = [max(0, tile - size) for tile, size in zip(model.patch, shape, strict=True)]
    before = [gap // 2 for gap in missing]
    # F.pad counts axes from the last.
    padding = [
        side for first, gap in zip(reversed(before), reversed(missing), strict=True) for side in (first, gap - first)
    ]
    return (F.pad(data, padding) if any(missing) else data), Box.of(before, shape)
