"""nnU-Net's resampling as three small matrices, so that any region can be resampled alone.

nnU-Net resizes whole volumes with cubic splines (scikit-image) or linear interpolation (PyTorch). Both are separable
and linear: along each axis the result is a matrix times the input. The matrix is read off the original function by
resizing the identity, so borders and spline prefilter are the original's own. A region of the result is then a few rows
of each matrix; because spline weights decay fast those rows touch only a narrow band of input. One output box costs
what that box costs, and a whole volume becomes three matrix products instead of a spline filter over all voxels.

Matrices are made by NumPy, and multiplied by PyTorch on the device where the voxels are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from skimage.transform import resize
from torch.nn import functional as F

from canvas import Box, Triple, triple
from coarse2fine.system.device import to_host, upload

Floats = NDArray[np.float32]
Load = Callable[[Box], torch.Tensor]
"""Gives the voxels of a box of a grid, float32, shape (z, y, x)."""
Bounds = tuple[torch.Tensor, torch.Tensor]
"""Lowest and highest value, float32: of everything, shape (), or of each slice along the axis that is treated apart."""

NEGLIGIBLE = 1e-7
"""Spline weights below this are dropped: their sum stays below float32's own rounding."""
ANISOTROPY = 3.0
"""nnU-Net treats an axis apart when its spacing is more than this many times the smallest, if plans say no other."""
MODES = ("linear", "nearest", "nearest-exact")
"""Of PyTorch's ``interpolate``, those that are the same along every axis whatever happens along the others."""
ROWS = 64
"""Output rows per matrix product: keeps the band, not the square, of a large matrix."""
SLAB = 16
"""Slices of a volume that are converted to float and resampled within their planes at once, if they are not large."""
PIECE = 1 << 22
"""Voxels that so many slices have at most, unless one alone has more."""
LARGEST_MATRIX = 1 << 22
"""Entries of an axis' matrix that is kept as a whole; of a larger one only the rows that are asked for are made."""
REACH = 32
"""Input voxels beyond which a spline's weights are far below ``NEGLIGIBLE``."""


@dataclass(frozen=True, slots=True)
class Method:
    """How a plans file asks for resampling.

    Attributes:
        library: ``spline`` for nnU-Net's default (scikit-image), ``torch`` for its PyTorch variant, ``none``.
        order: Spline order, or PyTorch's mode (one of ``MODES``) in the plane that lies across an axis treated apart.
        order_z: Spline order or mode along an axis that is treated apart.
        separate: Force (True) or forbid (False) treating the coarsest axis apart; None decides by spacing.
        threshold: Ratio of spacings beyond which None treats it apart.
    """

    library: str
    order: int | str = 3
    order_z: int | str = 0
    separate: bool | None = None
    threshold: float = ANISOTROPY


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """Resampling along one axis: ``output = matrix @ input``.

    Attributes:
        size_in: Input voxels.
        size_out: Output voxels.
        order: Spline order or PyTorch's mode, of which rows are made that are not kept.
        matrix: Shape (size_out, size_in); None where the sizes are equal and nothing changes, or where it is too large
            to be kept.
        place: Where the centres of outputs lie, in inputs counted from the first one's centre: the first, and the step
            from one to the next. None where inputs and outputs fill the same space.
    """

    size_in: int
    size_out: int
    order: int | str
    matrix: Floats | None = None
    place: tuple[float, float] | None = None

    @property
    def identity(self) -> bool:
        """Whether nothing changes."""
        return self.size_in == self.size_out and self.place is None

    def rows(self, start: int, stop: int) -> tuple[Floats, int, int]:
        """The matrix of outputs ``start:stop`` and the input range ``low:high`` that its columns stand for."""
        if self.identity:
            return np.eye(stop - start, dtype=np.float32), start, stop
        rows, offset = (self.matrix[start:stop], 0) if self.matrix is not None else self._make_rows(start, stop)
        used = np.flatnonzero((rows != 0).any(axis=0))
        low, high = int(used[0]), int(used[-1]) + 1
        return rows[:, low:high], offset + low, offset + high

    def _make_rows(self, start: int, stop: int) -> tuple[Floats, int]:
        """Rows of a matrix that is not kept, over the inputs around them, and the first of these inputs.

        A spline of a piece of the input, long enough, has the weights of the spline of all of it.
        """
        if isinstance(self.order, str):
            return _torch_rows(self.size_in, self.size_out, self.order, start, stop)
        centres = (np.arange(start, stop) + 0.5) * self.size_in / self.size_out - 0.5
        if self.place is not None:  # beyond its ends the input goes on as it ends
            centres = np.clip(self.place[0] + np.arange(start, stop) * self.place[1], 0, self.size_in - 1)
        first = max(int(centres[0]) - REACH, 0)
        last = min(int(centres[-1]) + 2 + REACH, self.size_in)
        identity = np.eye(last - first)
        places = np.meshgrid(centres - first, np.arange(last - first), indexing="ij")
        return _without_tails(map_coordinates(identity, places, order=self.order, mode="nearest")), first


