"""nnU-Net's sliding window over a prepared volume."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch.nn import functional as F

from canvas import Box, Triple, triple
from coarse2fine.errors import ModelError
from coarse2fine.nnunet.model import Model, gaussian, tile_starts
from coarse2fine.system.device import room_for, to_host
from coarse2fine.system.timing import Ticks

OnTile = Callable[[Box], None]
"""Called before every tile with its place in the data, once for each network."""


def sliding_window(
    model: Model,
    data: torch.Tensor,
    *,
    tile_step: float,
    mirroring: bool,
    ticks: Ticks = lambda done, total: None,
    on_tile: OnTile = lambda box: None,
    corners: Sequence[Triple] | None = None,
) -> torch.Tensor:
    """Run a model over a whole array tile by tile and blend the outputs, exactly as nnU-Net's predictor does.

    The order of tiles, half-precision accumulation, Gaussian weights and the order of folds are nnU-Net's, so that the
    outputs are the same bit for bit if the networks' are; those of lean networks differ by rounding.

    Args:
        model: The model; its ``patch`` is the tile.
        data: Normalised voxels, shape (channels, z, y, x). Smaller volumes are padded with 0.
        tile_step: Distance of neighbouring tiles as a share of the tile, 0 to 1.
        mirroring: Average over mirrored inputs.
        ticks: Called after every tile.
        on_tile: Called before every tile; its box begins below 0 where the data are padded.
        corners: Where tiles begin, which together cover the data; None puts them where nnU-Net does.

    Returns:
        Logits, half precision, shape (heads, z, y, x), on the model's device if this has room, else on the CPU.

    Raises:
        ModelError: If they are beyond half precision, where nnU-Net stops, too; once all tiles have run.
    """
    slabs = window_slabs(
        model, data, tile_step=tile_step, mirroring=mirroring, ticks=ticks, on_tile=on_tile, corners=corners
    )
    shape = model.labels.heads, *data.shape[1:]
    result = torch.empty(shape, dtype=torch.half, device=room_for(torch.half.itemsize * prod(shape), model.device))
    for start, slab in slabs:
        result[:, start : start + slab.shape[1]] = slab
    return result


def window_slabs(
    model: Model,
    data: torch.Tensor,
    *,
    tile_step: float,
    mirroring: bool,
    ticks: Ticks = lambda done, total: None,
    on_tile: OnTile = lambda box: None,
    corners: Sequence[Triple] | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """The outputs of ``sliding_window``, slab by slab along z, each as soon as no further tile reaches it.

    So outputs are held for the depth of a tile only. Arguments and errors are those of ``sliding_window``.

    Yields:
        Where a slab begins, and its logits, half precision, shape (heads, z, y, x). Together and in this order they are
        those of the data. They are on the model's device, and nobody has waited for it, if it has room for the sums.
    """
    padded, inner = _pad(data.contiguous(), model)
    size = triple(padded.shape[1:])
    corners = list(tile_starts(size, model.patch, tile_step)) if corners is None else corners
    layers = [(z, list(layer)) for z, layer in itertools.groupby(sorted(corners, key=_depth), key=_depth)]
    sums, finite = _sums(model, size), list[torch.Tensor]()
    done, total = 0, len(corners) * len(model.networks)
    for (z, layer), (after, _) in itertools.pairwise([*layers, (size[0], [])]):
        for fold, held in enumerate(sums):
            for corner in layer:
                box = Box.of(corner, model.patch)
                on_tile(box.relative_to(inner))
                output = model.forward(padded[(slice(None), *box.slices)][None], mirroring=mirroring, fold=fold)[0]
                held.add(corner, output)
                done += 1
                ticks(done, total)
        means = [held.take(after - z) for held in sums]
        finite.append(torch.stack([torch.isfinite(output).all() for logits in means for output in logits]))
        mean = _mean_of_folds(means)
        low, high = (min(max(place, inner.start[0]), inner.stop[0]) for place in (z, after))
        if low < high:
            rows = slice(low - z, high - z)
            yield low - inner.start[0], mean[(slice(None), rows, *inner.slices[1:])]
    _refuse_infinite(model, torch.stack(finite))


def _sums(model: Model, size: Triple) -> list[_Sums]:
    """Where each network's outputs are added up: on the model's device if it has room for all, else on the CPU."""
    shape = model.labels.heads, model.patch[0], *size[1:]
    held = torch.half.itemsize * (prod(shape) + prod(shape[1:]))
    device = room_for(2 * len(model.networks) * held, model.device)  # sums, and means that are taken from them
    return [_Sums(shape, model.patch, device) for _ in model.networks]


class _Sums:
    """Weighted sums of one network's outputs, of which as many slices along z are held as a tile has.

    Args:
        shape: Of what is held, (heads, z, y, x).
        tile: Shape of a tile.
        device: Where they are held.
    """

    def __init__(self, shape: tuple[int, ...], tile: Triple, device: torch.device) -> None:
        self._weight, self._tile = gaussian(tile, device), tile
        self._factor = self._weight.float()  # the same numbers
        self._logits = torch.zeros(shape, dtype=torch.half, device=device)
        self._weights = torch.zeros(shape[1:], dtype=torch.half, device=device)

    def add(self, corner: Triple, output: torch.Tensor) -> None:
        """Add a tile's outputs, shape (heads, z, y, x); its first slice is the first that is held."""
        here = Box.of((0, *corner[1:]), self._tile).slices
        sums = self._logits[(slice(None), *here)]
        # What ``sums += output * weight`` gives, but operations on numbers of one type are faster than on mixed ones.
        sums.copy_((output.to(sums.device) * self._factor).add_(sums.float()))
        self._weights[here] += self._weight

    def take(self, count: int) -> torch.Tensor:
        """The means of the first slices, which are let go of: the next ones move up."""
        means = torch.empty_like(self._logits[:, :count])
        for mean, sums in zip(means, self._logits, strict=True):  # one output at a time: a copy of all is large
            mean.copy_(torch.div(sums[:count], self._weights[:count]))
            _move_up(sums, count)
        _move_up(self._weights, count)
        return means


def _move_up(slices: torch.Tensor, count: int) -> None:
    kept = max(len(slices) - count, 0)
    slices[:kept] = slices[count:].clone()
    slices[kept:] = 0


def _depth(corner: Triple) -> int:
    return corner[0]


def _refuse_infinite(model: Model, finite: torch.Tensor) -> None:
    """Stop where outputs are not finite.

    Args:
        model: Whose they are.
        finite: Whether those of each slab, fold and head are, shape (slabs, folds * heads).

    Raises:
        ModelError: If any of a fold's are not.
    """
    of_folds = to_host(finite.all(0).reshape(len(model.folds), -1).all(1))
    for fold, is_finite in zip(model.folds, of_folds, strict=True):
        if not is_finite:
            raise ModelError(
                f"outputs of {model.folder} (fold {fold}) are too large for the half precision in which "
                "nnU-Net's sliding window adds them up, or not numbers",
                "nnU-Net stops here as well. Check the voxel size and the intensities of the volume against those of "
                "the training data; outputs like these come from images that the model was not trained for.",
            )


def _mean_of_folds(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    result = outputs[0]
    for other in outputs[1:]:
        result += other
    if len(outputs) > 1:
        result /= len(outputs)
    return result


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
