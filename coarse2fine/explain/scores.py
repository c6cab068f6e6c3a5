"""What a map explains: one number of a network's output, whose gradient is taken.

Of a classifier it is a class' output. Of a segmentation network it is the sum of a class' outputs over some voxels, by
default those in which the network finds the class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from coarse2fine.errors import ConfigError

Score = Callable[[torch.Tensor], torch.Tensor]
"""From outputs, shape (n, classes) or (n, classes, *space), to a number for each sample, shape (n,)."""


def score_of(head: int, weights: torch.Tensor | None = None, *, regions: bool = False) -> Score:
    """The score of a class.

    Args:
        head: The class' output, counted from 0.
        weights: Of a segmentation network how much each voxel counts, shape (*space) or (n, *space), such as a mask;
            None for the voxels in which the class is found.
        regions: Whether classes may overlap, so that each is found where its own output is above 0.
    """

    def score(outputs: torch.Tensor) -> torch.Tensor:
        if not 0 <= head < outputs.shape[1]:
            raise ConfigError(
                f"class {head} of a network with {outputs.shape[1]} outputs",
                f"Classes are counted from 0: name one up to {outputs.shape[1] - 1}.",
            )
        if outputs.ndim == 2:
            return outputs[:, head]
        counted = found_in(outputs, head, regions=regions) if weights is None else weights.to(outputs.device)
        if counted.shape[-(outputs.ndim - 2) :] != outputs.shape[2:]:
            raise ConfigError(
                f"a mask of shape {tuple(counted.shape)} for outputs of shape {tuple(outputs.shape[2:])}",
                "Give a mask with as many pixels or voxels as the network's output has.",
            )
        return (outputs[:, head] * counted.to(outputs.dtype)).flatten(1).sum(1)

    return score


def found_in(outputs: torch.Tensor, head: int, *, regions: bool = False) -> torch.Tensor:
    """The voxels in which a segmentation network finds a class.

    Args:
        outputs: Shape (n, classes, *space).
        head: The class' output.
        regions: See ``score_of``. A single output is a class that is found so, too.

    Returns:
        Booleans of shape (n, *space).
    """
    outputs = outputs.detach()
    if regions or outputs.shape[1] == 1:
        return outputs[:, head] > 0
    return outputs.argmax(1) == head
