"""How a volume's axes are permuted and reversed: between a file's voxel order and the one a network was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.io.volume import VoxelArray

if TYPE_CHECKING:  # whoever has no tensor does without PyTorch
    import torch


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the 48 ways to permute and reverse the axes of a volume.

    Attributes:
        axes: Axis of the volume that becomes each axis of the result.
        flips: Whether an axis of the result runs backwards.

    >>> Turn((2, 0, 1), (True, False, False)).sizes((4, 5, 6))
    (6, 4, 5)
    """

    axes: Triple = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def reversed_axes(self) -> tuple[int, ...]:
        """The axes of the result that run backwards."""
        return tuple(axis for axis in range(3) if self.flips[axis])

    @property
    def inverse(self) -> Turn:
        """The turn that undoes this one."""
        x, y, z = np.argsort(self.axes).tolist()
        return Turn((x, y, z), (self.flips[x], self.flips[y], self.flips[z]))

    def then(self, other: Turn) -> Turn:
        """This turn and then another, in one."""
        x, y, z = (self.flips[axis] != flip for axis, flip in zip(other.axes, other.flips, strict=True))
        return Turn(triple(self.axes[axis] for axis in other.axes), (x, y, z))

    def sizes(self, values: Triple) -> Triple:
        """A value of each axis, such as a shape, as the result has it."""
        return triple(values[axis] for axis in self.axes)

    def per_axis(self, values: tuple[float, float, float]) -> tuple[float, float, float]:
        """A spacing, as the result has it."""
        z, y, x = (values[axis] for axis in self.axes)
        return z, y, x

    def box(self, box: Box, shape: Triple) -> Box:
        """A box of a volume of this shape, as the result has it."""
        ends = zip(self.sizes(box.start), self.sizes(box.stop), self.sizes(shape), self.flips, strict=True)
        edges = [(edge - stop, edge - start) if flip else (start, stop) for start, stop, edge, flip in ends]
        return Box(triple(start for start, _ in edges), triple(stop for _, stop in edges))

    def array(self, voxels: VoxelArray) -> VoxelArray:
        """An array of three axes, turned; a view. Only what is in memory can be reversed."""
        turned = voxels.transpose(self.axes)
        return np.flip(np.asarray(turned), self.reversed_axes) if self.reversed_axes else turned

    def tensor(self, values: torch.Tensor) -> torch.Tensor:
        """A tensor of which the last three axes are a volume's, turned; a view, but where axes are reversed."""
        before = values.ndim - 3
        turned = values.permute(*range(before), *(before + axis for axis in self.axes))
        if not self.reversed_axes:
            return turned
        from coarse2fine.system.device import flipped

        return flipped(turned, [before + axis for axis in self.reversed_axes])

    def last_axes(self, values: NDArray[Any]) -> NDArray[Any]:
        """An array of which the last three axes are a volume's, turned; a view."""
        before = values.ndim - 3
        order = (*range(before), *(before + axis for axis in self.axes))
        return np.flip(values.transpose(order), tuple(before + axis for axis in self.reversed_axes))
