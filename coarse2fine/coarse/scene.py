"""What the stages after the coarse one look at."""

from __future__ import annotations

from dataclasses import dataclass

from coarse2fine.coarse.heatmap import CoarseResult
from coarse2fine.preprocessing.working_grid import WorkingView


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A volume, or a window of one, as it is segmented at once.

    Attributes:
        view: The fine model's view of it.
        coarse: What the coarse network said of it; held, perhaps, around the window only.
    """

    view: WorkingView
    coarse: CoarseResult
