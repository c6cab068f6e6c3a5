"""What lies at the border of an image tells how it was turned, or where a part of it was, without any look at anatomy.

Such are zeros that pad a volume, collimators, letters that mark a side, and the sampling of a scanner's field of view.
Here they are found or covered, by masks that are the same whatever was done to an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from coarse2fine.errors import ConfigError

Kind = Literal["disc", "frame", "none"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Border:
    """What is covered.

    Attributes:
        kind: All but an ellipse, or a frame.
        width: Share of an edge that the frame covers at each side, and that the ellipse is away from each face.

    Raises:
        ConfigError: If it covers everything.
    """

    kind: Kind = "disc"
    width: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.width < 0.5:
            raise ConfigError(f"a border of {self.width:g} of the edge leaves no image", "Use a share below 0.5: 0.05.")

    def visible(self, shape: Sequence[int]) -> torch.Tensor:
        """What is not covered; shape as given. The same after each turn and reflection that keeps the shape."""
        if self.kind == "none":
            return torch.ones(tuple(shape), dtype=torch.bool)
        axes = [(2 * np.arange(size) + 1) / size - 1 for size in shape]
        places = np.abs(np.stack(np.meshgrid(*axes, indexing="ij")))
        reach = 1 - 2 * self.width
        inside = np.square(places).sum(0) <= reach**2 if self.kind == "disc" else (places <= reach).all(0)
        return torch.from_numpy(inside)


def content_bounds(images: torch.Tensor) -> torch.Tensor:
    """Where images have something: planes from a face inwards are left out as long as all their voxels are alike.

    Args:
        images: Shape (n, channels, *image).

    Returns:
        For each axis the first plane and the one after the last; shape (n, axes, 2). An image that is constant along
        an axis is taken for content.
    """
    return torch.tensor([_bounds(image) for image in images], device=images.device)


def _bounds(image: torch.Tensor) -> list[list[int]]:
    """Of one image, shape (channels, *image): again and again, as what is left out makes more planes constant."""
    bounds, before = [[0, size] for size in image.shape[1:]], None
    while bounds != before:
        before = [list(ends) for ends in bounds]
        for axis, ends in enumerate(bounds):
            inside = image[:, *(slice(*other) for other in bounds)]
            planes = inside.movedim(axis + 1, 0).flatten(2)  # (size, channels, voxels)
            varied = (planes != planes[..., :1]).flatten(1).any(1).nonzero()[:, 0].tolist()
            if varied:
                ends[:] = [ends[0] + varied[0], ends[0] + varied[-1] + 1]
    return bounds


def content(images: torch.Tensor) -> torch.Tensor:
    """The same as masks, shape (n, 1, *image)."""
    bounds = content_bounds(images)
    inside = torch.ones_like(images[:, :1], dtype=torch.bool)
    for axis, size in enumerate(images.shape[2:]):
        at = torch.arange(size, device=images.device)
        along = (at >= bounds[:, axis, :1]) & (at < bounds[:, axis, 1:])
        inside &= along.view(len(images), 1, *(-1 if other == axis else 1 for other in range(bounds.shape[1])))
    return inside
