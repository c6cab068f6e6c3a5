"""What the stages after the coarse one look at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from canvas import Box, Triple
from coarse2fine.coarse.heatmap import CoarseResult
from coarse2fine.preprocessing.mask import pooled
from coarse2fine.preprocessing.working_grid import WorkingView


class Prior(Protocol):
    """What a cascade is told of the previous stage's labels."""

    def one_hot(self, box: Box, grid: Triple) -> torch.Tensor:
        """One channel per foreground label in a box of a grid of this shape; shape (labels, *box)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A volume, or a window of one, as it is segmented at once.

    Attributes:
        view: The fine model's view of it.
        coarse: What the coarse network said of it; held, perhaps, around the window only.
        previous: What a cascade is told instead of what the coarse network said.
    """

    view: WorkingView
    coarse: CoarseResult
    previous: Prior | None = None

    @property
    def prior(self) -> Prior:
        """What a cascade is told."""
        return self.coarse if self.previous is None else self.previous


def scene_within(scene: Scene, mask: NDArray[np.bool_]) -> Scene:
    """A whole volume of which only a part is looked at: elsewhere the heatmap is zero.

    Args:
        scene: The volume.
        mask: Where something is looked at, in the volume's own axes.
    """
    native, whole = scene.view.crop.shape, scene.coarse.whole
    shown = np.asarray(scene.view.turn.array(mask))[scene.view.crop.slices]
    kept = pooled(shown, Box.whole(native), native, whole, Box.whole(whole))
    return replace(scene, coarse=scene.coarse.only_where(kept))
