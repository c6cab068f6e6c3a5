"""Connected components."""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray


def label_components(mask: NDArray[np.bool_]) -> NDArray[np.unsignedinteger]:
    """Label the connected components of a mask, 26 neighbours; the result may be one voxel longer on each axis."""
    # cc3d 4.1 has room for a label per four voxels, but a thin array of odd shape may need one per pair and raises.
    # With even edges, a block of eight voxels never needs more than one.
    if np.prod([(edge + 1) // 2 for edge in mask.shape]) > mask.size // 4:
        mask = np.pad(mask, [(0, edge % 2) for edge in mask.shape])
    return cc3d.connected_components(mask, connectivity=26)
