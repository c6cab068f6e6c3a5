"""Arrays that stay in their file and are read by region."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple


@dataclass(frozen=True, slots=True, eq=False)
class LazyArray:
    """An array whose regions are read when they are asked for; nothing is kept.

    Attributes:
        shape: Voxels per axis, in the order of ``axes``.
        dtype: Type of the voxels, in native byte order.
        load: Reads a box, given in the order of the file's axes and inside of its array; shape and type of the result
            are the box's and ``dtype``.
        axes: Axis i of this array is axis ``axes[i]`` of the file.

    >>> whole = np.arange(24).reshape(2, 3, 4)
    >>> lazy = LazyArray((2, 3, 4), whole.dtype, lambda box: whole[box.slices]).transpose((2, 0, 1))
    >>> lazy.shape, lazy[1:3, :, -1:].ravel().tolist()
    ((4, 2, 3), [9, 21, 10, 22])
    """

    shape: Triple
    dtype: np.dtype[Any]
    load: Callable[[Box], NDArray[Any]]
    axes: Triple = (0, 1, 2)

    def __getitem__(self, key: tuple[slice, slice, slice], /) -> NDArray[Any]:
        """Reads a region.

        Args:
            key: One slice per axis, without step; bounds as NumPy understands them.

        Returns:
            A new array in C order.

        Raises:
            IndexError: If ``key`` is anything else than three slices without step.
        """
        if len(key) != 3 or not all(isinstance(part, slice) and part.step in (None, 1) for part in key):
            raise IndexError(f"an array on disk takes three slices without step, not {key}")
        start, stop = [0, 0, 0], [0, 0, 0]
        for part, length, axis in zip(key, self.shape, self.axes, strict=True):
            first, last, _ = part.indices(length)
            start[axis], stop[axis] = first, max(first, last)
        box = Box(triple(start), triple(stop))
        if box.volume == 0:  # not every library reads nothing
            return np.empty([box.shape[axis] for axis in self.axes], self.dtype)
        return np.ascontiguousarray(self.load(box).transpose(self.axes))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Reads everything: what NumPy does with an array-like.

        >>> np.asarray(LazyArray((1, 1, 2), np.dtype(int), lambda box: np.full(box.shape, 7))).tolist()
        [[[7, 7]]]
        """
        everything = self[:, :, :]
        return everything if dtype is None else everything.astype(dtype, copy=False)

    def transpose(self, axes: Sequence[int], /) -> LazyArray:
        """The same voxels with other axis order: axis i of the result is axis ``axes[i]`` of this array.

        Raises:
            ValueError: If ``axes`` is no permutation of 0, 1, 2.
        """
        if sorted(axes) != [0, 1, 2]:
            raise ValueError(f"{tuple(axes)} is no order of three axes")
        shape, order = (triple(values[axis] for axis in axes) for values in (self.shape, self.axes))
        return replace(self, shape=shape, axes=order)