@lru_cache(maxsize=1024)
def _span(axis: Axis, start: int, stop: int) -> tuple[int, int]:
    """The inputs that outputs ``start:stop`` are made of."""
    if stop - start <= 2 * ROWS:
        return axis.rows(start, stop)[1:]
    # Of the ends alone: to make all rows of a long axis would take memory with its square.
    return axis.rows(start, start + ROWS)[1], axis.rows(stop - ROWS, stop)[2]


@lru_cache(maxsize=512)
def _rows_on(device: torch.device, axis: Axis, start: int, stop: int) -> torch.Tensor:
    """At most ``ROWS`` rows of an axis' matrix, over the inputs of ``_span``, on a device."""
    return upload(axis.rows(start, stop)[0], device)


def slab_depth(plane: int) -> int:
    """Slices of so many voxels that are worked on at once."""
    return max(1, min(SLAB, PIECE // plane))


def _torch_rows(size_in: int, size_out: int, mode: str, start: int, stop: int) -> tuple[Floats, int]:
    """Rows of PyTorch's interpolation and the first input that their columns stand for.

    Which voxel is the nearest, PyTorch is asked, as it depends on how the processor rounds.
    """
    if mode == "linear":
        outputs, scale = np.arange(start, stop, dtype=np.float32), np.float32(size_in) / np.float32(size_out)
        places = np.maximum((outputs + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
    else:
        inputs = torch.arange(size_in, dtype=torch.float32)[None, None]
        places = to_host(F.interpolate(inputs, size_out, mode=mode)[0, 0])
        places = places[start:stop]
    low = np.minimum(places.astype(int), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    share = places - low.astype(np.float32)
    first = int(low[0])
    rows, index = np.zeros((stop - start, int(high[-1]) + 1 - first), np.float32), np.arange(stop - start)
    rows[index, low - first] = 1 - share
    rows[index, high - first] += share
    return rows, first


def _without_tails(matrix: NDArray[np.floating]) -> Floats:
    return np.where(np.abs(matrix) < NEGLIGIBLE, 0.0, matrix).astype(np.float32)


@lru_cache(maxsize=64)
def axis_operator(size_in: int, size_out: int, order: int | str) -> Axis:
    """The operator along one axis, read off nnU-Net's own function.

    Args:
        size_in: Voxels before.
        size_out: Voxels after.
        order: Spline order, for scikit-image's ``resize``; or one of ``MODES``, for PyTorch's ``interpolate``, which
            computes places in the type of its input: nnU-Net gives it float32, and so is the identity here.
    """
    if size_in == size_out or size_in * size_out > LARGEST_MATRIX:
        return Axis(size_in, size_out, order)
    if isinstance(order, str):
        matrix = to_host(F.interpolate(torch.eye(size_in)[None], size_out, mode=order)[0].T)
    else:
        identity = np.eye(size_in)
        matrix = resize(identity, (size_out, size_in), order, mode="edge", anti_aliasing=False, clip=False)
    return Axis(size_in, size_out, order, _without_tails(matrix))


def separate_axis(spacing_in: Sequence[float], spacing_out: Sequence[float], method: Method) -> int | None:
    """The axis that nnU-Net resamples apart from the other two, if any.

    Source: ``determine_do_sep_z_and_axis`` of nnU-Net v2.
    """
    if method.separate is False:
        return None
    for spacing in (spacing_in, spacing_out):
        if method.separate or max(spacing) / min(spacing) > method.threshold:
            coarsest = [axis for axis in range(3) if max(spacing) / spacing[axis] == 1]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """Resampling of a volume from ``shape_in`` to ``shape_out`` that can be evaluated box by box.

    Attributes:
        axes: One operator for each of z, y, x.
        apart: The axis that is resampled last because nnU-Net treats it apart, or None.
        overshoots: Whether the interpolation can leave the input's range, so that it must be clipped to it.
    """

    axes: tuple[Axis, Axis, Axis]
    apart: int | None
    overshoots: bool

    @property
    def shape_in(self) -> Triple:
        """Voxels before, (z, y, x)."""
        return triple(axis.size_in for axis in self.axes)

    @property
    def shape_out(self) -> Triple:
        """Voxels after, (z, y, x)."""
        return triple(axis.size_out for axis in self.axes)

    def __call__(self, load: Load, box: Box, bounds: Bounds | None = None) -> torch.Tensor:
        """Resample one box.

        Args:
            load: Gives the input voxels of a box of the input grid as float32 (z, y, x), which may be overwritten;
                called slab by slab.
            box: Box of the output grid, inside it.
            bounds: By which overshoot is clipped; on the device of the voxels.

        Returns:
            float32 of the box's shape, on the device of the voxels.
        """
        if all(axis.identity for axis in self.axes):
            return load(box)
        order = [axis for axis in (2, 1, 0) if axis != self.apart] + ([] if self.apart is None else [self.apart])
        before_z = order.index(0)
        ranges = [_span(axis, *edge) for axis, *edge in zip(self.axes, box.start, box.stop, strict=True)]
        slabs, first = self._slabs(load, box, ranges, order[:before_z]), ranges[0][0]
        held: list[torch.Tensor] = []
        result: torch.Tensor | None = None
        # As many slices at a time as one product makes: the input of the last axes is never held as a whole.
        for start in range(box.start[0], box.stop[0], ROWS):
            part = Box((start, *box.start[1:]), (min(start + ROWS, box.stop[0]), *box.stop[1:]))
            low, high = _span(self.axes[0], part.start[0], part.stop[0])
            while first + sum(map(len, held)) < high:
                held.append(next(slabs))
            while first + len(held[0]) <= low:
                first += len(held.pop(0))
            data = (torch.cat(held) if len(held) > 1 else held[0])[low - first : high - first]
            for axis in order[before_z:]:
                inputs = (low, high) if axis == 0 else ranges[axis]
                if axis == self.apart:
                    data = self._clip(data, bounds, inputs)
                data = self._along(axis, data, part, inputs[0])
            if part == box:
                result = data
            else:
                result = data.new_empty(box.shape) if result is None else result
                result[part.relative_to(box).slices] = data
        if result is None:
            raise ValueError(f"an empty box {box}")
        return result if self.apart is not None else self._clip(result, bounds, None)

    def _slabs(
        self, load: Load, box: Box, ranges: Sequence[tuple[int, int]], axes: Sequence[int]
    ) -> Iterator[torch.Tensor]:
        """The input of a box, a few slices at a time, resampled along some axes other than the first.

        Slabs bound the memory of the in-plane step, which alone is at full input resolution.
        """
        (z0, z1), (y0, y1), (x0, x1) = ranges
        depth = slab_depth((y1 - y0) * (x1 - x0))
        for start in range(z0, z1, depth):
            slab = load(Box((start, y0, x0), (min(start + depth, z1), y1, x1)))
            for axis in axes:
                slab = self._along(axis, slab, box, ranges[axis][0])
            yield slab

    def _along(self, axis: int, data: torch.Tensor, box: Box, low: int) -> torch.Tensor:
        """Apply one axis' operator to data whose first voxel along that axis is input voxel ``low``."""
        operator, start, stop = self.axes[axis], box.start[axis], box.stop[axis]
        if operator.identity:
            return data
        pieces = []
        for row in range(start, stop, ROWS):
            some = operator, row, min(row + ROWS, stop)
            first, last = _span(*some)
            pieces.append(multiply_axis(data, _rows_on(data.device, *some), axis, first - low, last - low))
        return torch.cat(pieces, axis) if len(pieces) > 1 else pieces[0]

    def _clip(self, data: torch.Tensor, bounds: Bounds | None, apart: tuple[int, int] | None) -> torch.Tensor:
        """Clip overshoot as scikit-image does: to the range of what was resized at once."""
        if not self.overshoots or bounds is None:
            return data
        low, high = bounds
        if low.ndim and apart is not None and self.apart is not None:
            shape = [1, 1, 1]
            shape[self.apart] = -1
            low, high = low[apart[0] : apart[1]].reshape(shape), high[apart[0] : apart[1]].reshape(shape)
        return data.clamp_(low, high)


def multiply_axis(data: torch.Tensor, matrix: torch.Tensor, axis: int, start: int, stop: int) -> torch.Tensor:
    """``matrix`` times ``data[start:stop]`` along one of the last three axes (0 = z) of ``data``."""
    part = data.narrow(axis - 3, start, stop - start)
    shape = list(part.shape)
    shape[axis - 3] = len(matrix)
    if axis == 2:  # as one product: a stack of them is several times slower
        return (part.reshape(-1, stop - start) @ matrix.T).reshape(shape)
    # By name: matmul would bring the axis to the end first, and so copy everything twice.
    lead = prod(shape[:-2] if axis == 1 else shape[:-3])
    stack = part.reshape(lead, stop - start, -1)
    return torch.bmm(matrix.expand(lead, *matrix.shape), stack).reshape(shape)


Place = tuple[float, float]
"""See ``Axis.place``."""


def plan_resampling(
    shape_in: Triple,
    shape_out: Triple,
    spacing_in: Sequence[float],
    spacing_out: Sequence[float],
    method: Method,
    places: Sequence[Place | None] = (None, None, None),
) -> Resampling:
    """Prepare the resampling that nnU-Net would do between two grids.

    Args:
        shape_in: Voxels before, (z, y, x).
        shape_out: Voxels after.
        spacing_in: Voxel size before; decides with ``spacing_out`` whether an axis is treated apart.
        spacing_out: Voxel size after.
        method: What the plans ask for.
        places: See ``Axis``. With any, the input is another version of what the network would resample, which itself
            may need no resampling.
    """
    placed = any(place is not None for place in places)
    if not placed and (method.library == "none" or shape_in == shape_out):
        axes = [axis_operator(size, size, 0) for size in shape_in]
        return Resampling((axes[0], axes[1], axes[2]), None, False)
    if method.library == "none":
        method = Method("torch", "linear", "linear", False)
    apart = separate_axis(spacing_in, spacing_out, method)
    # nnU-Net's PyTorch variant heeds the mode only where an axis is treated apart.
    inner = "linear" if method.library == "torch" and apart is None else method.order
    orders = [method.order_z if axis == apart else inner for axis in range(3)]
    axes = [
        axis_operator(*sizes, order) if place is None else _placed_operator(*sizes, place, order)
        for sizes, place, order in zip(zip(shape_in, shape_out, strict=True), places, orders, strict=True)
    ]
    return Resampling((axes[0], axes[1], axes[2]), apart, not isinstance(inner, str) and inner > 1)


@lru_cache(maxsize=64)
def _placed_operator(size_in: int, size_out: int, place: Place, order: int | str) -> Axis:
    """An axis whose outputs lie anywhere between its inputs; PyTorch's modes become the splines that they are."""
    spline = order if isinstance(order, int) else int(order == "linear")
    axis = Axis(size_in, size_out, spline, None, place)
    if size_in * size_out > LARGEST_MATRIX:
        return axis
    matrix = np.zeros((size_out, size_in), np.float32)
    for start in range(0, size_out, ROWS):
        stop = min(start + ROWS, size_out)
        rows, first = axis._make_rows(start, stop)
        matrix[start:stop, first : first + rows.shape[1]] = rows
    return replace(axis, matrix=matrix)


@lru_cache(maxsize=64)
def stretch(size_in: int, size_out: int) -> Floats:
    """Resizing of a crop from ``size_in`` to ``size_out`` voxels along one axis; shape (size_out, size_in).

    Linear interpolation; where it would pass over voxels (below half of the size) the mean of all that an output voxel
    covers. At half of the size both are the same.
    """
    matrix = np.zeros((size_out, size_in), np.float32)
    if size_in > 2 * size_out:
        edges = np.arange(size_out + 1) * (size_in / size_out)
        voxels = np.arange(size_in)
        shared = np.minimum(edges[1:, None], voxels + 1) - np.maximum(edges[:-1, None], voxels)
        matrix[:] = np.maximum(shared, 0) * (size_out / size_in)
        return matrix
    rows, low, high = axis_operator(size_in, size_out, "linear").rows(0, size_out)
    matrix[:, low:high] = rows
    return matrix


@lru_cache(maxsize=64)
def stretch_on(device: torch.device, size_in: int, size_out: int) -> torch.Tensor:
    """``stretch`` on a device."""
    return upload(stretch(size_in, size_out), device)
